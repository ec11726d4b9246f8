"""Near-duplicates of a live pool: found beside the labels, kept for the next process, shown to people."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neat_backend.models.grid import to_grid
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.method import Method
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.service import similar
from neat_backend.settings import Settings
from neat_backend.store.arrays import ProjectArrays
from neat_backend.worker.steps import duplicate_groups
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.duplicate_groups import Duplicates

KIND = "features/test"
NONE: Any = None


@pytest.fixture
def arrays(tmp_path: Path) -> ProjectArrays:
    return ProjectArrays(tmp_path, 7)


def filled(n: int = 6) -> Engine:
    """Tasks 1 and 2 are alike, 3 and 4, …"""
    engine = Engine(8, ("dog",), Method(batch_size=2, skip_duplicates=True))
    engine.add_tasks(range(1, n + 1), to_grid(np.eye(8)[(np.arange(n) // 2) % 8]))
    return engine


def step_of(
    arrays: ProjectArrays, engine: Engine, settled: Callable[[], bool] = lambda: True, similarity: float = 0.9
) -> Duplicates:
    settings = Settings.from_env({}, duplicate_similarity=similarity, skip_duplicates=True)
    return Duplicates(Context(7, settings, NONE, arrays, NONE), SharedEngine(engine), KIND, settled)


def groups(arrays: ProjectArrays) -> list[tuple[int, int]]:
    found = similar.groups(arrays)
    return list(zip(found.tasks.tolist(), found.groups.tolist(), strict=True))


def test_they_are_found_a_piece_at_a_time_and_only_once(arrays: ProjectArrays, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicate_groups, "PIECE", 4)
    engine = filled()
    step = step_of(arrays, engine)
    assert [step.step() for _ in range(3)] == [False, True, False]
    assert groups(arrays) == [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5)]
    assert {(task + 1) // 2 for task in engine.head(3)} == {1, 2, 3}
    counts = similar.near_duplicates(arrays)
    assert (counts["tasks"], counts["groups"]) == (6, 3)
    assert counts["said"].startswith("6 images are near-duplicates, in 3 groups; one of each")


def test_they_follow_tasks_that_come_go_and_change(arrays: ProjectArrays) -> None:
    engine = filled()
    step = step_of(arrays, engine)
    assert step.step()
    engine.add_tasks([7], to_grid(np.eye(8)[[2]]))
    engine.remove_tasks([3])
    engine.add_tasks([2], to_grid(np.eye(8)[[7]]))
    assert step.step()
    assert groups(arrays) == [(5, 5), (6, 5), (7, 5)]
    engine.remove_tasks([5])
    assert step.step()
    assert groups(arrays) == [(6, 6), (7, 6)]


def test_nothing_is_looked_for_while_images_come_in_or_without_a_similarity(arrays: ProjectArrays) -> None:
    assert not step_of(arrays, filled(), settled=lambda: False).step()
    assert not step_of(arrays, filled(), similarity=0).step()
    assert similar.near_duplicates(arrays) == {"tasks": 0, "groups": 0, "skipped": False, "said": ""}


def test_the_next_process_has_them_at_once_unless_they_are_of_other_settings(arrays: ProjectArrays) -> None:
    before = filled()
    assert step_of(arrays, before).step()
    after = filled()
    step_of(arrays, after).load()
    assert after.head(6) == before.head(6)
    step_of(arrays, filled(), similarity=0.8).load()
    assert groups(arrays) == []
