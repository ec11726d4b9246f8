"""Entropy by hand, and the order by it."""

from __future__ import annotations

import numpy as np
import pytest

from neat_backend.models.grid import to_grid
from neat_backend.ranking.pool import UNLABELLED, Pool
from neat_backend.strategies import uncertainty
from neat_backend.testing.pools import fixed_model, make_pool


def test_entropy_worked_by_hand():
    value = uncertainty.entropy(np.array([[0.5, 0.25, 0.25], [1, 0, 0], [1 / 3] * 3]))
    assert value == pytest.approx([1.5 * np.log(2), 0, np.log(3)])


def test_the_flattest_probabilities_come_first():
    model = fixed_model([[0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0, 1], [0.3, 0.7]])
    pool = Pool(to_grid(np.eye(5)), np.full(5, UNLABELLED), 2, np.array([0, 1, 3, 4]), model)
    assert uncertainty.select(pool, 3, np.random.default_rng(0)).tolist() == [1, 4, 0]


def test_two_classes_can_be_more_uncertain_than_three():
    # H(1/2, 1/2, 0) = 0.693; H(0.8, 0.1, 0.1) = 0.639: the largest probability alone would say the same,
    # H(0.55, 0.225, 0.225) = 1.000 has a larger one and still more entropy.
    model = fixed_model([[0.5, 0.5, 0], [0.8, 0.1, 0.1], [0.55, 0.225, 0.225]])
    pool = Pool(to_grid(np.eye(3)), np.full(3, UNLABELLED), 3, np.arange(3), model)
    assert uncertainty.select(pool, 3, np.random.default_rng(0)).tolist() == [2, 0, 1]


def test_without_a_model_the_choice_is_random():
    pool = make_pool(model=False)
    answers = {tuple(uncertainty.select(pool, 5, np.random.default_rng(seed))) for seed in range(5)}
    assert len(answers) == 5
