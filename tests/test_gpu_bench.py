"""`python -m benchmarks gpu`, tried in small on the CPU: what it keeps, and what it does without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import SHARES, Part
from benchmarks.gpu_parts import PARTS
from tests.waiting import HANGS

ROOT = Path(__file__).parents[1]
MISSING = ("typer", "click", "rich", "pydantic", "numba", "llvmlite", "faiss", "open_clip", "timm", "sqlalchemy")
BLOCK = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {MISSING}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measured(name: str, folder: Path, seconds: float = 3600) -> dict[str, Any]:
    gpu._one(name, folder, small=True, seconds=seconds, device="cpu")
    return kept(folder / f"gpu-{name}.json")


def kept(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_every_part_has_a_share_of_the_time_and_an_aim() -> None:
    assert SHARES.keys() == PARTS.keys() == gpu.AIMS.keys()
    assert sum(SHARES.values()) == 100


def test_neighbours_are_filtered_without_missing_one(tmp_path: Path) -> None:
    found = measured("rerank", tmp_path)
    assert found["status"] == "done"
    only = found["filter_600"]
    assert only["pairs_missed"] == 0
    assert only["pairs_found"] >= only["pairs_needed"] > 0
    assert only["batch_over_product"] == pytest.approx(only["batch_ms"] / only["half_matrix_product_ms"])
    assert found["engine_600"]["equal_tasks"] == found["engine_600"]["compared_tasks"] > 0


def test_searches_are_compared_with_the_exact_one(tmp_path: Path) -> None:
    found = measured("faiss", tmp_path)
    assert found["faiss"]["on"] == "CPU"
    assert found["faiss"]["same_neighbours"] == found["torch_single"]["same_neighbours"] == 1


def test_an_encoder_is_timed_beside_its_bare_network(tmp_path: Path) -> None:
    found = measured("encode", tmp_path)
    for name in ("clip", "efficientnet_lite0"):
        each = found[name]
        best = each["bare_images_per_second"][str(each["bare_best_batch"])]
        assert best == max(each["bare_images_per_second"].values())
        assert each["ours_over_bare"] == pytest.approx(each["ours_images_per_second"] / best)
        assert each["least_cosine_with_single_precision"] > 0.9999
    assert found["from_files"]["images"] == 8


def test_training_is_timed_beside_the_plain_loop(tmp_path: Path) -> None:
    found = measured("train", tmp_path)
    speed = found["speed_8"]
    assert speed["times_plain"] == pytest.approx(speed["ours_images_per_second"] / speed["plain_images_per_second"])
    assert len(found["accuracy_8"]["ours_accuracy"]) == len(found["accuracy_8"]["plain_accuracy"]) == 1


def test_the_papers_experiment_is_done(tmp_path: Path) -> None:
    found = measured("paper", tmp_path)
    assert (found["experiment"]["rounds"], found["experiment"]["images"]) == (2, 200)
    assert "trainings" not in found


def test_what_was_measured_before_an_error_is_kept(tmp_path: Path) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: out of memory\nmore lines")

    part = Part("train", tmp_path / "one.json", small=True, seconds=3600, device="cpu")
    part.note({"first": 1})
    part.try_to_note("second", fail)
    part.try_to_note("third", lambda: 3)
    part.try_to_note("fourth", fail, least_seconds=7200)
    found = kept(tmp_path / "one.json")
    assert (found["first"], found["third"], found["status"]) == (1, 3, "cut")
    assert found["second"] == "failed: RuntimeError: CUDA error: out of memory"
    assert found["fourth"].startswith("skipped: ")


def test_a_part_that_ends_its_process_does_not_end_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "python"
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "*'--one rerank'*) kill -9 $$;;\n"
        f"*'--one faiss'*) echo '{{\"k\": 10}}' > {tmp_path}/gpu-faiss.json; sleep 1000;;\n"
        f'*) echo \'{{"status": "done"}}\' > {tmp_path}/gpu-train.json;;\n'
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    gpu.gpu("rerank,faiss,train", True, 0.1, str(tmp_path))
    parts = kept(tmp_path / "gpu.json")["parts"]
    assert parts["rerank"]["status"] == "ended with status -9"
    assert parts["faiss"]["k"] == 10
    assert parts["faiss"]["status"].startswith("cut after ")
    assert parts["train"]["status"] == "done"
    assert str(tmp_path / "gpu.json") in capfd.readouterr().out


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="some of machine, rerank"):
        gpu.gpu("rank", out=str(tmp_path))


def test_it_runs_where_libraries_are_missing_and_says_which(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OUT": str(out), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--minutes", "60", "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=10 * HANGS)
    assert done.returncode == 0, done.stderr
    parts = kept(out / "gpu.json")["parts"]
    assert list(parts) == list(SHARES)
    assert {part["status"] for part in parts.values()} == {"done"}
    for name in ("numba", "faiss", "open_clip"):
        assert parts["machine"][name] == f"skipped: No module named '{name}'"
    assert parts["rerank"]["filter_600"]["pairs_missed"] == 0
    assert parts["rerank"]["engine_600"].startswith("skipped: No module named ")
    assert parts["faiss"]["faiss"] == "skipped: No module named 'faiss'"
    assert parts["faiss"]["torch_single"]["same_neighbours"] == 1
    assert parts["encode"]["clip"]["ours_over_bare"] > 0
    assert parts["train"]["speed_8"]["times_plain"] > 0
    assert parts["paper"]["experiment"].startswith("skipped: No module named ")
    assert (parts["paper"]["trainings"]["rounds"], parts["paper"]["trainings"]["labelled_at_last"]) == (2, 22)
    assert [file.name for file in out.iterdir()] == ["gpu.json"]
