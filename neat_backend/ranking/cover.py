"""The tasks to query before there is any label: spread over the pool, the densest parts first.

Facility location, maximised greedily (Nemhauser, Wolsey and Fisher, 1978): each next task is the one that most raises
the similarity of the sample's tasks to their nearest chosen task. The first tasks lie in the middle of the largest
groups of similar images, however the pool is sorted; outliers come last.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.kernels import compiled

SAMPLE = 2048  # tasks considered, drawn by the seed
MOST = 1024  # tasks in the cover


def greedy_cover(features: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """Places of the first n tasks of the cover, in order: int64 [min(n, m)], for unit features [m, d].

    Lazy evaluation (Minoux, 1978): a task's gain only ever falls, so each step recomputes few gains. Ties go to the
    earlier row.
    """
    chosen = np.empty(min(n, len(features)), np.int64)
    if len(chosen):
        similar = features @ features.T  # [m, m]
        nothing = np.full(len(features), -1.0)  # the smallest possible similarity
        _greedy(similar, similar.sum(axis=1, dtype=np.float64) + len(features), nothing, chosen)
    return chosen


@compiled()
def _greedy(similar: Any, bound: Any, covered: Any, chosen: Any) -> None:
    """bound[i]: upper bound of the gain of i; covered[j]: similarity of j to its nearest chosen task."""
    m = len(covered)
    for step in range(len(chosen)):
        current = -1
        while True:
            best = 0
            for i in range(1, m):
                if bound[i] > bound[best]:
                    best = i
            if best == current:
                break
            gain = 0.0
            for j in range(m):
                if similar[best, j] > covered[j]:
                    gain += similar[best, j] - covered[j]
            bound[best] = gain
            current = best
        chosen[step] = current
        for j in range(m):
            if similar[current, j] > covered[j]:
                covered[j] = similar[current, j]
        bound[current] = -1.0
