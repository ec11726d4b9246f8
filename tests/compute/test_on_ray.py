"""What Ray computes is what is computed here; what goes wrong is said in plain words."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neat_backend.compute import LocalCompute, embedding, open_compute
from neat_backend.compute.cluster import Cluster
from neat_backend.compute.embedding import Source, Target
from neat_backend.demo.ports import free_port
from neat_backend.errors import ComputeError, ImageError, LabelStudioUnavailable
from neat_backend.labelstudio.images import thumbnail
from neat_backend.store import kinds
from neat_backend.store.arrays import ProjectArrays
from neat_backend.worker.steps.training import TrainingJob, TrainingProcess, train_round
from tests.waiting import HANGS
from tests.worker.test_training import SIDE, digits, stored, wait_for, with_labels


def picture(away: frozenset[int], damaged: frozenset[int], task: int, ref: str | None) -> Image.Image:
    if task in away:
        raise LabelStudioUnavailable("Label Studio does not answer")
    if task in damaged:
        raise ImageError(f"{ref} is damaged", transient=True)
    return Image.fromarray(np.random.default_rng(task).integers(0, 256, (40, 48, 3), dtype=np.uint8))


class Run:
    """Pictures embedded into a folder by one way of computing."""

    def __init__(self, folder: Path, compute: Any, encoder: Any) -> None:
        self.arrays, self.compute, self.encoder = ProjectArrays(folder, 7), compute, encoder
        self.failed: dict[int, ImageError] = {}
        self.reported: list[int] = []

    def __call__(self, tasks: range, away: frozenset[int] = frozenset()) -> embedding.Progress:
        progress: embedding.Progress = self.compute.embed(
            [(task, f"/{task}.png") for task in tasks],
            self.encoder,
            Source(partial(picture, away, frozenset({12})), thumbnail, 16, downloads=1),
            Target(
                self.arrays,
                on_stored=lambda stored: self.reported.extend(stored.tasks.tolist()),
                on_failed=self.failed.__setitem__,
            ),
            batch_size=4,
        )
        return progress

    def features(self) -> Any:
        return self.arrays.load(kinds.features_kind(self.encoder.key))


def test_features_are_those_of_this_process_and_a_run_goes_on_where_it_ended(cluster: Cluster, tmp_path: Path) -> None:
    from neat_backend.compute.on_ray import RayCompute
    from neat_backend.models.encoders import build_encoder

    encoder = build_encoder("efficientnet_lite0", device="cpu")
    here = Run(tmp_path / "here", LocalCompute(), encoder)
    there = Run(tmp_path / "there", RayCompute(cluster, device="cpu", workers=1), encoder)
    tasks = range(1, 13)  # the damaged one is the last: batches are the same either way
    here(tasks)
    with pytest.raises(LabelStudioUnavailable, match="does not answer"):
        there(tasks, away=frozenset({9}))
    kept = set(there.features().ids.tolist())
    assert kept == set(there.reported)
    assert not kept & {9, 10, 11, 12}
    progress = there(range(len(kept) + 1, 13))
    assert (progress.done, progress.failed) == (11 - len(kept), 1)
    ours, theirs = here.features(), there.features()
    for name in ("ids", "keys"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    # Ray gives a process its own number of threads, and another number sums in another order.
    np.testing.assert_allclose(ours.values, theirs.values, rtol=0, atol=1e-6)  # of vectors of length 1
    np.testing.assert_array_equal(here.arrays.load("images/16").values, there.arrays.load("images/16").values)
    assert there.failed[12].transient
    assert str(there.failed[12]) == "/12.png is damaged"


def test_a_round_that_ray_trains_gives_the_probabilities_of_one_trained_here(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ids, images, codes = digits(90)
    found = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for kind, address in (("local", ""), ("ray", cluster.address)):
            job = TrainingJob(str(tmp_path / kind), 7, 3, ("a", "b", "c"), SIDE, 1, 0, 0.2, "cpu", kind, address)
            arrays = stored(job, ids, images)
            folder = with_labels(tmp_path / f"job-{kind}", ids[:40], codes[:40])
            if kind == "local":
                result = train_round(job, folder)
            else:
                process = TrainingProcess(job, folder)
                process.start(ids[:40], codes[:40])
                result = wait_for(process)
                progress = process.progress()
                assert progress is not None
                assert (progress["epoch"], progress["epochs"]) == (1, 1)
            found.append((replace(result, seconds=0, images_per_second=0), arrays.load("probabilities/000003").values))
    finally:
        torch.set_num_threads(threads)
    assert found[0][0] == found[1][0]
    assert found[0][1].shape == (90, 3)
    np.testing.assert_array_equal(found[0][1], found[1][1])


class TestWhatGoesWrong:
    def test_an_address_where_nothing_answers_is_told_at_once(self) -> None:
        with pytest.raises(ComputeError, match=r"RAY_ADDRESS=127.0.0.1:\d+: nothing answers there"):
            open_compute("ray", f"127.0.0.1:{free_port()}")

    def test_an_address_that_is_none_is_told(self) -> None:
        with pytest.raises(ComputeError, match="must be host:port"):
            open_compute("ray", "head:port")

    def test_a_missing_ray_is_told_with_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ComputeError, match=r"pip install 'ray\[data\]'"):
            open_compute("ray")


def test_ray_is_not_imported_unless_it_is_asked_for() -> None:
    code = "import sys, neat_backend.worker.worker; from neat_backend.compute import open_compute; open_compute()"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('ray' in sys.modules)"],
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=True,
    )
    assert done.stdout.strip() == "False"
