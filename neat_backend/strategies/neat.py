"""NEAT (Algorithm 1): known-class detection by the neighbours' labels, then the largest inconsistency (Eq. 5)."""

from __future__ import annotations

import numpy as np

from neat_backend.ranking.pool import Indices, Pool
from neat_backend.strategies.detection import candidates, filled, inconsistency, votes


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """The candidates by decreasing I, ties by more known neighbours, then by smaller index.

    Fewer candidates than B are followed by the other samples, by known neighbours, then by I. Without a model the
    probabilities are uniform. Nothing is random.

    With `rule="majority"` and `cut=2` the choice is that of the authors' code (github.com/RuiyuM/Active-OpenSet-NEAT,
    `active_query`), which sorts the candidates by known neighbours, keeps the first 2B, sorts those by I, both
    stably, and takes B. Three ties are settled here and open there: neighbours equally near (its `topk` names no
    order), samples alike in both (by its loader's order) and inconsistencies that only single precision makes equal.
    With fewer candidates than B it asks for fewer; with fewer than K labelled samples it stops with an error.
    """
    codes = votes(pool)
    among = candidates(pool, batch_size, codes)
    value = inconsistency(pool, among, codes[np.searchsorted(pool.offered, among)])
    best = among[np.argsort(-value, kind="stable")[:batch_size]]
    return filled(pool, best, batch_size, codes)
