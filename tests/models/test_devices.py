from __future__ import annotations

import pytest
import torch

from neat_backend.errors import SettingsError
from neat_backend.models.devices import bfloat16_is_faster, resolve_device


def test_auto_is_the_gpu_where_there_is_one():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "mps", "", "cuda:99"])
def test_a_device_that_is_not_there_is_refused_by_its_setting(name):
    with pytest.raises(SettingsError, match="NEAT_DEVICE"):
        resolve_device(name)


@pytest.mark.parametrize(
    ("capabilities", "faster"),
    [
        ({"amx_bf16": True, "avx512_bf16": True, "cpu_name": "Intel(R) Xeon(R) Platinum 8481C"}, True),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "Intel(R) Xeon(R) Platinum 8380H"}, False),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "AMD EPYC"}, True),
        ({"amx_bf16": False, "avx512_bf16": False, "cpu_name": "AMD EPYC"}, False),
        ({}, False),
    ],
)
def test_bfloat16_on_a_cpu_needs_amx_or_amds_own(
    capabilities: dict[str, object], faster: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert bfloat16_is_faster(torch.device("cpu")) is faster
