"""Keep the classes in balance: a queue for each class, merged by how many labels its class has.

Each unlabelled task waits in one queue, best first:

    0 … C-1   of the class that it is likeliest to be of
    C         while a class has no label yet: tasks spread over the pool (`ranking.cover`), to find it
    C + 1     set aside: somebody has answered without a label; all others come first

With quality q in [0, 1], n_c labels of its class c and j better tasks in its queue, a task's priority is

    priority = √q · (1 + n_least) / (1 + n_c + j)         n_least = the fewest labels that a queue's class has

Sorting by it queries the classes with few labels first. Each task queried from a queue counts as if it had a label of
that class. A class whose tasks have low quality (one that is rare in the pool) still waits. The √ weighs quality
against balance: four times the quality makes up for twice the labels.

The queue C counts as having n_C = labels / (m + 1) · max(1, labels / (50 C)) labels, m = classes that have any: the
classes not yet seen share one part of the labels, and less of them when many labels have not found them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.formulas import ASIDE
from neat_backend.ranking.kernels import compiled, in_parallel

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Queues = NDArray[np.int16]


def priorities(quality: Floats, queue: Queues, place: Ids, counts: Floats) -> Floats:
    """Priorities of tasks with these qualities and places in these queues: float64 [n] in [0, 1].

    counts: as `label_counts`.
    """
    c = len(counts) - 2
    waiting = counts[:c][counts[:c] > 0]
    least = min([*waiting.tolist(), *([counts[c]] if len(waiting) < c else [])], default=0.0)
    share = np.sqrt(quality) * np.minimum((1 + least) / (1 + counts[queue] + place), 1.0)
    return banded(share, queue == c + 1)


def banded(share: Floats, aside: NDArray[np.bool_]) -> Floats:
    """Those set aside below all others, both in their order: float64 [n] in [0, 1), with room above for a draw."""
    return np.where(aside, share * ASIDE, 2 * ASIDE + share * (1 - 3 * ASIDE))


def places(quality: Floats, queue: Queues, ids: Ids) -> Ids:
    """How many others of its queue are better, ties to the smaller id: int64 [n]."""
    order = np.lexsort((ids, -quality, queue))
    starts = np.searchsorted(queue[order], queue[order])
    found = np.empty(len(ids), np.int64)
    found[order] = np.arange(len(ids)) - starts
    return found


def best_of_each(
    n: int, quality: Floats, queue: Queues, open_rows: NDArray[np.bool_], ids: Ids, n_queues: int
) -> NDArray[np.int32]:
    """Rows of the n best open tasks of each queue, in no order; one pass over all rows."""

    def work(begin: int, end: int) -> NDArray[np.int32]:
        heaps = np.empty((n_queues, n), np.int32)
        sizes = np.zeros(n_queues, np.int64)
        _best_of_each(begin, end, quality, queue, open_rows, ids, heaps, sizes)
        return np.concatenate([heap[:size] for heap, size in zip(heaps, sizes.tolist(), strict=True)])

    return np.concatenate(in_parallel(work, len(ids)))


@compiled()
def _best_of_each(
    begin: int, end: int, quality: Any, queue: Any, open_rows: Any, ids: Any, heaps: Any, sizes: Any
) -> None:
    """Each queue's best rows of begin..end, as a heap with the worst on top."""
    n = heaps.shape[1]
    for row in range(begin, end):
        if not open_rows[row]:
            continue
        heap = heaps[queue[row]]
        size = sizes[queue[row]]
        if size < n:  # sift up
            at = size
            sizes[queue[row]] = size + 1
            while at > 0:
                above = heap[(at - 1) // 2]
                if not _worse(row, above, quality, ids):
                    break
                heap[at] = above
                at = (at - 1) // 2
            heap[at] = row
        elif _worse(heap[0], row, quality, ids):  # sift down from the top
            at = 0
            while 2 * at + 1 < n:
                below = 2 * at + 1
                if below + 1 < n and _worse(heap[below + 1], heap[below], quality, ids):
                    below += 1
                if not _worse(heap[below], row, quality, ids):
                    break
                heap[at] = heap[below]
                at = below
            heap[at] = row


@compiled()
def _worse(row: int, other: int, quality: Any, ids: Any) -> bool:
    if quality[row] != quality[other]:
        return quality[row] < quality[other]
    return ids[row] > ids[other]


def better(
    quality: Floats, queue: Queues, open_rows: NDArray[np.bool_], ids: Ids, of: tuple[Floats, Queues, Ids]
) -> Ids:
    """For tasks with these qualities, queues and ids: how many open rows of their queues are better, int64 [m]."""
    order = np.lexsort((-of[2], of[0], of[1]))  # by queue, the worst first
    sorted_of = of[0][order], of[1][order], of[2][order]

    def work(begin: int, end: int) -> Ids:
        passed = np.zeros(len(order) + 1, np.int64)
        _count_better(begin, end, quality, queue, open_rows, ids, sorted_of, passed)
        return passed

    counted: Ids = np.sum(in_parallel(work, len(ids)), axis=0)
    # A row that is better than `m` of a queue's tasks was counted at the last of them: add up from the best down.
    found = np.zeros(len(order), np.int64)
    for number in np.unique(sorted_of[1]):
        at = np.flatnonzero(sorted_of[1] == number)
        found[order[at]] = np.cumsum(counted[at][::-1])[::-1]
    return found


@compiled()
def _count_better(
    begin: int, end: int, quality: Any, queue: Any, open_rows: Any, ids: Any, of: tuple[Any, Any, Any], passed: Any
) -> None:
    """passed[i]: rows whose best beaten task, of those sorted by queue and quality, is the i-th."""
    of_quality, of_queue, of_ids = of
    for row in range(begin, end):
        if not open_rows[row]:
            continue
        low, high = 0, len(of_queue)
        while low < high:  # the first task that is not beaten
            middle = (low + high) // 2
            if of_queue[middle] != queue[row]:
                beaten = of_queue[middle] < queue[row]
            elif of_quality[middle] != quality[row]:
                beaten = of_quality[middle] < quality[row]
            else:
                beaten = of_ids[middle] > ids[row]
            if beaten:
                low = middle + 1
            else:
                high = middle
        if low > 0 and of_queue[low - 1] == queue[row]:
            passed[low - 1] += 1
