"""A PyTorch network converted for OpenVINO, which runs on CPUs alone.

Importing OpenVINO loads `openvino_telemetry`, which sends usage data to its makers unless the user has refused;
this module keeps that package from being imported.
"""

from __future__ import annotations

import queue
import sys
import warnings
from collections import deque
from typing import Any

import numpy as np
import torch
from torch import nn

from neat_backend.errors import EncoderError

BATCH = 8  # images of one inference request: more are no faster, and fewer share the streams worse
F32, BF16 = "f32", "bf16"  # precisions, as OpenVINO calls them
CLOSE = {F32: 1e-3, BF16: 0.1}  # of the largest value: how far features may be from PyTorch's in float32


class _Normalised(nn.Module):
    """The network with the normalisation of its pixels: uint8 [n, 3, s, s] -> [n, dim]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: nn.Module, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.network((images.float() / 255 - self.mean) / self.std)
        return features


class OpenVinoNetwork:
    """A converted network: uint8 images [n, 3, s, s] -> features, float32 [n, dim]. Any thread may call it.

    Its threads are OpenVINO's own, `threads` in all, in `streams` that each compute a part of the images.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: torch.Tensor,
        std: torch.Tensor,
        side: int,
        *,
        precision: str = F32,
        threads: int = 1,
        streams: int = 1,
    ) -> None:
        """mean, std: of pixels in [0, 1], [1, 3, 1, 1]. precision: f32 or bf16.

        Raises EncoderError where OpenVINO is missing, the CPU can't compute in `precision`, or the network can't be
        converted: it is refused too if its features are not PyTorch's.
        """
        openvino = _openvino()
        whole = _Normalised(network, mean, std).eval()
        try:
            core = openvino.Core()
            if precision == BF16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                raise EncoderError("this CPU has no bfloat16")
            how = {
                "INFERENCE_PRECISION_HINT": precision,
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": streams,
                "ENABLE_CPU_PINNING": False,  # other processes use the cores too
            }
            compiled = core.compile_model(_converted(openvino, whole, side), "CPU", how)
            self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
            for _ in range(streams):
                self._idle.put(compiled.create_infer_request())
            self._compare(whole, side, CLOSE[precision])
        except EncoderError:
            raise
        except Exception as error:  # of a plug-in's network it may be any
            raise EncoderError(f"OpenVINO can't run the network: {_first_line(error)}") from error

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 3, s, s], n > 0 -> float32 [n, dim]."""
        done: list[Any] = []
        running: deque[Any] = deque()

        def finished() -> Any:
            request = running.popleft()
            try:
                request.wait()
                done.append(np.array(request.get_output_tensor(0).data))
            except BaseException:
                self._idle.put(request)
                raise
            return request

        def free() -> Any:
            try:
                return self._idle.get_nowait()
            except queue.Empty:  # who holds none may wait: others give theirs back
                return finished() if running else self._idle.get()

        try:
            for part in images.contiguous().split(BATCH):
                request = free()
                running.append(request)
                request.start_async({0: part.numpy()})
            while running:
                self._idle.put(finished())
        finally:
            for request in running:  # after an error alone
                request.wait()
                self._idle.put(request)
        return torch.from_numpy(np.concatenate(done))

    @torch.inference_mode()
    def _compare(self, network: nn.Module, side: int, close: float) -> None:
        """Raise EncoderError for features that are not PyTorch's, of other images and another number than traced."""
        noise = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8, generator=noise)
        given, expected = self(images), network(images)
        if given.shape != expected.shape:
            raise EncoderError(f"OpenVINO gives features {tuple(given.shape)}, PyTorch {tuple(expected.shape)}")
        difference = float((given - expected).abs().max() / expected.abs().max())
        if not difference <= close:  # NaN neither
            raise EncoderError(f"OpenVINO gives other features than PyTorch: by {difference:.1g} of the largest value")


def _openvino() -> Any:
    """The library, without its telemetry."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise EncoderError(f"OpenVINO can't be imported: {_first_line(error)}") from None
    return openvino


@torch.inference_mode()
def _converted(openvino: Any, network: nn.Module, side: int) -> Any:
    """The network as OpenVINO's model, for any number of images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, but OpenVINO's own way takes several times as long
        traced = torch.jit.trace(network, torch.zeros(2, 3, side, side, dtype=torch.uint8), check_trace=False)
        return openvino.convert_model(traced, input=[([-1, 3, side, side], openvino.Type.u8)])


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
