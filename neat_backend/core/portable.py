"""A trained classifier as one file that is used without this package: torch.export's .pt2, or ONNX.

A .pt2 is for PyTorch: TorchScript, which such files used to be, is deprecated; this is its successor, and needs no
package of its own. ONNX is for everything else, and needs onnxscript to be written.
"""

from __future__ import annotations

import copy
import io
import json

import torch
from torch import nn

from neat_backend.core.classifier import MEAN, STD, Classifier

VERSION = str(torch.__version__)  # of the PyTorch that such a file is written by
OPSET = 18  # of ONNX: what readers of several years ago know

_TRACES = (
    "stack_trace",
    "from_node",
    "source_fn_stack",
    "torch_fn",
)  # of where a node came from: paths of this machine


class _Whole(nn.Module):
    """The network with what is done before and after it."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", MEAN.clone())
        self.register_buffer("std", STD.clone())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [n, s, s, 3] -> float32 [n, C], rows sum to 1."""
        pixels = images.permute(0, 3, 1, 2).float() / 255
        logits: torch.Tensor = self.network((pixels - self.mean) / self.std)
        return logits.softmax(dim=1)


def pt2(classifier: Classifier) -> bytes:
    """A program of `torch.export`: uint8 [n, s, s, 3] -> float32 [n, C], normalisation and softmax included.

    It computes in float32, on any device; probabilities that were computed in bfloat16 differ in the third digit.
    The same classifier and PyTorch give the same bytes.
    """
    file = io.BytesIO()
    torch.export.save(_program(classifier), file)
    return file.getvalue()


def onnx(classifier: Classifier) -> bytes:
    """The same as an ONNX model of opset `OPSET`, from `images` to `probabilities`; the weights are in it.

    Its metadata has the classes, as a list in JSON. The same classifier, PyTorch and onnxscript give the same bytes.
    Raises ImportError where onnxscript is not installed.
    """
    made = torch.onnx.export(
        _program(classifier), dynamic_shapes=({0: "n"},), input_names=["images"], output_names=["probabilities"],
        opset_version=OPSET, dynamo=True, verbose=False,
    )  # fmt: skip
    assert made is not None
    model = made.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # where in this machine's files it came from
    model.metadata_props.add(key="classes", value=json.dumps(classifier.classes))
    return bytes(model.SerializeToString(deterministic=True))


def _program(classifier: Classifier) -> torch.export.ExportedProgram:
    network = copy.deepcopy(classifier.network).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    example = torch.zeros(2, classifier.side, classifier.side, 3, dtype=torch.uint8)
    any_number = {0: torch.export.Dim("n", min=1)}
    program = torch.export.export(_Whole(network).eval(), (example,), dynamic_shapes=(any_number,))
    for node in program.graph.nodes:
        for name in _TRACES:
            node.meta.pop(name, None)
    return program
