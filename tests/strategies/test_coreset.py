"""k-center greedy against the definition."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.models.grid import to_grid
from neat_backend.ranking.pool import UNLABELLED, Pool
from neat_backend.ranking.scores import INVALID
from neat_backend.strategies import coreset
from neat_backend.testing.pools import fixed_model, make_pool


def pool_of(points, labels, offered=None):
    """Samples with these embeddings."""
    labels = np.array(labels)
    model = fixed_model(np.full((len(points), 2), 0.5), points)
    offered = np.flatnonzero(labels == UNLABELLED) if offered is None else np.array(offered)
    return Pool(to_grid(np.ones((len(points), 3))), labels, 2, offered, model)


def literal_coreset(points, centres, offered, size):
    """Farthest first: all distances to all centres again at each step."""
    centres, chosen = list(centres), []
    for _ in range(size):
        left = [i for i in offered if i not in chosen]
        distances = [min(float(((points[i] - points[c]) ** 2).sum()) for c in centres) for i in left]
        chosen.append(left[int(np.argmax(distances))])
        centres.append(chosen[-1])
    return chosen


def test_a_choice_worked_by_hand():
    # On a line, labelled at 0 (known) and 10 (invalid). At first 5 is farthest with distance 5, then 13 with 3,
    # then 2 with 2, then 12 and 11 with 1: the smaller index.
    points = [[0, 0], [10, 0], [13, 0], [2, 0], [5, 0], [11, 0], [12, 0]]
    pool = pool_of(points, [0, INVALID, *[UNLABELLED] * 5])
    assert coreset.select(pool, 5, np.random.default_rng(0)).tolist() == [4, 2, 3, 5, 6]


def test_copies_of_a_centre_are_taken_once_each_and_last():
    pool = pool_of([[1, 1], [1, 1], [4, 5], [1, 1]], [0, *[UNLABELLED] * 3])
    assert coreset.select(pool, 3, np.random.default_rng(0)).tolist() == [2, 1, 3]


@given(st.integers(2, 40), st.integers(1, 4), st.integers(1, 15), st.integers(0, 2**32 - 1))
def test_the_choice_is_that_of_the_definition(n, dim, size, seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(-5, 6, (n, dim)).astype(float)  # whole numbers: ties are common and exact
    labels = np.where(rng.random(n) < 0.7, UNLABELLED, rng.integers(-1, 2, n))
    labels[0], labels[1] = 0, UNLABELLED
    offered = np.flatnonzero(labels == UNLABELLED)
    offered = np.sort(rng.permutation(offered)[: rng.integers(1, len(offered) + 1)])
    pool = pool_of(points, labels, offered)
    expected = literal_coreset(points, np.flatnonzero(labels != UNLABELLED), offered, min(size, len(offered)))
    assert coreset.select(pool, size, rng).tolist() == expected


def test_the_labelled_set_may_be_read_in_blocks(monkeypatch):
    pool = make_pool()
    whole = coreset.select(pool, 30, np.random.default_rng(0))
    monkeypatch.setattr(coreset, "_BLOCK_PAIRS", 7)
    np.testing.assert_array_equal(whole, coreset.select(pool, 30, np.random.default_rng(0)))


def test_with_nothing_labelled_the_first_is_random_and_the_second_farthest_from_it():
    pool = pool_of([[0, 0], [1, 0], [5, 0]], [UNLABELLED] * 3)
    answers = {tuple(coreset.select(pool, 2, np.random.default_rng(seed))) for seed in range(30)}
    assert answers == {(0, 2), (1, 2), (2, 0)}


def test_without_a_model_the_features_stand_for_the_embeddings():
    pool = make_pool()  # whose model's embeddings are the features
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(coreset.select(pool, 9, rng), coreset.select(replace(pool, model=None), 9, rng))
