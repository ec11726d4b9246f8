"""Features kept for the next plan are those of its tasks, and only others are read."""

from __future__ import annotations

import numpy as np

from neat_backend.models.grid import to_grid
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.kept_features import KeptFeatures
from neat_backend.ranking.method import Method
from neat_backend.records import Label


def test_only_what_was_not_kept_is_read() -> None:
    kept, read = KeptFeatures(), []

    def features(ids: np.ndarray) -> np.ndarray:
        read.append(ids.tolist())
        return np.stack([ids, -ids], axis=1).astype(np.float32)

    def of(ids: list[int], version: int) -> list[float]:
        found = kept.of(np.array(ids, np.int64), version, features)
        assert not found.flags.writeable
        assert (found[:, 1] == -found[:, 0]).all()
        return found[:, 0].tolist()

    assert of([2, 4, 6], 1) == [2, 4, 6]
    assert of([2, 4, 6], 1) == [2, 4, 6]
    assert of([1, 4, 6, 9], 1) == [1, 4, 6, 9]
    assert of([1, 4], 2) == [1, 4]
    assert of([], 2) == []
    assert of([3], 2) == [3]
    assert read == [[2, 4, 6], [1, 9], [1, 4], [], [3]]


def test_a_pool_has_the_engines_features_whatever_came_left_or_changed() -> None:
    rng = np.random.default_rng(0)
    engine = Engine(16, ("cat", "dog"), Method(k=5, batch_size=10))
    engine.add_tasks(range(60), to_grid(rng.normal(size=(60, 16))))

    def matches(most: int) -> bool:
        ids, pool = engine.pool(most)
        return pool is not None and np.array_equal(pool.features, engine.features(ids))

    assert matches(30)
    engine.set_labels([Label(task, "cat") for task in range(0, 40, 3)])
    assert matches(30)
    engine.add_tasks([5, 100], to_grid(rng.normal(size=(2, 16))))
    assert matches(100)
    engine.remove_tasks([0, 7])
    assert matches(100)
    engine.set_labels([Label(9, set_aside="skipped")])
    assert matches(100)
