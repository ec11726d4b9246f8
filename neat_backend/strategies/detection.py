"""NEAT's known-class detection (Algorithm 1, lines 3-9), and any other strategy after it (`hybrid:NAME`).

Everything here reads the labels of each offered sample's K nearest labelled samples as class codes:

    codes  int64 [u, K]   0 … C-1 = known class, INVALID, MISSING = fewer than K are labelled
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking import scores
from neat_backend.ranking.pool import Indices, Pool, Select
from neat_backend.strategies.nearest import NONE, nearest

Codes = NDArray[np.int64]

# Digits of I that count. The same votes for other classes add up in another order, so equal inconsistencies may
# differ in their last bits; those must stay ties.
_DIGITS = 9


def votes(pool: Pool) -> Codes:
    """The labels of each offered sample's K nearest labelled samples, nearest first: int64 [u, K]."""
    neighbours, _ = nearest(pool.features, pool.offered, pool.labelled, pool.k)
    return np.where(neighbours == NONE, scores.MISSING, pool.labels[neighbours])


def candidates(pool: Pool, batch_size: int, codes: Codes | None = None) -> Indices:
    """The offered samples held to be of a known class, most known neighbours first, ties by smaller index: int64 [c].

    By `pool.rule`; with `pool.cut` only the first cut·B of them, as the authors' code has it. codes: what `votes`
    gave, if it has been called already. Under the paper's rule all candidates have the same number of known
    neighbours, so they come by index.
    """
    codes = votes(pool) if codes is None else codes
    held = np.flatnonzero(scores.candidates(codes, pool.rule))
    order = held[np.argsort(-scores.known_neighbours(codes[held]), kind="stable")]
    return pool.offered[order if pool.cut is None else order[: pool.cut * batch_size]]


def inconsistency(pool: Pool, indices: Indices, codes: Codes) -> NDArray[np.float64]:
    """Eq. 5 for these samples, whose neighbours have these codes [m, K]: float64 [m], to nine digits."""
    return np.round(scores.inconsistency(codes, pool.probabilities(indices), pool.n_classes), _DIGITS)


def filled(pool: Pool, chosen: Indices, batch_size: int, codes: Codes) -> Indices:
    """`chosen`, made up to min(B, offered) by the samples with most known neighbours, then by larger I.

    codes: of all offered samples [u, K]. Ties go to the smaller index.
    """
    lacking = min(batch_size, len(pool.offered)) - len(chosen)
    if lacking <= 0:
        return chosen
    left = np.flatnonzero(~np.isin(pool.offered, chosen))
    value = inconsistency(pool, pool.offered[left], codes[left])
    order = np.lexsort((-value, -scores.known_neighbours(codes[left])))  # stable
    return np.concatenate([chosen, pool.offered[left[order[:lacking]]]])


def after_detection(select: Select) -> Select:
    """The hybrid of the paper: `select` among the candidates only; too few of them are filled as NEAT does."""

    def hybrid(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
        codes = votes(pool)
        among = candidates(pool, batch_size, codes)
        chosen = select(pool.offering(among), batch_size, rng) if len(among) else among
        return filled(pool, chosen, batch_size, codes)

    return hybrid
