"""Which library computes an encoder's features on a CPU: PyTorch, or OpenVINO, which is faster there."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from neat_backend.errors import EncoderError

if TYPE_CHECKING:
    from neat_backend.models.encoders import Encoder
    from neat_backend.models.openvino_network import OpenVinoNetwork

log = logging.getLogger(__name__)

TORCH, OPENVINO, OPENVINO_BF16 = "torch", "openvino", "openvino-bf16"
PRECISIONS = {OPENVINO: "f32", OPENVINO_BF16: "bf16"}  # as OpenVINO calls them

_LOCK = threading.Lock()  # one conversion at a time, and each once


def with_backend(encoder: Encoder, backend: str, stored: str = "") -> Encoder:
    """PyTorch's encoder, or the same one computed by the `backend` of NEAT_ENCODER_BACKEND, converted once.

    auto: the back end that made the features `stored` (an encoder's key, "" for none), so that they stay in use; else
    OpenVINO on a CPU. PyTorch where that is impossible, which the log says once.

    Raises EncoderError where a back end that is named can't compute this encoder here.
    """
    if not hasattr(encoder, "variants"):  # a stand-in without a network
        return encoder
    wanted = _wanted(encoder, stored) if backend == "auto" else backend
    if wanted == TORCH:
        return encoder
    try:
        return _converted(encoder, wanted)
    except EncoderError as error:
        if backend == "auto":
            return encoder
        raise EncoderError(
            f"NEAT_ENCODER_BACKEND={backend}: {error}; set auto or torch (then images are encoded anew)"
        ) from None


def backend_of(setting: str, compute: str) -> str:
    """The back end for `with_backend`, by NEAT_ENCODER_BACKEND and NEAT_COMPUTE: Ray computes by PyTorch."""
    return TORCH if (setting, compute) == ("auto", "ray") else setting


def key_of_network(key: str) -> str:
    """The key of PyTorch's features by the same network and preprocessing, given any back end's key."""
    return next((key.removesuffix(f"-{one}") for one in PRECISIONS if key.endswith(f"-{one}")), key)


def reason_for_torch(encoder: Encoder) -> str:
    """Why OpenVINO, tried before, does not compute this encoder; "" where it does or was not tried."""
    found = encoder.variants.get(OPENVINO)
    return str(found) if isinstance(found, EncoderError) else ""


def _wanted(encoder: Encoder, stored: str) -> str:
    made_by = {encoder.key: TORCH, **{f"{encoder.key}-{backend}": backend for backend in PRECISIONS}}
    if encoder.device.type != "cpu":
        return TORCH
    return made_by.get(stored, OPENVINO)


def _converted(encoder: Encoder, backend: str) -> Encoder:
    with _LOCK:
        if backend not in encoder.variants:
            encoder.variants[backend] = _convert(encoder, backend)
        made = encoder.variants[backend]
    if isinstance(made, EncoderError):
        raise made
    return made


def _convert(encoder: Encoder, backend: str) -> Encoder | EncoderError:
    if encoder.device.type != "cpu":
        return EncoderError(f"OpenVINO computes on the CPU, and NEAT_DEVICE is {encoder.device}")
    try:
        made = encoder.by(f"{encoder.key}-{backend}", _network(encoder, PRECISIONS[backend]))
    except EncoderError as error:
        log.warning("encoder %s: computed by PyTorch: %s", encoder.key, error)
        return error
    log.info("encoder %s: computed by OpenVINO, features of %s", encoder.key, made.key)
    return made


def _network(encoder: Encoder, precision: str) -> OpenVinoNetwork:
    import torch

    from neat_backend.models.openvino_network import OpenVinoNetwork

    mean, std = (
        torch.tensor(part).view(1, 3, 1, 1) for part in (encoder.preprocessing.mean, encoder.preprocessing.std)
    )
    return OpenVinoNetwork(
        encoder.network,
        mean,
        std,
        encoder.input_size,
        precision=precision,
        threads=torch.get_num_threads(),
        streams=encoder.at_once,
    )
