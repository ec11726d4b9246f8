"""A batch that covers what is uncertain: greedy weighted facility location among a few hundred candidates."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def cover(
    similarities: NDArray[np.float32], weight: Floats, worth: Floats, covered: NDArray[np.float32], size: int
) -> NDArray[np.int64]:
    """`size` of m candidates, in the order of the greedy choice, each the one with the largest gain

        gain(c) = worth(c) · Σ_x weight(x) · max(0, s(x, c) - covered(x))

    similarities: float32 [m, m], symmetric, 1 on the diagonal. weight, worth, covered: [m]; covered(x) is x's
    similarity to the nearest labelled known sample, and grows with each choice to that with the nearest chosen. Ties
    go to the smaller index. Gains only shrink as more is covered, so a candidate is looked at again only when it is
    the best so far by its last known gain (Minoux's accelerated greedy, 1978).
    """
    covered = covered.astype(np.float32)
    mass = weight.astype(np.float32)

    def gain(c: int) -> float:
        return float(worth[c]) * float(np.maximum(similarities[c] - covered, 0) @ mass)

    queue = [(-gain(c), c, 0) for c in range(len(weight))]  # negative gain, candidate, choices when it was computed
    heapq.heapify(queue)
    chosen: list[int] = []
    while queue and len(chosen) < size:
        _, c, when = heapq.heappop(queue)
        if when < len(chosen):
            heapq.heappush(queue, (-gain(c), c, len(chosen)))
            continue
        chosen.append(c)
        covered = np.maximum(covered, similarities[c])
    return np.array(chosen, dtype=np.int64)
