"""The two files that the web answers from, and how an older ranking is read with a newer head."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neat_backend.records import Ranked
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.snapshots import Head, read_head, read_ranking, row, write_head, write_ranking

CLASSES = ("cat", "dog")


@pytest.fixture
def arrays(tmp_path: Path) -> ProjectArrays:
    return ProjectArrays(tmp_path, 1)


def ranked(task: int, rank: int = 0, priority: float = 0.9, predicted: str | None = "dog") -> Ranked:
    return Ranked(task, rank, priority, 1.5, 3, True, predicted)


def head(*tasks: Ranked, classes: tuple[str, ...] = CLASSES, left: tuple[int, ...] = ()) -> Head:
    return Head(tasks, classes, 2, 1, 40, 17, "neat-r000004", left)


def ranking(*ids: int) -> dict[str, Any]:
    """Tasks of low priority, of the first class every second one."""
    n = len(ids)
    return {
        "ids": np.array(ids, np.int64),
        "priority": np.linspace(0.1, 0.2, n),
        "inconsistency": np.linspace(1, 2, n),
        "known_neighbours": np.zeros(n, np.int16),
        "candidate": np.zeros(n, np.bool_),
        "predicted": np.arange(n, dtype=np.int16) % 2 - np.int16(1),
        "known_chance": np.ones(n, np.float32),
        "queue": np.full(n, -1, np.int16),
        "place": np.zeros(n, np.int64),
        "classes": CLASSES,
    }


def priorities(found: dict[str, Any] | None) -> dict[int, float]:
    assert found is not None
    return dict(zip(found["ids"].tolist(), found["priority"].tolist(), strict=True))


@pytest.mark.parametrize(
    "written",
    [
        head(ranked(4), ranked(2, 1, 0.5, None), left=(3, 9)),
        head(replace(ranked(4), drawn=True), ranked(2, 1, 0.5)),
        head(),
        head(classes=()),
        Head((), (), 0, 0, 0, 0),
    ],
)
def test_a_head_is_read_as_it_was_written(arrays: ProjectArrays, written: Head) -> None:
    write_head(arrays, written)
    assert read_head(arrays) == written


def test_a_head_tells_the_vote_and_the_ranking_does_not(arrays: ProjectArrays) -> None:
    voted = replace(ranked(2, priority=0.15), vote="cat", votes=7)
    write_head(arrays, head(voted))
    write_ranking(arrays, ranking(1, 2, 5))
    found = read_head(arrays)
    assert found is not None
    assert found.tasks == (voted,)
    whole = read_ranking(arrays, found)
    assert whole is not None
    assert row(whole, 1, 0) == ranked(2, priority=0.15)


def test_a_ranking_is_read_as_it_was_written(arrays: ProjectArrays) -> None:
    written = ranking(1, 2, 5)
    write_ranking(arrays, written)
    found = read_ranking(arrays, None)
    assert found is not None
    for name, values in written.items():
        np.testing.assert_array_equal(found[name], values)
    assert row(found, 1, 7) == Ranked(2, 7, 0.15000000000000002, 1.5, 0, False, "cat")


def test_the_heads_numbers_are_the_newer_ones(arrays: ProjectArrays) -> None:
    write_ranking(arrays, ranking(1, 2, 5))
    found = read_ranking(arrays, head(ranked(5), ranked(1, 1, 0.8)))
    assert priorities(found) == {1: 0.8, 2: 0.15000000000000002, 5: 0.9}
    assert found is not None
    assert row(found, 2, 0) == ranked(5)


def test_tasks_that_are_new_are_there_and_those_that_left_are_not(arrays: ProjectArrays) -> None:
    write_ranking(arrays, ranking(3, 4, 6, 8))
    found = read_ranking(
        arrays, head(ranked(9), ranked(5, 1, 0.8), ranked(1, 2, 0.7), ranked(6, 3, 0.6), left=(3, 7, 8))
    )
    assert priorities(found) == {1: 0.7, 4: pytest.approx(0.1333333), 5: 0.8, 6: 0.6, 9: 0.9}
    assert found is not None
    assert found["ids"].tolist() == [1, 4, 5, 6, 9]
    assert {len(found[name]) for name in ranking() if name != "classes"} == {5}


def test_classes_that_have_changed_since_are_told_by_their_names(arrays: ProjectArrays) -> None:
    write_ranking(arrays, ranking(1, 2, 3, 4))  # none, cat, none, cat
    found = read_ranking(arrays, head(ranked(3, predicted="owl"), classes=("owl", "cat")))
    assert found is not None
    assert [row(found, at, at).predicted for at in range(4)] == [None, "cat", "owl", "cat"]
    found = read_ranking(arrays, head(classes=()))
    assert found is not None
    assert [row(found, at, at).predicted for at in range(4)] == [None] * 4


def test_a_head_alone_is_a_ranking_too_and_nothing_is_none(arrays: ProjectArrays) -> None:
    assert read_head(arrays) is None
    assert read_ranking(arrays, None) is None
    found = read_ranking(arrays, head(ranked(5), ranked(1, 1, 0.8)))
    assert priorities(found) == {1: 0.8, 5: 0.9}


@pytest.mark.parametrize("name", ["head", "ranking"])
def test_a_damaged_file_counts_as_absent(arrays: ProjectArrays, name: str) -> None:
    write_head(arrays, head(ranked(5)))
    write_ranking(arrays, ranking(1, 5))
    path = arrays.root / "snapshots" / f"{name}.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    found = read_head(arrays)
    assert (found is None) == (name == "head")
    assert priorities(read_ranking(arrays, found)) == ({1: 0.1, 5: 0.2} if name == "head" else {5: 0.9})
