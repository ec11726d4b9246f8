"""Ranking on a CPU needs neither PyTorch nor FAISS, which take several hundred MB of memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

from neat_backend.models.devices import device_name
from tests.waiting import HANGS

RANK = """
import sys
import numpy as np
from neat_backend.models.grid import to_grid
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.method import Method
from neat_backend.records import Label

engine = Engine(64, ("a", "b"), Method(k=3, batch_size=20), device="cpu")
engine.add_tasks(range(5000), to_grid(np.random.default_rng(0).normal(size=(5000, 64))))
for tasks in (range(100), [100], range(101, 130), range(130, 500)):  # all ways to offer labels
    engine.set_labels([Label(task, "ab"[task % 2]) for task in tasks])
engine.set_labels([Label(task) for task in range(50)])
engine.remove_tasks(range(300, 310))
assert len(engine.head(40)) == 40
assert engine._table.planes._sketch is not None
sys.exit(bool({"torch", "faiss"} & set(sys.modules)))
"""


def test_an_engine_on_the_cpu_imports_neither() -> None:
    assert subprocess.run([sys.executable, "-c", RANK], timeout=HANGS).returncode == 0


def test_the_cpu_is_named_without_asking_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neat_backend.models.devices.resolve_device", None)
    assert device_name("cpu") == "cpu"
    monkeypatch.setattr("neat_backend.models.devices._has_gpu_driver", lambda: False)
    assert device_name("auto") == "cpu"
