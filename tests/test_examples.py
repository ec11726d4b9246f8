"""The examples that start from an export: run as a reader would, on an export of labelled pictures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from neat_backend.models.grid import to_grid
from neat_backend.store import snapshots
from neat_backend.store.arrays import ProjectArrays, image_key
from tests.examples import EXAMPLES, ROOT
from tests.exports.labelled import PROJECT, Labelled
from tests.waiting import HANGS

TASKS = np.arange(1, 41)


@pytest.fixture
def labelled(tmp_path: Path) -> Iterator[Labelled]:
    """20 dogs and 10 cats, whose features lie in two clusters; one cat's lie among the dogs'."""
    made = Labelled(tmp_path)
    centres = np.random.default_rng(0).normal(size=(2, 8))
    is_cat = (TASKS > 20) & (TASKS != 25)
    features = centres[is_cat.astype(int)] + 0.2 * np.random.default_rng(1).normal(size=(40, 8))
    arrays = ProjectArrays(made.settings.data_dir, PROJECT)
    keys = np.array([image_key(f"/data/upload/{task}.png") for task in TASKS])
    arrays.append("features/fake", TASKS.astype(np.int64), keys, to_grid(features))
    snapshots.write_head(arrays, snapshots.Head((), ("dog", "cat"), 0, 0, 0, 0, features="features/fake"))
    yield made
    made.database.dispose()


def run(folder: Path, *words: str, **variables: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), **variables}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_network_is_trained_on_what_datasets_reads(labelled: Labelled, tmp_path: Path) -> None:
    labelled.export(tmp_path / "dataset-hf", format="hf", split=(0.6, 0.2, 0.2))
    program = str(EXAMPLES / "train_on_export.py")
    said = run(tmp_path, program, "dataset-hf", "--epochs", "2", "--side", "32", "--out", "network.pt")
    assert said.count("accuracy on val") == 2
    assert re.search(r"accuracy on test [01]\.\d+ of 6 images, classes cat, dog$", said.strip())
    saved = torch.load(tmp_path / "network.pt", weights_only=True)
    assert saved["classes"] == ["cat", "dog"]
    assert saved["state_dict"]["fc.weight"].shape == (2, 512)


def test_the_notebook_finds_the_label_that_does_not_fit_and_draws_a_map(labelled: Labelled, tmp_path: Path) -> None:
    labelled.export(tmp_path / "labels.parquet", format="parquet", features="parquet")
    cells = json.loads((EXAMPLES / "linear_probe.ipynb").read_text())["cells"]
    assert not [cell for cell in cells if cell.get("outputs")], "the notebook is kept without outputs"
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    said = run(tmp_path, "-c", code, MPLBACKEND="agg")
    assert "30 labels, 8 features; {'dog': 20, 'cat': 10}" in said
    assert "accuracy 0.967" in said
    lines = [line.split() for line in said.splitlines()]
    assert lines[lines.index(["task", "label", "chance", "image"]) + 1][:2] == ["25", "cat"]
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
