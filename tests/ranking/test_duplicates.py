"""Groups of near-duplicates: worked by hand, against a plain loop, and the same however they came."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neat_backend.models.grid import to_grid
from neat_backend.ranking import duplicates
from neat_backend.ranking.duplicates import NearDuplicates
from tests.ranking.test_neighbors import some_features


class Pool:
    """Features by task, and the groups that were found among them."""

    def __init__(self, similarity: float, dim: int) -> None:
        self.features: dict[int, NDArray[np.float32]] = {}
        self.found = NearDuplicates(similarity, np.eye(dim, dtype=np.float32), self.of)

    def of(self, tasks: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.stack([self.features[task] for task in tasks.tolist()])

    def add(self, features: dict[int, NDArray[np.float32]]) -> None:
        self.features |= features
        if features:
            self.found.add(np.array(list(features)), np.stack(list(features.values())))

    def groups(self) -> dict[int, int]:
        found = self.found.groups()
        return dict(zip(found.tasks.tolist(), found.groups.tolist(), strict=True))


def angles(*degrees: float) -> NDArray[np.float32]:
    turned = np.deg2rad(degrees)
    return to_grid(np.stack([np.cos(turned), np.sin(turned)], axis=1))


def test_a_group_is_what_is_near_its_first_task_and_no_chain() -> None:
    """Cosine 0.98 is 11.5 degrees: 0 and 10 are near, 18 is near 10 but not near 0."""
    pool = Pool(0.98, 2)
    pool.add(dict(zip((1, 2, 3, 4, 7), angles(0, 10, 18, 90, 91), strict=True)))
    assert pool.groups() == {1: 1, 2: 1, 4: 4, 7: 4}
    assert pool.found.groups().count == 2


def test_the_nearest_first_task_counts() -> None:
    pool = Pool(0.98, 2)
    pool.add(dict(zip((1, 2, 3), angles(0, 16, 10), strict=True)))
    assert pool.groups() == {2: 2, 3: 2}


def plain(features: dict[int, NDArray[np.float32]], similarity: float) -> dict[int, int]:
    """The definition as a loop."""
    leaders: list[int] = []
    group: dict[int, int] = {}
    for task, one in sorted(features.items()):
        near = [(np.float32(one.astype(float) @ features[other].astype(float)), -other) for other in leaders]
        best, other = max(near, default=(np.float32(-1), 0))
        group[task] = -other if best >= np.float32(similarity) else task
        if group[task] == task:
            leaders.append(task)
    of = list(group.values())
    return {task: leader for task, leader in group.items() if of.count(leader) > 1}


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.integers(0, 2**32 - 1)), max_size=6))
def test_however_they_come_and_go_the_groups_are_those_of_a_rebuild(actions) -> None:
    pool = Pool(0.8, 4)
    next_id = 1
    for adds, size, seed in actions:
        rng = np.random.default_rng(seed)
        if adds:
            values = some_features(rng, size, 4, copies=0.3)
            pool.add(dict(zip(range(next_id, next_id + size), values, strict=True)))
            next_id += size
        else:
            gone = rng.permutation(list(pool.features))[:size].tolist()
            for task in gone:
                del pool.features[task]
            if not pool.found.remove(gone):  # a task that others were compared with
                again = Pool(0.8, 4)
                again.add(pool.features)
                pool = again
    assert pool.groups() == plain(pool.features, 0.8)
    assert len(pool.found) == len(pool.features)


@pytest.mark.parametrize("reached", [64, 300])
def test_leaders_are_found_in_whichever_block_they_lie(monkeypatch: pytest.MonkeyPatch, reached: int) -> None:
    monkeypatch.setattr(duplicates, "LEADERS_AT_ONCE", 7)
    monkeypatch.setattr(duplicates, "AT_ONCE", 16)
    monkeypatch.setattr(duplicates, "REACHED", reached)
    pool = Pool(0.9, 100)
    pool.add(dict(enumerate(some_features(np.random.default_rng(0), 300, 100, copies=0.4), 1)))
    assert pool.found.groups().count > 20
    assert pool.groups() == plain(pool.features, 0.9)


def test_only_the_leaders_with_the_highest_bounds_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 leaders in reach, in blocks of 7, the nearest three; all lie along the axes, so bounds are similarities."""
    monkeypatch.setattr(duplicates, "LEADERS_AT_ONCE", 7)
    monkeypatch.setattr(duplicates, "REACHED", 3)
    pool = Pool(0.5, 50)
    leaders = np.eye(40, 50, dtype=np.float32)
    pool.found._axes = np.eye(50, 50)
    pool.add(dict(enumerate(leaders, 1)))
    pool.found.similarity = np.float32(0.01)
    close = to_grid((np.arange(50, 0, -1)[None] * np.r_[np.ones(40), np.zeros(10)] / 300).astype(np.float32))
    rows, places = pool.found._within_reach(pool.found._reduced(close))
    assert rows.tolist() == [0, 0, 0]
    assert places.tolist() == [0, 1, 2]
