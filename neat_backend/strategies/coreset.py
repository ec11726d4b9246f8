"""CORESET: k-center greedy on the penultimate embeddings (Sener and Savarese, ICLR 2018, Algorithm 1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.pool import Floats, Indices, Pool

_BLOCK_PAIRS = 8_000_000  # distances at a time while the labelled set is read


def embeddings(pool: Pool, indices: Indices) -> Floats:
    """The model's penultimate embeddings, the encoder's features without a model: float32 [m, h]."""
    return pool.features[indices] if pool.model is None else pool.model.embeddings(indices)


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """Again and again the sample farthest from its nearest centre, ties by smaller index.

    The centres are the labelled samples, the invalid ones included (both have been queried), and those chosen so far;
    distances are Euclidean. With nothing labelled the first is drawn at random. Memory is O(u): distances are kept
    to the nearest centre only.
    """
    size = min(batch_size, len(pool.offered))
    if size <= 0:
        return pool.offered[:0]
    points = embeddings(pool, pool.offered)  # [u, h]
    centred = len(pool.labelled) > 0
    squares = _to_nearest(points, embeddings(pool, pool.labelled)) if centred else np.full(len(points), np.inf)  # [u]
    norms = np.einsum("ij,ij->i", points, points)  # [u]
    chosen = np.empty(size, np.int64)
    for i in range(size):
        chosen[i] = farthest = squares.argmax() if centred or i else rng.integers(len(points))
        np.minimum(squares, norms + norms[farthest] - 2 * (points @ points[farthest]), out=squares)
        squares[chosen[: i + 1]] = -np.inf
    return pool.offered[chosen]


def _to_nearest(points: Floats, centres: Floats) -> NDArray[np.float32]:
    """Squared Euclidean distance of each point to its nearest centre: float32 [u]."""
    of_centres = np.einsum("ij,ij->i", centres, centres)
    nearest = np.empty(len(points), np.float32)
    step = max(1, _BLOCK_PAIRS // len(centres))
    for start in range(0, len(points), step):
        block = points[start : start + step]  # [b, h]
        products = block @ centres.T  # [b, l]
        products *= -2
        products += of_centres
        nearest[start : start + step] = products.min(axis=1) + np.einsum("ij,ij->i", block, block)
    return nearest
