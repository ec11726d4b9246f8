"""The passive variant: detection alone."""

from __future__ import annotations

import numpy as np

from neat_backend.strategies import neat_passive
from neat_backend.strategies.detection import candidates
from neat_backend.testing.pools import make_pool


def test_every_candidate_comes_as_often_as_any_other():
    pool = make_pool()
    held = candidates(pool, 5)
    assert 5 < len(held) < len(pool.offered)
    rng = np.random.default_rng(0)
    chosen = np.concatenate([neat_passive.select(pool, 5, rng) for _ in range(1000)])
    counts = np.array([np.count_nonzero(chosen == index) for index in held])
    assert counts.sum() == 5000  # no others
    expected = 5000 / len(held)
    assert np.abs(counts - expected).max() < 6 * np.sqrt(expected)


def test_too_few_candidates_all_come_first():
    pool = make_pool()
    held = candidates(pool, 40)
    chosen = neat_passive.select(pool, len(held) + 5, np.random.default_rng(0))
    assert set(chosen[: len(held)].tolist()) == set(held.tolist())
