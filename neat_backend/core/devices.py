"""Which device to compute on, and in which precision."""

from __future__ import annotations

import torch

from neat_backend.errors import SettingsError


def resolve_device(name: str = "auto") -> torch.device:
    """The torch device of NEAT_DEVICE: "auto" is the first GPU where there is one, else the CPU.

    Raises SettingsError for a device that does not exist here.
    """
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

    On a CPU only AMX makes it so. ResNet-18, two cores of a Sapphire Rapids Xeon, images a second, bfloat16
    against float32: training 143 and 64 (32 px), 319 and 149 (64 px), inference 897 and 254, 979 and 577.
    With AMX masked and AVX512-BF16 left, training fell to 55 and 63, 187 and 202. On a GPU: Ampere or newer.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


def compute_on_share(at_once: int) -> None:
    """Let this thread alone, of all in the process, compute on its share of the cores: one of so many at once."""
    if at_once > 1:
        from threadpoolctl import threadpool_limits

        threads = torch.get_num_threads()  # asked first: it sets a new thread's number
        threadpool_limits(max(1, threads // at_once), user_api="openmp")
