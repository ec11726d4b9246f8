"""The classifier of the known classes: ResNet-18, trained as in the paper.

SGD with momentum 0.9 and weight decay 5e-4, batches of 128, learning rate 0.01 halved every 20 epochs;
random crop, horizontal flip, rotation up to 15°. Everything random comes from one seed: the same images,
labels and seed give the same weights on a CPU.

Runs in channels-last, and in bfloat16 where `devices.bfloat16_is_faster` says so (AMX, AMD's AVX512-BF16, recent
GPUs); weights, BatchNorm statistics, the loss and the softmax stay float32. Speeds measured are in that function's
docstring. torch.compile is not used: on two CPU cores it took 47 and 52 s to compile and then changed a training step
by +8 % (32 px) and -17 % (64 px) of the processor's time, which a training of some minutes doesn't earn back. It
needs a C++ compiler where it runs, too.
"""

from __future__ import annotations

import copy
import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from neat_backend.models.devices import bfloat16_is_faster, resolve_device
from neat_backend.models.networks import ORDINARY_STEM_FROM as ORDINARY_STEM_FROM
from neat_backend.models.networks import activations, build_network, load_fitting

BATCH_SIZE = 128
LEARNING_RATE = 0.01
HALVED_EVERY_EPOCHS = 20
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
ROTATION_DEGREES = 15
FLAT_FROM_EPOCHS = 3 * HALVED_EVERY_EPOCHS
FLAT_WINDOW_EPOCHS = 10
FLAT_SHARE = 0.04
SMALL_SHARE = 0.5  # of the epochs, in a progressive training
SMALLEST_SIDE = 16  # pixels
NETWORK = "resnet18"
PREDICT_BATCH_SIZE = 256
FORMAT = "neat-classifier-1"

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)


class Classifier:
    """A trained ResNet-18 for images of one side; made by `fit` or `Classifier.load`.

    n_classes   C, the number of its outputs
    side        pixels of the square images that it takes
    classes     the names of the outputs if the caller has set them, else empty; `save` keeps them
    """

    def __init__(self, network: nn.Module, n_classes: int, side: int, device: torch.device) -> None:
        self.n_classes = n_classes
        self.side = side
        self.classes: tuple[str, ...] = ()
        self.device = device
        self._network = network.eval()

    @property
    def network(self) -> nn.Module:
        """Normalised images float32 [n, 3, s, s] -> logits [n, C]."""
        return self._network

    @torch.inference_mode()
    def predict_proba(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 [n, s, s, 3] -> float32 [n, C]; rows sum to 1. Raises ValueError for images of another side."""
        pixels = as_pixels(images, self.side)  # [n, 3, s, s]
        probabilities = np.empty((len(pixels), self.n_classes), dtype=np.float32)
        for start in range(0, len(pixels), PREDICT_BATCH_SIZE):
            batch = pixels[start : start + PREDICT_BATCH_SIZE].to(self.device).float() / 255  # [b, 3, s, s]
            with _precision(self.device):
                logits = self._network(_normalise(batch))  # [b, C]
            probabilities[start : start + len(batch)] = logits.float().softmax(dim=1).cpu().numpy()
        return probabilities

    def on(self, device: torch.device) -> Classifier:
        """The same on another device, a copy."""
        other = Classifier(_placed(copy.deepcopy(self._network), device), self.n_classes, self.side, device)
        other.classes = self.classes
        return other

    def save(self, path: Path) -> None:
        """Write the weights with classes and side to `path`, atomically."""
        metadata = {
            "format": FORMAT,
            "n_classes": str(self.n_classes),
            "side": str(self.side),
            "classes": json.dumps(self.classes),
        }
        tensors = {key: value.contiguous().cpu() for key, value in self._network.state_dict().items()}
        metadata["crc32"] = str(_checksum(tensors))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(save(tensors, metadata))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name survives a power cut too
            finally:
                os.close(folder)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, device: str = "auto") -> Classifier:
        """Load a file of `save`. Raises FileNotFoundError, and ValueError for any other file."""
        if not path.is_file():
            raise FileNotFoundError(f"no classifier at {path}")
        place = resolve_device(device)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"{path} is not a classifier saved here")
                state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
            # The format has no checksum: damaged weights would load without an error.
            if metadata.get("crc32", str(_checksum(state))) != str(_checksum(state)):
                raise ValueError(f"{path} is damaged: its checksum is wrong")
            n_classes, side = int(metadata["n_classes"]), int(metadata["side"])
            network = _network(n_classes, side)
            network.load_state_dict(state)
        except (SafetensorError, RuntimeError, KeyError) as error:
            raise ValueError(f"{path} is not a classifier saved here: {error}") from error
        classifier = cls(_placed(network, place), n_classes, side, place)
        classifier.classes = tuple(json.loads(metadata["classes"]))
        return classifier


def _checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    """CRC-32 of all weights, by name."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().data, crc)
    return crc


@dataclass(frozen=True)
class Schedule:
    """The length of a training, and the sides of its images. The defaults are the paper's.

    epochs       how many, or at most how many
    early_stop   end when `is_flat`
    progressive  on a CPU, see the images at half their side first (progressive resizing): in the first half of the
                 epochs, with early_stop in half of the fewest, so that `is_flat` compares losses of one side
    """

    epochs: int = 100
    early_stop: bool = False
    progressive: bool = False

    def small_epochs(self, side: int, device: torch.device) -> int:
        """How many epochs, the first ones, see images of `side` pixels at side // 2.

        0 if that is less than SMALLEST_SIDE, and on a GPU, where nothing was measured.
        """
        if not self.progressive or device.type != "cpu" or side // 2 < SMALLEST_SIDE:
            return 0
        fewest = min(self.epochs, FLAT_FROM_EPOCHS) if self.early_stop else self.epochs
        return int(fewest * SMALL_SHARE)


def fit(
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    n_classes: int,
    *,
    schedule: Schedule = Schedule(),
    seed: int = 0,
    device: str = "auto",
    weights: Mapping[str, torch.Tensor] | None = None,
    on_epoch: Callable[[int, int, float], None] | None = None,
) -> Classifier:
    """Train on uint8 `images` [n, s, s, 3] with `labels` [n] in 0..n_classes-1.

    weights: a ResNet-18's to begin with (`weights.starting_weights`), all but the last layer's; None = from scratch,
    as in the paper. A class without a label is allowed, and so are one class and one image. `on_epoch(epoch, epochs,
    loss)` is called after each epoch, counted from 1, with the mean loss. Raises ValueError without images, when
    shapes don't match (the weights' too), and for labels out of range.
    """
    targets = _targets(images, labels, n_classes)  # [n]
    side = images.shape[1]
    place = resolve_device(device)
    network = fresh(NETWORK, n_classes, side, seed, place)
    if weights is not None:
        load_fitting(network, weights)
    pixels = as_pixels(images, side)  # [n, 3, s, s]
    train(network, pixels, targets, place, schedule=schedule, seed=seed, on_epoch=on_epoch)
    return Classifier(network, n_classes, side, place)


def fresh(name: str, n_classes: int, side: int, seed: int, device: torch.device) -> nn.Module:
    """An untrained network on `device`, its weights drawn from the seed; the caller's generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _placed(build_network(name, n_classes, side), device)


def train(
    network: nn.Module,
    pixels: torch.Tensor,
    targets: torch.Tensor,
    place: torch.device,
    *,
    schedule: Schedule,
    seed: int,
    temperature: float = 1.0,
    on_epoch: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train `network`, which is on `place`, in place: pixels uint8 [n, 3, s, s], targets int64 [n].

    The loss is the cross-entropy of logits / temperature. `on_epoch` as for `fit`.
    """
    pixels, targets = pixels.to(place), targets.to(place)
    small_epochs = schedule.small_epochs(pixels.shape[-1], place)
    small = shrunk(pixels, pixels.shape[-1] // 2) if small_epochs else pixels  # [n, 3, s // 2, s // 2]
    generator = torch.Generator().manual_seed(seed)  # on the CPU, so that every device sees the same augmentation
    optimiser = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    rate = torch.optim.lr_scheduler.StepLR(optimiser, HALVED_EVERY_EPOCHS, gamma=0.5)
    losses: list[float] = []  # of each epoch
    network.train()
    for epoch in range(1, schedule.epochs + 1):
        seen_pixels = small if epoch <= small_epochs else pixels
        total = torch.zeros((), device=place)
        seen = 0
        for chosen in _batches(len(pixels), generator):  # chosen: [b]
            chosen = chosen.to(place)
            batch = augment(seen_pixels[chosen], generator)  # [b, 3, s, s] or half the side
            with _precision(place):
                logits = network(_normalise(batch))  # [b, C]
            loss = F.cross_entropy(logits.float() / temperature, targets[chosen])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += loss.detach() * len(chosen)
            seen += len(chosen)
        rate.step()
        if on_epoch is not None or schedule.early_stop:
            losses.append(float(total) / seen)
        if on_epoch is not None:
            on_epoch(epoch, schedule.epochs, losses[-1])
        if schedule.early_stop and is_flat(losses):
            return


def is_flat(losses: Sequence[float]) -> bool:
    """Whether training may end after epochs of these mean losses [e], in nats.

    It may when the mean of the last FLAT_WINDOW_EPOCHS is lower than that of as many before by FLAT_SHARE of the whole
    fall since the first epoch at most, but not before FLAT_FROM_EPOCHS. The share is of the whole fall and not of the
    loss: that of a few images goes on halving when there is nothing left to learn, and that of many classes falls by a
    small part of itself when it has just begun. One epoch of a small set is one batch, whose loss is noise: hence
    means. By FLAT_FROM_EPOCHS the rate has been halved three times, and BatchNorm's running statistics, which lag some
    ten batches behind, have caught up.

    Measured on Fashion-MNIST at 32 pixels, ten classes, from scratch, 100 epochs, 500 test images (accuracy read at the
    measured epoch nearest to the end, one off at most), with the share chosen on these same seven runs:

        labels  seeds    ends after    accuracy then        after 100 epochs
        30      0, 1, 2  60, 60, 64    44.0, 42.2, 40.0 %   44.8, 41.8, 41.2 %
        100     0, 1, 2  61, 71, 68    56.8, 56.8, 54.4 %   56.4, 56.6, 57.4 %
        300     1        60            70.8 %               70.4 %

    37 of 100 epochs are saved on average; accuracy changes by −0.5 ± 0.5 points (mean and standard error of pairs).
    Not measured: ImageNet's weights, and thousands of labels.
    """
    if len(losses) < FLAT_FROM_EPOCHS:
        return False
    before = sum(losses[-2 * FLAT_WINDOW_EPOCHS : -FLAT_WINDOW_EPOCHS]) / FLAT_WINDOW_EPOCHS
    last = sum(losses[-FLAT_WINDOW_EPOCHS:]) / FLAT_WINDOW_EPOCHS
    return before - last <= FLAT_SHARE * max(losses[0] - last, 0)


@torch.inference_mode()
def penultimate(
    network: nn.Module, pixels: torch.Tensor, place: torch.device
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """What the last linear layer sees [n, h], and its logits [n, C], of uint8 pixels [n, 3, s, s]."""
    network.eval()
    seen, logits = [], []
    for batch in pixels.split(PREDICT_BATCH_SIZE):
        with _precision(place):
            inner, outer = activations(network, _normalise(batch.to(place).float() / 255))  # [b, h], [b, C]
        seen.append(inner.float().cpu().numpy())
        logits.append(outer.float().cpu().numpy())
    return np.concatenate(seen), np.concatenate(logits)


def shrunk(pixels: torch.Tensor, side: int) -> torch.Tensor:
    """uint8 [n, 3, s, s] -> uint8 [n, 3, side, side]: every pixel is the weighted mean of those that it covers."""
    return F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)


def augment(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """uint8 [b, 3, s, s] -> float32 [b, 3, s, s] in [0, 1]: shifted, flipped, rotated, each image its own way.

    The crop with padding 4 of a 32-pixel image is a shift by up to 4 whole pixels; other sides shift by up to
    s/8. What comes in from outside is black. One affine map per image does all three.
    """
    b, side = len(pixels), pixels.shape[-1]
    reach = max(1, side // 8)  # pixels
    shift = torch.randint(-reach, reach + 1, (b, 2), generator=generator) * (2 / side)  # the image spans -1..1
    flip = torch.randint(0, 2, (b,), generator=generator) * 2.0 - 1  # ±1
    angle = torch.deg2rad((torch.rand(b, generator=generator) * 2 - 1) * ROTATION_DEGREES)
    cos, sin = angle.cos(), angle.sin()
    across = torch.stack([flip * cos, -flip * sin, shift[:, 0]], dim=1)  # [b, 3]
    down = torch.stack([sin, cos, shift[:, 1]], dim=1)  # [b, 3]
    theta = torch.stack([across, down], dim=1).to(pixels.device)  # [b, 2, 3]: from output to input position
    grid = F.affine_grid(theta, [b, 3, side, side], align_corners=False)  # [b, s, s, 2]
    # At its edge an image goes on as it is there, and ends where it ends: blended with the black outside instead, small
    # images lose much of their outermost pixels (8-pixel digits: one point of accuracy).
    moved = F.grid_sample(pixels.float() / 255, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved * (grid.abs() <= 1).all(dim=-1)[:, None]


def _batches(n: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """0..n-1 in a random order, 128 at a time; BatchNorm can't learn from a single image, so none comes alone."""
    order = torch.randperm(n, generator=generator)
    if n == 1:
        order = order.repeat(2)
    batches = list(order.split(BATCH_SIZE))
    if len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    yield from batches


def _network(n_classes: int, side: int) -> nn.Module:
    return build_network(NETWORK, n_classes, side)


def _placed(network: nn.Module, device: torch.device) -> nn.Module:
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _precision(device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16, enabled=bfloat16_is_faster(device))


def _normalise(images: torch.Tensor) -> torch.Tensor:
    images = (images - MEAN.to(images.device)) / STD.to(images.device)  # [b, 3, s, s]
    return images.contiguous(memory_format=torch.channels_last)


def as_pixels(images: npt.NDArray[np.uint8], side: int) -> torch.Tensor:
    """uint8 [n, s, s, 3] -> uint8 [n, 3, s, s], channels last in memory; no copy if it can be helped."""
    if images.ndim != 4 or images.shape[1:] != (side, side, 3) or images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 [n, {side}, {side}, 3]; these are {images.dtype} {list(images.shape)}")
    return torch.from_numpy(np.require(images, requirements=["C", "W"])).permute(0, 3, 1, 2)


def _targets(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], n_classes: int) -> torch.Tensor:
    if n_classes < 1:
        raise ValueError("there must be at least one class")
    if not len(images):
        raise ValueError("there are no labelled images to train on")
    if images.ndim != 4 or labels.shape != (len(images),):
        raise ValueError(f"images {list(images.shape)} and labels {list(labels.shape)} don't go together")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise ValueError(f"labels must be in 0..{n_classes - 1}; these are in {labels.min()}..{labels.max()}")
    return torch.from_numpy(labels.astype(np.int64))
