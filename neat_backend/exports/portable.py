"""A classifier as one file that works without this package: torch.export's .pt2, or ONNX.

A .pt2 is for PyTorch and needs no other package; it succeeds TorchScript, which is deprecated. ONNX is for other
runtimes; writing it needs onnxscript.
"""

from __future__ import annotations

import copy
import io
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from neat_backend.models.classifier import MEAN, STD, Classifier
from neat_backend.models.encoders import Encoder
from neat_backend.ranking.linear_head import LinearHead

VERSION = str(torch.__version__)  # of the PyTorch that such a file is written by
OPSET = 18  # of ONNX: what readers of several years ago know

_TRACES = (
    "stack_trace",
    "from_node",
    "source_fn_stack",
    "torch_fn",
)  # of where a node came from: paths of this machine


@dataclass(frozen=True)
class Portable:
    """The content of an exported model.

    network        normalised images float32 [n, 3, s, s] -> logits [n, m]: one for each class, then one for "none of
                   these" where `none_of_these`
    side           s, pixels
    mean, std      what pixels in [0, 1] are normalised with, a channel each
    """

    network: nn.Module
    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]
    none_of_these: bool = False

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it gives."""
        return ("probabilities", "none_of_these") if self.none_of_these else ("probabilities",)


def of_classifier(classifier: Classifier) -> Portable:
    """A trained ResNet-18."""
    mean, std = (tuple(round(value, 6) for value in values.flatten().tolist()) for values in (MEAN, STD))
    return Portable(classifier.network, classifier.side, mean, std, classifier.classes)


def of_head(encoder: Encoder, head: LinearHead) -> Portable:
    """A linear head on the encoder's features, normalised to length 1; its classes are those with labels.

    Raises ValueError where the head is of features of another length.
    """
    outputs, dim = head.weights.shape
    if dim != encoder.dim:
        raise ValueError(f"the head takes {dim} features, the encoder gives {encoder.dim}")
    layer = nn.Linear(dim, outputs)
    layer.load_state_dict({"weight": torch.tensor(head.weights), "bias": torch.tensor(head.biases)})
    network = nn.Sequential(OrderedDict(encoder=encoder.network, unit=_Unit(), head=layer))
    cut = encoder.preprocessing
    classes = tuple(head.classes[column] for column in head.columns)
    return Portable(network, cut.side, cut.mean, cut.std, classes, head.unknown)


def weights(model: Portable) -> bytes:
    """The network's weights by their names, as safetensors."""
    return save({name: value.contiguous().cpu() for name, value in model.network.state_dict().items()})


def pt2(model: Portable) -> bytes:
    """A program of `torch.export`: uint8 [n, s, s, 3] -> `outputs`, normalisation and softmax included.

    `probabilities` float32 [n, C] are those of the classes, given that it is one of them: rows sum to 1;
    `none_of_these` float32 [n] is how likely it is none. One output comes alone, two as a tuple. It computes in
    float32, on any device; what was computed in half precision or bfloat16 differs in the third digit.
    The same model and PyTorch give the same bytes.
    """
    file = io.BytesIO()
    torch.export.save(_program(model), file)
    return file.getvalue()


def onnx(model: Portable) -> bytes:
    """The same as an ONNX model of opset `OPSET`, from `images` to `outputs` by name; the weights are in it.

    Its metadata has the classes, as a list in JSON. The same model, PyTorch and onnxscript give the same bytes.
    Raises ImportError where onnxscript is not installed.
    """
    made = torch.onnx.export(
        _program(model),
        dynamic_shapes=({0: "n"},),
        input_names=["images"],
        output_names=list(model.outputs),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert made is not None
    proto = made.model_proto
    for node in proto.graph.node:
        del node.metadata_props[:]  # where in this machine's files it came from
    proto.metadata_props.add(key="classes", value=json.dumps(model.classes))
    return bytes(proto.SerializeToString(deterministic=True))


class _Unit(nn.Module):
    """Rows of length 1."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(features, dim=1)


class _Whole(nn.Module):
    """The network with its preprocessing and postprocessing."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float], none_of_these: bool) -> None:
        super().__init__()
        self.network = network
        self.none_of_these = none_of_these
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """uint8 [n, s, s, 3] -> float32 [n, C], rows sum to 1; and [n]."""
        pixels = images.permute(0, 3, 1, 2).float() / 255
        logits: torch.Tensor = self.network((pixels - self.mean) / self.std)
        if self.none_of_these:
            return logits[:, :-1].softmax(dim=1), logits.softmax(dim=1)[:, -1]
        return logits.softmax(dim=1)


def _program(model: Portable) -> torch.export.ExportedProgram:
    network = copy.deepcopy(model.network).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    example = torch.zeros(2, model.side, model.side, 3, dtype=torch.uint8)
    any_number = {0: torch.export.Dim("n", min=1)}
    whole = _Whole(network, model.mean, model.std, model.none_of_these).eval()
    program = torch.export.export(whole, (example,), dynamic_shapes=(any_number,))
    for node in program.graph.nodes:
        for name in _TRACES:
            node.meta.pop(name, None)
    return program


# building an encoder's network without this package


@dataclass(frozen=True)
class Recipe:
    """Python code that builds an encoder's network with its own library, for loading its part of `weights`.

    package    what is to be installed
    build      lines that make `network`
    features   what gives the features of `pixels`
    prefix     of the names of its weights
    """

    package: str
    build: str
    features: str
    prefix: str


def recipe(name: str, encoder: Encoder) -> Recipe:
    """The recipe of the encoder `name`, as in NEAT_ENCODER."""
    if name.startswith("clip:"):
        model = name.removeprefix("clip:").partition("/")[0]
        quick = any(type(module).__name__ == "QuickGELU" for module in encoder.network.modules())
        build = f'import open_clip\n\nnetwork = open_clip.create_model("{model}", force_quick_gelu={quick}).visual'
        return Recipe("open_clip_torch", build, "network(pixels)", "encoder.tower.")
    if name.startswith("resnet"):
        build = f"import torchvision\n\nnetwork = torchvision.models.{name}()\nnetwork.fc = torch.nn.Identity()"
        return Recipe("torchvision", build, "network(pixels)", "encoder.")
    build = (
        "from efficientnet_lite_pytorch import EfficientNet\n\n"
        f'network = EfficientNet.from_name("{name.replace("_", "-")}", image_size={encoder.input_size})\n'
        "network._fc = torch.nn.Identity()"
    )
    features = "network.extract_features(pixels).mean(dim=(2, 3))"
    return Recipe("efficientnet-lite-pytorch", build, features, "encoder.network.")
