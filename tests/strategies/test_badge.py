"""BADGE against gradient embeddings that are laid out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.models.grid import to_grid
from neat_backend.ranking.pool import UNLABELLED, Pool
from neat_backend.strategies import badge
from neat_backend.testing.pools import fixed_model, make_pool


def pool_of(probabilities, embeddings):
    """All samples offered, with these outputs."""
    n, n_classes = np.shape(probabilities)
    labels = np.full(n, UNLABELLED)
    return Pool(to_grid(np.ones((n, 3))), labels, n_classes, np.arange(n), fixed_model(probabilities, embeddings))


def gradients(probabilities, embeddings):
    """(p - onehot(argmax p)) ⊗ h of every sample, laid out: [n, C h]."""
    rows = []
    for p, h in zip(probabilities, embeddings, strict=True):
        onehot = np.arange(len(p)) == np.argmax(p)
        rows.append(np.outer(p - onehot, h).ravel())
    return np.array(rows)


def literal_badge(embedded, size, rng, first=None):
    """The longest, or that given, then D² sampling, with all distances to all centres again at each step."""
    chosen = [int(np.argmax((embedded**2).sum(axis=1))) if first is None else first]
    while len(chosen) < size:
        squares = np.array([min(((row - embedded[c]) ** 2).sum() for c in chosen) for row in embedded])
        chosen.append(int(rng.choice(len(squares), p=squares / squares.sum())))
    return chosen


def test_the_first_is_the_longest_gradient_worked_by_hand():
    # |a|² = 2 (1 - p)² for two classes, |g|² = |a|² |h|²: 0.5 · 1, 0.08 · 9 = 0.72, 0.02 · 25 = 0.5.
    pool = pool_of([[0.5, 0.5], [0.8, 0.2], [0.1, 0.9]], [[1, 0], [0, 3], [3, 4]])
    assert badge.select(pool, 1, np.random.default_rng(0)).tolist() == [1]


def test_further_ones_are_drawn_by_squared_distance():
    # With p = (1/2, 1/2) everywhere a = (-1/2, 1/2), so |g - g'|² = |h - h'|² / 2. From the first, h = 4, the others
    # are at distances 1, 2 and 4, to be drawn 1 : 4 : 16.
    pool = pool_of(np.full((4, 2), 0.5), [[4], [3], [2], [0]])
    rng = np.random.default_rng(0)
    drawn = [tuple(badge.select(pool, 2, rng)) for _ in range(4200)]
    assert {first for first, _ in drawn} == {0}
    counts = [drawn.count((0, second)) for second in (1, 2, 3)]
    assert counts == pytest.approx([200, 800, 3200], abs=120)


@given(st.integers(2, 20), st.integers(2, 5), st.integers(1, 4), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_choice_is_that_of_gradients_laid_out(n, n_classes, dim, size, seed):
    rng = np.random.default_rng(seed)
    pool = pool_of(rng.dirichlet(np.ones(n_classes), n), rng.normal(size=(n, dim)))
    embedded = gradients(pool.probabilities(pool.offered), pool.model.embeddings(pool.offered))
    chosen = badge.select(pool, size, np.random.default_rng(seed))
    assert chosen.tolist() == literal_badge(embedded, min(size, n), np.random.default_rng(seed))


def test_copies_are_left_until_nothing_else_is_there():
    probabilities = [[0.6, 0.4]] * 6
    pool = pool_of(probabilities, [[3, 4]] * 4 + [[1, 0], [0, 2]])
    for seed in range(20):
        chosen = badge.select(pool, 6, np.random.default_rng(seed))
        assert chosen[0] == 0
        assert set(chosen[1:3].tolist()) == {4, 5}
        assert set(chosen[3:].tolist()) == {1, 2, 3}


def test_a_single_class_leaves_no_gradient_and_the_choice_is_random():
    pool = pool_of(np.ones((8, 1)), np.ones((8, 2)))
    answers = {tuple(badge.select(pool, 4, np.random.default_rng(seed))) for seed in range(5)}
    assert len(answers) > 1


def test_without_a_model_it_is_kmeans_plus_plus_on_the_features():
    pool = replace(make_pool(), model=None)
    points = pool.features[pool.offered].astype(float)
    chosen = badge.select(pool, 9, np.random.default_rng(4))
    first = int(np.searchsorted(pool.offered, chosen[0]))  # all are of length 1, up to rounding
    expected = literal_badge(gradients(np.full((60, 3), 1 / 3), points), 9, np.random.default_rng(4), first)
    assert chosen.tolist() == pool.offered[expected].tolist()
