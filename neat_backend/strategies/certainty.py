"""Certainty sampling: the lowest entropy of the classifier's probabilities first."""

from __future__ import annotations

import numpy as np

from neat_backend.ranking.pool import Indices, Pool
from neat_backend.strategies.uncertainty import entropy, lowest_first


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """By increasing entropy. Ties come in random order; without a model, whose probabilities are uniform, that is all
    there is."""
    return lowest_first(pool, batch_size, rng, entropy)
