"""What the worker measures is what the web reads, across restarts and damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from neat_backend.store import measures
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.measures import Measures


@pytest.fixture
def arrays(tmp_path: Path) -> ProjectArrays:
    return ProjectArrays(tmp_path, 7)


def taken(arrays: ProjectArrays, *seconds: float) -> None:
    """A worker's life: measures, writes down."""
    worker = Measures(arrays)
    for each in seconds:
        worker.observe(measures.PUBLISH, each)
    worker.save()


def test_nothing_measured_reads_as_nothing(arrays: ProjectArrays) -> None:
    found = measures.read(arrays)
    assert found.found == {"labels": 0, "images": 0, "deleted": 0}
    assert all(timings.counts.sum() == 0 for timings in found.histograms.values())


def test_seconds_fall_into_the_bucket_whose_bound_they_do_not_exceed(arrays: ProjectArrays) -> None:
    taken(arrays, 0.05, 0.1, 0.11, 1000)
    timings = measures.read(arrays).histograms[measures.PUBLISH]
    assert timings.counts.tolist() == [2, 1, *[0] * 7, 1]
    assert timings.sum_seconds == pytest.approx(1000.26)


def test_the_next_worker_counts_on(arrays: ProjectArrays) -> None:
    taken(arrays, 0.2, 0.2)
    taken(arrays, 0.2)
    assert measures.read(arrays).histograms[measures.PUBLISH].counts.sum() == 3


def test_what_was_found_is_kept(arrays: ProjectArrays) -> None:
    worker = Measures(arrays)
    worker.found(measures.LABELS, 2)
    worker.found(measures.LABELS, 3)
    worker.found(measures.DELETED, 0)
    worker.save()
    assert measures.read(arrays).found == {"labels": 5, "images": 0, "deleted": 0}


def test_it_is_written_now_and_then_and_nothing_new_never(arrays: ProjectArrays) -> None:
    now = [100.0]
    worker = Measures(arrays, lambda: now[0])
    worker.save()
    assert arrays.read_snapshot("measures") is None
    for moment, written in ((100.0, 1), (101.0, 1), (100.0 + measures.SAVE_SECONDS, 3)):
        now[0] = moment
        worker.observe(measures.SERVE, 1)
        worker.save()
        assert measures.read(arrays).histograms[measures.SERVE].counts.sum() == written


def test_a_damaged_file_counts_from_zero(arrays: ProjectArrays) -> None:
    taken(arrays, 0.2)
    (path,) = arrays.root.rglob("measures*")
    path.write_bytes(path.read_bytes()[:-40])
    taken(arrays, 0.2, 0.2)
    assert measures.read(arrays).histograms[measures.PUBLISH].counts.sum() == 2


def test_counts_of_other_bounds_are_not_mixed_in(arrays: ProjectArrays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(measures.BOUNDS_SECONDS, measures.PUBLISH, (1.0, 2.0))
    taken(arrays, 0.2)
    monkeypatch.undo()
    assert measures.read(arrays).histograms[measures.PUBLISH].counts.sum() == 0
