"""The nearest of many labels for many rows: all products in single precision, then exactly those near the K-th.

A product of two features in single precision is off by at most `rounding`. So with p the K-th largest of a row's
products, a label whose product is below p - 2·rounding has K others that are nearer, and its similarity need not be
computed. BLAS multiplies a block of rows with a block of labels; one pass of a kernel over the products takes the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.kernels import Array, Planes, Table, compiled, exact_similarity, in_parallel, insert

Rows = NDArray[np.int32]
Features = NDArray[np.float32]

_BLOCK_LABELS = 8192
_BLOCK_PRODUCTS = 2**23  # 34 MB
_BLOCK_ROWS = 8192
_ROWS_PER_THREAD = 64


def rounding(dim: int) -> np.float32:
    """By how much a product of features in single precision can differ from their similarity.

    The sum is off by dim·2^-24 at most, whatever its order (Higham, Accuracy and Stability, 3.1); the rest is for the
    similarity's own rounding to float32 and for that of a bound computed from it.
    """
    return np.float32(dim * 2.0**-24 * 1.01 + 2.0**-23)


def offer_all(rows: Rows, labels: Rows, features: Callable[[Rows], Features], planes: Planes, near: Table) -> None:
    """Offer labels, ascending, to all rows; none of these has any of the labels yet. features: of rows, [n, dim]."""
    error = rounding(planes.coarse.shape[1])
    for begin in range(0, len(labels) if len(rows) else 0, _BLOCK_LABELS):
        some = labels[begin : begin + _BLOCK_LABELS]
        columns = features(some).T  # [dim, m]
        step = min(_BLOCK_ROWS, _BLOCK_PRODUCTS // len(some))
        products = np.empty((min(step, len(rows)), len(some)), np.float32)
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            given = np.matmul(features(part), columns, out=products[: len(part)]), part, some, error, planes, near

            def work(first: int, end: int, given: tuple[Any, ...] = given) -> None:
                offer_near(first, end, *given)

            in_parallel(work, len(part), least=_ROWS_PER_THREAD)


@compiled()
def kth_largest(values: Array, best: Array) -> Any:
    """The k-th largest of values, -inf of fewer; best, float32 [k]: the k largest, ascending."""
    best[:] = -np.inf
    for value in values:
        if value > best[0]:
            place = 1
            while place < len(best) and best[place] < value:
                best[place - 1] = best[place]
                place += 1
            best[place - 1] = value
    return best[0]


@compiled()
def offer_near(
    begin: int, end: int, products: Array, rows: Array, labels: Array, error: Any, planes: Planes, near: Table
) -> None:
    """Offer labels, ascending, to rows[begin:end] by their products [n, m], of which each is off by `error` at most."""
    coarse, rest, step, _, centre = planes
    _, ids, neighbours, similarities = near
    k = neighbours.shape[1]
    best = np.empty(k, np.float32)
    for i in range(begin, end):
        row = rows[i]
        own = np.searchsorted(labels, row)
        if own < len(labels) and labels[own] == row:
            products[i, own] = -np.inf
        bar = max(kth_largest(products[i], best) - 2 * error, similarities[row, k - 1] - error)
        for j in range(len(labels)):
            if products[i, j] >= bar and labels[j] != row:
                similarity = exact_similarity(coarse, rest, step, centre, row, labels[j])
                insert(neighbours, similarities, ids, row, labels[j], similarity)
