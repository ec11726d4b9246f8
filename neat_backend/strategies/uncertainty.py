"""Uncertainty sampling: the highest entropy of the classifier's probabilities first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.pool import Indices, Pool


def entropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """H = -sum_c P[c] log P[c] in nats, with 0 log 0 = 0: [m, C] → float64 [m], in [0, log C].

    Worked example: (1/2, 1/4, 1/4) → 1.5 log 2 = 1.0397.
    """
    logarithms = np.log(np.where(probabilities > 0, probabilities, 1.0))
    return -(probabilities * logarithms).sum(axis=1)


def lowest_first(
    pool: Pool, batch_size: int, rng: np.random.Generator, value: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> Indices:
    """The first B by what `value` makes of the classifier's probabilities [u, C] → [u]; ties in random order."""
    shuffled = pool.offered[rng.permutation(len(pool.offered))]
    order = np.argsort(value(pool.probabilities(shuffled)), kind="stable")
    return shuffled[order[:batch_size]]


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """By decreasing entropy. Ties come in random order; without a model, whose probabilities are uniform, that is all
    there is."""
    return lowest_first(pool, batch_size, rng, lambda probabilities: -entropy(probabilities))
