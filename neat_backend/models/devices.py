"""Which device to compute on, and in which precision. PyTorch is imported at the first question that needs it."""

from __future__ import annotations

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from neat_backend.errors import SettingsError

if TYPE_CHECKING:
    import torch


def device_name(name: str = "auto") -> str:
    """The device of NEAT_DEVICE as `resolve_device` finds it: "cpu", "cuda" or "cuda:N".

    Without PyTorch where that is the CPU by name, or because no driver of a GPU is installed.
    """
    if name == "cpu" or (name == "auto" and not _has_gpu_driver()):
        return "cpu"
    device = resolve_device(name)
    return "cpu" if device.type == "cpu" else str(device)


@cache
def _has_gpu_driver() -> bool:
    """Whether PyTorch could find a GPU: a driver of NVIDIA's or AMD's is installed, or that can't be told."""
    if not sys.platform.startswith("linux") or Path("/dev/kfd").exists():
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def resolve_device(name: str = "auto") -> torch.device:
    """The torch device of NEAT_DEVICE: "auto" is the first GPU where there is one, else the CPU.

    Raises SettingsError for a device that does not exist here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingsError(f"NEAT_DEVICE={name!r}: must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SettingsError(
            f"NEAT_DEVICE={name!r}: PyTorch finds {torch.cuda.device_count()} CUDA devices here; use auto"
        )
    return device


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether a convolution network runs faster in bfloat16 than in float32 on `device`.

    On a CPU it takes AMX, or AMD's AVX512-BF16; Intel's, without AMX, is slower than float32. ResNet-18 on two
    cores, images a second, bfloat16 against float32:

    |                              | training, 32 px | 64 px       | inference, 32 px | 64 px         |
    | Xeon, Sapphire Rapids, AMX   | 143 and 64      | 319 and 149 | 897 and 254      | 979 and 577   |
    | the same with AMX masked     | 55 and 63       | 187 and 202 |                  |               |
    | EPYC with AVX512-BF16, Zen 5 | 197 and 102     | 434 and 334 | 676 and 360      | 2124 and 1125 |

    Decided by the CPU's model and not by a measurement, so that one machine always computes the same. On a GPU: Ampere
    or newer.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    is_amd = str(capabilities.get("cpu_name", "")).startswith("AMD")
    return bool(capabilities.get("amx_bf16")) or (is_amd and bool(capabilities.get("avx512_bf16")))


def compute_on_share(at_once: int) -> None:
    """Limit this thread's computations to its share of the cores: 1 / at_once of them."""
    if at_once > 1:
        import torch
        from threadpoolctl import threadpool_limits

        threads = torch.get_num_threads()  # call this first: it sets a new thread's number
        threadpool_limits(max(1, threads // at_once), user_api="openmp")
