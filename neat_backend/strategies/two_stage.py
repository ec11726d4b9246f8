"""Purity first, information second: the choice that EAOA and E2OAL have in common.

For each known class, of the samples that are predicted to be of it, the purest become candidates; of these the most
informative are queried.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.pool import Indices, Past

Floats = NDArray[np.float64]


def choose(
    predicted: Indices,
    purity: Floats,
    information: Floats,
    n_classes: int,
    kept: int,
    size: int,
    rng: np.random.Generator,
) -> Indices:
    """Places of `size` of m samples, size ≤ m: the chosen by falling information, then what fills up.

    predicted, purity, information: [m]; a prediction ≥ n_classes is none of the known classes. Of each class the
    `kept` purest are candidates, and its share is the ⌈size / n_classes⌉ most informative of these. More than `size`
    in all are cut at random, as in the authors' codes; where classes have fewer than their share, the purest others of
    the known classes fill up, then the purest of all. Ties go to the smaller place.
    """
    share = -(-size // n_classes)
    found: list[Indices] = []
    for label in range(n_classes):
        own = np.flatnonzero(predicted == label)
        candidates = own[np.argsort(-purity[own], kind="stable")[:kept]]
        found.append(candidates[np.argsort(-information[candidates], kind="stable")[:share]])
    chosen = np.concatenate(found)
    if len(chosen) > size:
        chosen = rng.permutation(chosen)[:size]
    chosen = chosen[np.argsort(-information[chosen], kind="stable")]
    left = np.setdiff1d(np.arange(len(purity)), chosen)
    order = np.lexsort((-purity[left], predicted[left] >= n_classes))
    return np.concatenate([chosen, left[order[: size - len(chosen)]]])


def precisions(past: tuple[Past, ...]) -> Iterator[float]:
    """Of each earlier query that got answers, oldest first: the share of them that are of a known class."""
    for query in past:
        if len(query.answers):
            yield float((query.answers >= 0).mean())
