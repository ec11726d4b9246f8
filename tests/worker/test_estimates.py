"""How many known images are left: by hand where it can be, and on digits whose labels were chosen, not drawn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from neat_backend.grid import to_grid
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.pool import UNLABELLED
from neat_backend.records import Label
from neat_backend.worker.steps.estimates import LEAST_OF_EACH, known_left
from neat_backend.worker.steps.projection import MAP_STEPS, Axes, map_places


def two_clouds(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Points around -3 and 3; the second cloud is known."""
    rng = np.random.default_rng(seed)
    known = np.arange(n) % 3 == 0
    return rng.normal(np.where(known, 3.0, -3.0)[:, None], 1, (n, 4)), known


def test_clouds_far_apart_are_counted_exactly() -> None:
    points, known = two_clouds(600)
    votes = known.astype(float)
    found = known_left(
        points[:100], votes[:100], known[:100], points[100:], votes[100:], np.random.default_rng(0), np.arange(30)
    )
    assert found is not None
    assert found.known == pytest.approx(known[100:].sum(), rel=0.03)
    assert found.low <= known[100:].sum() <= found.high
    assert found.wanted == pytest.approx(known[100:130].sum(), abs=1)


def test_too_few_labels_say_nothing() -> None:
    points, known = two_clouds(60)
    few = np.concatenate([np.flatnonzero(known)[: LEAST_OF_EACH - 1], np.flatnonzero(~known)])
    votes = known.astype(float)
    assert known_left(points[few], votes[few], known[few], points, votes, np.random.default_rng(0)) is None


def test_an_empty_pool_holds_none() -> None:
    points, known = two_clouds(60)
    votes = known.astype(float)
    found = known_left(points, votes, known, points[:0], votes[:0], np.random.default_rng(0))
    assert found is not None
    assert (found.known, found.low, found.high) == (0, 0, 0)


def test_chosen_labels_do_not_mislead_it() -> None:
    """The order went for known digits, so that two thirds of the labels are known, but one in four of what is left."""
    digits = load_digits()
    features = to_grid(digits.data - digits.data.mean(axis=0))
    known = digits.target < 3
    ids = np.arange(len(known))
    engine = Engine(64, ["0", "1", "2"], k=10, batch_size=20)
    engine.add_tasks(ids, features)
    for _ in range(15):
        engine.set_labels(
            [Label(t, str(digits.target[t])) if known[t] else Label(t, invalid=True) for t in engine.head(20)]
        )
    _, codes, _ = engine.codes()
    labelled = codes != UNLABELLED
    votes = (engine.nearest_labelled().codes >= 0).mean(axis=1)
    reduced = Axes([features]).project(features).astype(float)
    found = known_left(
        reduced[labelled],
        votes[labelled],
        codes[labelled] >= 0,
        reduced[~labelled],
        votes[~labelled],
        np.random.default_rng(0),
    )
    assert found is not None
    left = int(known[~labelled].sum())
    assert (codes[labelled] >= 0).mean() > 2 * left / (~labelled).sum()
    naive = (codes[labelled] >= 0).mean() * (~labelled).sum()
    assert found.low <= left <= found.high < naive
    assert abs(found.known - left) < 0.06 * (~labelled).sum()


class TestMap:
    def test_the_axes_are_those_along_which_points_differ_most(self) -> None:
        rng = np.random.default_rng(0)
        points = (rng.normal(size=(500, 6)) * [0.1, 9, 0.1, 3, 0.1, 0.1]).astype(np.float32)
        projected = Axes([points[:300], points[300:]], 2).project(points)
        assert abs(np.corrcoef(projected[:, 0], points[:, 1])[0, 1]) > 0.99
        assert abs(np.corrcoef(projected[:, 1], points[:, 3])[0, 1]) > 0.99

    def test_the_same_points_give_the_same_axes(self) -> None:
        points = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
        assert np.array_equal(Axes([points]).project(points), Axes([points]).project(points))

    def test_too_little_has_no_axes(self) -> None:
        assert not Axes([])
        assert not Axes([np.zeros((1, 8), np.float32)])

    def test_places_fill_the_square_and_outliers_stay_at_its_edge(self) -> None:
        projected = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
        projected[0] = [1e3, -1e3, 0]
        places = map_places(projected)
        assert places[0].tolist() == [MAP_STEPS, 0]
        assert places[1:].min() < 0.1 * MAP_STEPS
        assert places[1:].max() > 0.9 * MAP_STEPS
        assert map_places(projected[:0]).shape == (0, 2)
