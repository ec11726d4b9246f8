"""Random sampling."""

from __future__ import annotations

import numpy as np

from neat_backend.strategies import random
from neat_backend.testing.pools import make_pool


def test_every_offered_sample_comes_as_often_as_any_other():
    pool = make_pool(n=20, n_offered=10)
    rng = np.random.default_rng(0)
    chosen = np.concatenate([random.select(pool, 3, rng) for _ in range(2000)])
    counts = np.array([np.count_nonzero(chosen == index) for index in pool.offered])  # expected 600, std 20.5
    assert counts.sum() == 6000
    assert np.abs(counts - 600).max() < 100


def test_another_generator_gives_another_choice():
    pool = make_pool()
    answers = {tuple(random.select(pool, 5, np.random.default_rng(seed))) for seed in range(5)}
    assert len(answers) == 5
