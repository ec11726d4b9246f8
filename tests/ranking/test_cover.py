"""The first tasks of a pool nobody has labelled: the lazy greedy cover is the plain one."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neat_backend.ranking.cover import greedy_cover
from tests.ranking.test_neighbors import grid, some_features


def value(features: NDArray[np.float32], chosen: list[int]) -> float:
    """What is maximised: how similar each task is to the nearest one chosen, summed; -1 while there is none."""
    if not chosen:
        return -float(len(features))
    similar = (features @ features.T).astype(np.float64)
    return float(similar[:, chosen].max(axis=1).sum())


def plain_gains(features: NDArray[np.float32], chosen: list[int]) -> NDArray[np.float64]:
    """What each task would add to those chosen; -1 for these."""
    before = value(features, chosen)
    gains = [value(features, [*chosen, at]) - before for at in range(len(features))]
    return np.array([-1.0 if at in chosen else gain for at, gain in enumerate(gains)])


def test_one_of_each_group_comes_first_the_largest_group_before_the_others() -> None:
    rng = np.random.default_rng(0)
    sizes = (12, 6, 3, 1)
    groups = np.repeat(np.arange(4), sizes)
    features = grid(np.eye(8)[groups] + 0.1 * rng.normal(size=(22, 8)))
    order = rng.permutation(22)
    assert groups[order][greedy_cover(features[order], 4)].tolist() == [0, 1, 2, 3]


def test_tasks_that_are_opposite_to_most_are_chosen_once() -> None:
    # Seven between 10° and 130° and three at 250°: what these are like, most of the pool is the opposite of.
    angles = np.radians([10, 20, 30, 100, 110, 120, 130, 250, 251, 252])
    features = grid(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    chosen = greedy_cover(features, 10).tolist()
    assert sorted(chosen) == list(range(10))
    assert chosen[1] == 8


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25), st.integers(1, 30), st.sampled_from([0.0, 0.4]), st.integers(0, 2**32 - 1))
def test_each_step_adds_as_much_as_any_task_could(n: int, wanted: int, copies: float, seed: int) -> None:
    features = some_features(np.random.default_rng(seed), n, 4, copies=copies)
    chosen = greedy_cover(features, wanted).tolist()
    assert len(chosen) == len(set(chosen)) == min(n, wanted)
    for step, task in enumerate(chosen):
        gains = plain_gains(features, chosen[:step])
        assert gains[task] >= gains.max() - 1e-5


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_the_order_of_the_rows_does_not_matter(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    features = some_features(rng, n, 6)
    chosen, order = greedy_cover(features, n), rng.permutation(n)
    again = order[greedy_cover(features[order], n)]
    for step in range(n):
        gains = plain_gains(features, chosen[:step].tolist())
        if np.ptp(np.sort(gains)[-2:]) < 1e-5:
            return  # a tie: from here on, both are greedy covers
        assert again[step] == chosen[step]


def test_nothing_is_chosen_from_nothing() -> None:
    assert greedy_cover(np.zeros((0, 4), np.float32), 5).tolist() == []
