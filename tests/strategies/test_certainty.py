"""The other end of uncertainty."""

from __future__ import annotations

import numpy as np

from neat_backend.models.grid import to_grid
from neat_backend.ranking.pool import UNLABELLED, Pool
from neat_backend.strategies import certainty, uncertainty
from neat_backend.testing.pools import fixed_model, make_pool


def test_the_sharpest_probabilities_come_first():
    model = fixed_model([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0, 1], [0.3, 0.7]])
    pool = Pool(to_grid(np.eye(5)), np.full(5, UNLABELLED), 2, np.array([0, 1, 3, 4]), model)
    assert certainty.select(pool, 3, np.random.default_rng(0)).tolist() == [3, 0, 4]


def test_all_of_the_pool_is_uncertainty_backwards():
    pool = make_pool()
    rng = np.random.default_rng(0)
    certain, uncertain = (module.select(pool, 60, rng) for module in (certainty, uncertainty))
    np.testing.assert_array_equal(certain, uncertain[::-1])


def test_without_a_model_the_choice_is_random():
    pool = make_pool(model=False)
    answers = {tuple(certainty.select(pool, 5, np.random.default_rng(seed))) for seed in range(5)}
    assert len(answers) == 5
