"""Smallest margin between the two likeliest classes first (Scheffer, Decomain and Wrobel, 2001)."""

import numpy as np

from neat_backend.ranking.pool import Indices, Pool


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """The first B by margin; equal margins come in random order."""
    chances = np.sort(pool.probabilities(pool.offered), axis=1)  # [u, C], ascending
    margins = chances[:, -1] - chances[:, -2] if chances.shape[1] > 1 else np.zeros(len(chances))
    return pool.offered[np.lexsort((rng.random(len(margins)), margins))][:batch_size]
