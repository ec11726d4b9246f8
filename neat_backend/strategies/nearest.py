"""The K nearest labelled samples of each query, exactly.

Features lie on the 2^-22 grid (`grid.to_grid`), where a float64 dot product is exact whatever the order of
summation. The similarity is that value rounded to float32, the same number as `ranking.neighbors` keeps. FAISS finds
somewhat more than K by single precision; those that its rounding leaves in doubt are computed again exactly.
"""

from __future__ import annotations

import faiss
import numpy as np

from neat_backend.ranking.all_pairs import rounding
from neat_backend.ranking.gpus import GPU_PAIRS, index_on_gpus
from neat_backend.ranking.kernels import NONE, grid_similarities, in_parallel
from neat_backend.ranking.pool import Floats, Indices

_SPARE = 8  # neighbours requested from FAISS beyond K, to prove that the K are the right ones
_SEARCH_ROWS = 8192


def nearest(features: Floats, queries: Indices, among: Indices, k: int) -> tuple[Indices, Floats]:
    """The k samples of `among` with the largest cosine to each query, nearest first, ties by smaller index.

    features: float32 [n, d], unit rows on the grid. queries: [m] and among: [l], distinct samples. A query is never
    its own neighbour. Gives indices of samples, int64 [m, k], NONE where there are fewer than k, and similarities,
    float32 [m, k], -inf there. Raises ValueError for k < 1.
    """
    if k < 1:
        raise ValueError(f"the number of neighbours must be at least 1, got {k}")
    indices = np.full((len(queries), k), NONE, np.int64)
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    among = np.sort(among)
    if not len(among):
        return indices, similarities
    index = _index(features[among], len(queries))
    error = rounding(features.shape[1])  # FAISS sums in single precision
    requested = min(len(among), k + 1 + _SPARE)  # one more: a query may find itself
    for start in range(0, len(queries), _SEARCH_ROWS):
        part = slice(start, start + _SEARCH_ROWS)
        rough, found = index.search(features[queries[part]], requested)  # [r, requested], best first
        places = among[found]  # [r, requested]
        values = _checked(features, queries[part], places, rough, k, error)
        order = np.lexsort((places, -values), axis=1)[:, :k]
        best = np.take_along_axis(values, order, axis=1)
        similarities[part, : order.shape[1]] = best
        indices[part, : order.shape[1]] = np.where(best > -np.inf, np.take_along_axis(places, order, axis=1), NONE)
        if requested < len(among):
            # Whatever FAISS left out is at most its last value plus the error.
            unproven = start + np.flatnonzero(best[:, -1] <= rough[:, -1] + error)
            indices[unproven], similarities[unproven] = _among_all(features, queries[unproven], among, k)
    return indices, similarities


def _index(rows: Floats, n_queries: int) -> faiss.Index:
    """A flat index of rows, on the GPUs when faiss sees any and the search is worth it."""
    index = index_on_gpus(rows) if len(rows) * n_queries >= GPU_PAIRS else None
    if index is None:
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows)
    return index


def _checked(features: Floats, queries: Indices, places: Indices, rough: Floats, k: int, error: np.float32) -> Floats:
    """Exact similarities of the pairs that may be among the k nearest, -inf for the others: float32 [r, requested]."""
    values = np.full(rough.shape, -np.inf, np.float32)
    # The (k+1)-th, because the query itself may be among the first k.
    bar = rough[:, min(k, rough.shape[1] - 1)] - 2 * error  # [r]
    near = np.where((rough >= bar[:, None]) & (places != queries[:, None]), places, NONE)
    in_parallel(
        lambda begin, end: grid_similarities(begin, end, features, queries, near, values), len(queries), least=512
    )
    return values


def _among_all(features: Floats, queries: Indices, among: Indices, k: int) -> tuple[Indices, Floats]:
    """The same without a short list, for queries with many neighbours about as near: [m, k], k < len(among)."""
    indices = np.full((len(queries), k), NONE, np.int64)
    similarities = np.full((len(queries), k), -np.inf, np.float32)
    if not len(queries):
        return indices, similarities
    columns = features[among].astype(np.float64)  # [l, d]
    step = max(1, 4_000_000 // len(among))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        values = (features[queries[part]].astype(np.float64) @ columns.T).astype(np.float32)  # [r, l]
        values[queries[part, None] == among] = -np.inf
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]  # `among` ascends: ties by smaller index
        indices[part] = among[order]
        similarities[part] = np.take_along_axis(values, order, axis=1)
    return indices, similarities
