"""BADGE: diverse and uncertain by gradient embeddings (Ash et al., ICLR 2020, Algorithm 1).

The gradient of the cross-entropy by the last layer, for the predicted label ŷ, is g = a ⊗ h with a = p - onehot(ŷ)
[C] and the penultimate embedding h. It is never laid out: |g - g'|² = |a|²|h|² + |a'|²|h'|² - 2 (a·a')(h·h').
"""

from __future__ import annotations

import numpy as np

from neat_backend.ranking.pool import Indices, Pool
from neat_backend.strategies.coreset import embeddings


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """k-means++ on the gradient embeddings: first the longest, then by D² sampling.

    The first is the sample with the longest g, ties by smaller index; each further one is drawn with probability
    proportional to its squared distance to the nearest chosen one; at random where all those are 0, as with a single
    class. Without a model the probabilities are uniform and h are the encoder's features: k-means++ on features.
    """
    size = min(batch_size, len(pool.offered))
    if size <= 0:
        return pool.offered[:0]
    errors = pool.probabilities(pool.offered)  # a: [u, C]
    errors[np.arange(len(errors)), errors.argmax(axis=1)] -= 1
    errors = errors.astype(np.float32)
    points = embeddings(pool, pool.offered)  # h: [u, h]
    norms = np.einsum("ij,ij->i", errors, errors) * np.einsum("ij,ij->i", points, points)  # |g|²: [u]
    squares = np.full(len(points), np.inf)  # D²: [u]
    chosen = np.empty(size, np.int64)
    chosen[0] = norms.argmax()
    for i in range(1, size):
        last = chosen[i - 1]
        products = (errors @ errors[last]) * (points @ points[last])  # g·g': [u]
        np.minimum(squares, norms + norms[last] - 2 * products, out=squares)
        np.maximum(squares, 0, out=squares)  # rounding
        squares[chosen[:i]] = 0
        chosen[i] = _drawn(squares, chosen[:i], rng)
    return pool.offered[chosen]


def _drawn(weights: np.ndarray, chosen: Indices, rng: np.random.Generator) -> int:
    """A place with probability proportional to its weight; where all are 0, any that isn't chosen yet."""
    total = weights.sum()
    if total > 0:
        return int(rng.choice(len(weights), p=weights / total))
    return int(rng.choice(np.setdiff1d(np.arange(len(weights)), chosen)))
