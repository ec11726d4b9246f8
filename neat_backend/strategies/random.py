"""Random sampling: every offered sample is as likely as any other."""

from __future__ import annotations

import numpy as np

from neat_backend.ranking.pool import Indices, Pool


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """The first B of a random order."""
    return pool.offered[rng.permutation(len(pool.offered))][:batch_size]
