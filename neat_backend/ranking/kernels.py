"""The inner loops of the neighbour table, compiled by numba: one row of the pool at a time, all in one pass.

A stored feature is, in units of the 2^-22 grid, x = centre + coarse·step + rest with an int8 `coarse`, an int16
`rest` and one `step` for each row. Only `coarse` is read for every row: a quarter of single precision. With
R = |rest·2^-22| a similarity is bounded by

    x·y ≤ centre·y + step·(coarse·y) + R·|y|                                           (Cauchy-Schwarz on the rest)

and, from a still shorter *sketch* (coordinates q·s along the pool's principal directions D, q int8), by

    x·y ≤ c·y + x̃·c + s·(q·Dᵀỹ) + |Dᵀx̃ - q·s|·|Dᵀỹ| + |x̃ - DDᵀx̃|·|ỹ - DDᵀỹ|       x̃ = x - c, ỹ = y - c

A row whose bound stays below its K-th similarity keeps its neighbours; for the others the similarity is computed
in float64, where it is exact: products are multiples of 2^-44 and sums below 2^4. Threads take rows of their own.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numba
import numpy as np
from numba.core.caching import FunctionCache

from neat_backend.models.grid import GRID

log = logging.getLogger(__name__)

Array = Any  # numpy arrays; numba compiles for their exact types
_ROWS_PER_THREAD = 8192  # for fewer, another thread doesn't pay
# Single precision loses at most a unit in the last place for each product summed (Higham, Accuracy and
# Stability, 3.1); sums here are at most 4 in magnitude, whatever the order. Float32 bounds add a few roundings.
SINGLE = 4 * 2.0**-23
NONE = -1


# The kernels unpack these records before their loops: numba counts references at each access.
class Planes(NamedTuple):
    """The stored features, one row each: n rows of d values, as above."""

    coarse: Array  # int8 [n, d]
    rest: Array  # int16 [n, d]
    step: Array  # int32 [n], grid units
    residual: Array  # float32 [n], length of the rest, rounded up
    centre: Array  # float64 [d], grid units


class Sketched(NamedTuple):
    """The rows' sketches, float32 [n] but for the coordinates."""

    coarse: Array  # int8 [n, p]
    step: Array
    error: Array  # length of the rounding
    left_out: Array  # length of what the directions leave out
    along: Array  # product with the centre


class Table(NamedTuple):
    """Each row's task and its nearest labelled rows."""

    alive: Array  # bool [n]
    ids: Array  # int64 [n]
    neighbours: Array  # int32 [n, k], nearest first, NONE where there is none
    similarities: Array  # float32 [n, k], -inf where there is none


class Query(NamedTuple):
    """A label to offer."""

    label: Any  # its row
    base: Any  # centre·y
    norm: Any  # |y|
    slack: Any  # error of a bound in single precision


class Short(NamedTuple):
    """A label's sketch."""

    along: Array  # Dᵀỹ, float32 [p]
    norm: float  # its length
    left_out: float  # |ỹ - DDᵀỹ|
    slack: float


def compiled(fastmath: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """numba's njit without the GIL; the machine code is kept on disk where there is a place to keep it."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        made = numba.njit(nogil=True, fastmath=fastmath)(function)
        # RuntimeError: neither the source's folder nor the user's cache is writable.
        with contextlib.suppress(RuntimeError):
            made._cache = _MachineCode(function)  # type: ignore[attr-defined] # as cache=True does, with numba's own class
        return made

    return decorate


class _MachineCode(FunctionCache):
    """Numba's cache; a file that it can't read or write costs a compilation and nothing else.

    Numba does not sync its files: a power cut soon after the first start leaves empty ones, and each later start would
    fail with EOFError. A full disk must not stop labels either.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # unpickling a truncated file can raise any error
            log.warning("compiled code in %s can't be read (%s): compiling anew", self.cache_path, error)
            with contextlib.suppress(OSError):
                self.flush()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            log.warning("compiled code can't be kept in %s: %s", self.cache_path, error)
        except Exception as error:  # its index is truncated
            log.warning("compiled code in %s is damaged (%s)", self.cache_path, error)


@cache
def _threads() -> tuple[int, ThreadPoolExecutor]:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return count, ThreadPoolExecutor(count, thread_name_prefix="rows")


def in_parallel(work: Callable[[int, int], Any], n: int, least: int = _ROWS_PER_THREAD) -> list[Any]:
    """work(begin, end) over 0..n in even parts of at least `least`, one for each core; the results in order."""
    count, pool = _threads()
    parts = max(1, min(count, n // least))
    if parts == 1:
        return [work(0, n)]
    bounds = [n * i // parts for i in range(parts + 1)]
    others = [pool.submit(work, begin, end) for begin, end in pairwise(bounds[1:])]
    first = work(0, bounds[1])  # in this thread: one thread less to start
    return [first, *(other.result() for other in others)]


# float sums in any order: they are exact, or their error is counted
@compiled(fastmath=True)
def rough_product(coarse: Array, row: int, query: Array) -> Any:
    """coarse[row]·query in single precision."""
    total = np.float32(0)
    for j in range(coarse.shape[1]):
        total += np.float32(coarse[row, j]) * query[j]
    return total


@compiled(fastmath=True)
def exact_similarity(coarse: Array, rest: Array, step: Array, centre: Array, row: int, other: int) -> Any:
    """Cosine of two rows: exact, rounded once to float32."""
    scale, other_scale = np.float64(step[row]), np.float64(step[other])
    total = 0.0
    for j in range(coarse.shape[1]):
        value = centre[j] + np.float64(coarse[row, j]) * scale + np.float64(rest[row, j])
        total += value * (centre[j] + np.float64(coarse[other, j]) * other_scale + np.float64(rest[other, j]))
    return np.float32(total * (GRID * GRID))


@compiled()
def insert(neighbours: Array, similarities: Array, ids: Array, row: int, label: int, similarity: Any) -> bool:
    """Insert a label among a row's neighbours, ties by smaller id; False if it is not among the nearest."""
    k = neighbours.shape[1]
    last = neighbours[row, k - 1]
    if last != NONE and (
        similarity < similarities[row, k - 1] or (similarity == similarities[row, k - 1] and ids[label] > ids[last])
    ):
        return False
    place = k - 1
    while place > 0:
        before = neighbours[row, place - 1]
        if before != NONE and (
            similarities[row, place - 1] > similarity
            or (similarities[row, place - 1] == similarity and ids[before] < ids[label])
        ):
            break
        neighbours[row, place] = before
        similarities[row, place] = similarities[row, place - 1]
        place -= 1
    neighbours[row, place] = label
    similarities[row, place] = similarity
    return True


@compiled()
def encode(features: Array, rows: Array, planes: Planes) -> int:
    """Store features [n, d]. Returns the index of the first that is off the grid or longer than 1; -1 = all stored."""
    coarse, rest, step, residual, centre = planes
    for i in range(len(rows)):
        largest = 0.0
        for j in range(features.shape[1]):
            steps = np.float64(features[i, j]) / GRID
            if not abs(features[i, j]) <= 1 or steps != np.rint(steps):
                return i
            largest = max(largest, abs(steps - centre[j]))
        row = rows[i]
        scale = max(1.0, np.ceil(largest / 127))
        squares = 0.0
        for j in range(features.shape[1]):
            value = np.rint(np.float64(features[i, j]) / GRID) - centre[j]
            nearest = np.rint(value / scale)
            left = value - nearest * scale
            coarse[row, j] = np.int8(nearest)
            rest[row, j] = np.int16(left)
            squares += left * left
        step[row] = np.int32(scale)
        residual[row] = np.float32(np.sqrt(squares) * GRID * (1 + 1e-6))
    return -1


@compiled()
def decode(rows: Array, planes: Planes, features: Array) -> None:
    """Write the original features of rows into `features`, float32 [n, d]."""
    coarse, rest, step, _, centre = planes
    for i in range(len(rows)):
        row = rows[i]
        scale = np.float64(step[row])
        for j in range(coarse.shape[1]):
            value = centre[j] + np.float64(coarse[row, j]) * scale + np.float64(rest[row, j])
            features[i, j] = np.float32(value * GRID)


@compiled(fastmath=True)
def outputs(begin: int, end: int, rows: Array, weights: Array, biases: Array, planes: Planes, found: Array) -> None:
    """found[i] = weights @ x + biases of the features x of rows[i], i in begin..end; weights float32 [m, d].

    Computed from the original features and summed in a fixed order: a row's values depend neither on its place, nor on
    other rows, nor on the present centre.
    """
    coarse, rest, step, _, centre = planes
    d = coarse.shape[1]
    feature = np.empty(d, np.float32)
    for i in range(begin, end):
        row = rows[i]
        scale = np.float64(step[row])
        for j in range(d):
            value = centre[j] + np.float64(coarse[row, j]) * scale + np.float64(rest[row, j])
            feature[j] = np.float32(value * GRID)
        for c in range(weights.shape[0]):
            total = np.float32(0)
            for j in range(d):
                total += weights[c, j] * feature[j]
            found[i, c] = total + biases[c]


@compiled()
def offer_one(begin: int, end: int, query: Query, feature: Array, planes: Planes, near: Table, touched: Array) -> int:
    """Offer one label with its feature, float32 [d], to rows begin..end.

    Rows that took it are written to touched[begin:]; returns their number.
    """
    count = 0
    coarse, rest, step, residual, centre = planes
    alive, ids, neighbours, similarities = near
    k = similarities.shape[1]
    for row in range(begin, end):
        if not alive[row] or row == query.label:
            continue
        rough = rough_product(coarse, row, feature) * (step[row] * GRID)
        if rough + query.base + residual[row] * query.norm + query.slack < similarities[row, k - 1]:
            continue
        similarity = exact_similarity(coarse, rest, step, centre, row, query.label)
        if insert(neighbours, similarities, ids, row, query.label, similarity):
            touched[begin + count] = row
            count += 1
    return count


@compiled()
def offer_one_sketched(
    begin: int,
    end: int,
    query: Query,
    feature: Array,
    planes: Planes,
    near: Table,
    sketches: tuple[Short, Sketched],
    touched: Array,
) -> tuple[int, int]:
    """As `offer_one`, reading only the rows that the sketch can't exclude; returns their number too."""
    count = 0
    read = 0
    coarse, rest, step, residual, centre = planes
    alive, ids, neighbours, similarities = near
    k = similarities.shape[1]
    short, sketch = sketches
    sketched, sketch_step, error, left_out, along = sketch
    for row in range(begin, end):
        if not alive[row] or row == query.label:
            continue
        kth = similarities[row, k - 1]
        bound = rough_product(sketched, row, short.along) * sketch_step[row] + error[row] * short.norm
        if bound + left_out[row] * short.left_out + along[row] + query.base + short.slack < kth:
            continue
        read += 1
        rough = rough_product(coarse, row, feature) * (step[row] * GRID)
        if rough + query.base + residual[row] * query.norm + query.slack < kth:
            continue
        similarity = exact_similarity(coarse, rest, step, centre, row, query.label)
        if insert(neighbours, similarities, ids, row, query.label, similarity):
            touched[begin + count] = row
            count += 1
    return count, read


@compiled()
def lengths(rows: Array, planes: Planes, length: Array, along: Array) -> None:
    """Of each row's difference from the centre: the length of its int8 part, rounded up, and its product with it."""
    coarse, rest, step, _, centre = planes
    for i in range(len(rows)):
        row = rows[i]
        scale = np.float64(step[row])
        squares, product = 0.0, 0.0
        for j in range(coarse.shape[1]):
            part = np.float64(coarse[row, j]) * scale
            squares += part * part
            product += (part + np.float64(rest[row, j])) * centre[j]
        length[row] = np.float32(np.sqrt(squares) * GRID * (1 + 1e-6))
        along[row] = np.float32(product * (GRID * GRID))


@compiled()
def offer_pairs(
    begin: int, end: int, rows: Array, starts: Array, labels: Array, planes: Planes, near: Table, taken: Array
) -> None:
    """Offer labels[starts[i]:starts[i+1]] to rows[i], for i in begin..end; taken[i]: whether it took any."""
    coarse, rest, step, _, centre = planes
    _, ids, neighbours, similarities = near
    for i in range(begin, end):
        row = rows[i]
        for pair in range(starts[i], starts[i + 1]):
            label = labels[pair]
            if label == row or label == NONE:  # noqa: SIM109 (not for numba)
                continue
            similarity = exact_similarity(coarse, rest, step, centre, row, label)
            taken[i] |= insert(neighbours, similarities, ids, row, label, similarity)


@compiled()
def rows_of_cells(begin: int, end: int, wanted: Array, cells: Array, alive: Array, found: Array) -> int:
    """Write the rows in begin..end of wanted cells to found[begin:]; returns their number. cells: each row's."""
    count = 0
    for row in range(begin, end):
        if alive[row] and wanted[cells[row]]:
            found[begin + count] = row
            count += 1
    return count


@compiled()
def left_by_sketch(
    begin: int, end: int, rows: Array, query: Query, short: Short, sketch: Sketched, near: Table, left: Array
) -> None:
    """left[i]: whether, by the sketch, a label may be among the nearest of rows[i], i in begin..end."""
    sketched, step, error, left_out, along = sketch
    similarities = near.similarities
    k = similarities.shape[1]
    for i in range(begin, end):
        row = rows[i]
        bound = rough_product(sketched, row, short.along) * step[row] + error[row] * short.norm
        bound += left_out[row] * short.left_out + along[row] + query.base + short.slack
        left[i] = bound >= similarities[row, k - 1]


@compiled()
def holders(begin: int, end: int, wanted: Array, neighbours: Array, found: Array) -> int:
    """Write the rows in begin..end with a wanted neighbour to found[begin:]; returns their number."""
    count = 0
    for row in range(begin, end):
        for i in range(neighbours.shape[1]):
            if neighbours[row, i] == NONE:
                break
            if wanted[neighbours[row, i]]:
                found[begin + count] = row
                count += 1
                break
    return count


@compiled(fastmath=True)
def grid_similarity(features: Array, row: int, other: int) -> Any:
    """Cosine of two rows of features on the grid, float32 [n, d]: exact, rounded once to float32."""
    total = 0.0
    for j in range(features.shape[1]):
        total += np.float64(features[row, j]) * np.float64(features[other, j])
    return np.float32(total)


@compiled()
def grid_similarities(begin: int, end: int, features: Array, rows: Array, others: Array, values: Array) -> None:
    """values[i, j] = similarity of rows[i] and others[i, j] for i in begin..end; NONE is left as it is."""
    for i in range(begin, end):
        for j in range(others.shape[1]):
            if others[i, j] != NONE:
                values[i, j] = grid_similarity(features, rows[i], others[i, j])
