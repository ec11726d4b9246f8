"""How much a task is worth labelling: the formulas of `formulas.py`, for many tasks at once.

All functions take the labels of each task's nearest labelled neighbours as class codes:

    codes  int [n, k]   0 … C-1 = known class, INVALID = labelled invalid, MISSING = fewer than k labelled

Votes are never laid out as an [n, C] matrix: a class without a vote adds e^0 = 1 to the sum of
exponentials, so counting the k neighbours is enough whatever the number of classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.formulas import Floats, KnownRule, is_candidate, max_inconsistency, priority, quality
from neat_backend.ranking.kernels import compiled, in_parallel

__all__ = [
    "INVALID",
    "MISSING",
    "Codes",
    "KnownRule",
    "candidates",
    "inconsistency",
    "known_neighbours",
    "max_inconsistency",
    "priority",
    "quality",
    "vote",
]

INVALID = -1
MISSING = -2

Codes = NDArray[np.integer]


def known_neighbours(codes: Codes) -> NDArray[np.int64]:
    """How many of each task's neighbours are of a known class: int64 [n]."""
    return np.count_nonzero(codes >= 0, axis=1)


def inconsistency(codes: Codes, probabilities: NDArray[np.floating] | None, n_classes: int) -> Floats:
    """Eq. 5, `formulas.inconsistency`, compiled: float64 [n].

    codes: int [n, k]. probabilities: [n, C], rows sum to 1; None = uniform (no classifier yet).
    Raises ValueError when a code or the width of the probabilities doesn't fit n_classes.
    """
    if n_classes < 1:
        raise ValueError("inconsistency needs at least one class")
    if codes.size and codes.max() >= n_classes:
        raise ValueError(f"a neighbour has class code {codes.max()}, but there are {n_classes} classes")
    if probabilities is not None and probabilities.shape != (len(codes), n_classes):
        raise ValueError(f"probabilities are {probabilities.shape}, expected {(len(codes), n_classes)}")
    result = np.empty(len(codes))
    given = np.zeros((0, 0), np.float32) if probabilities is None else probabilities
    in_parallel(lambda begin, end: _inconsistency(begin, end, codes, given, n_classes, result), len(codes))
    return result


@compiled()
def _inconsistency(begin: int, end: int, codes: Any, probabilities: Any, n_classes: int, result: Any) -> None:
    """Rows begin..end of the result; probabilities [0, 0] for uniform ones."""
    k = codes.shape[1]
    uniform = probabilities.shape[0] == 0
    shift = np.float64(
        max(k - 700, 0)
    )  # e^V overflows above 709; e^(V - shift) neither does nor vanishes, up to k = 1400
    for row in range(begin, end):
        voted = 0.0  # sum of e^(V[c] - shift) over the classes that have a vote
        distinct = 0
        agreement = 0.0  # P·V
        for i in range(k):
            code = codes[row, i]
            if code < 0:
                continue
            agreement += 1.0 / n_classes if uniform else np.float64(probabilities[row, code])
            votes = 0
            first = True
            for j in range(k):
                if codes[row, j] == code:
                    votes += 1
                    first = first and j >= i
            if first:
                voted += np.exp(votes - shift)
                distinct += 1
        voted += (n_classes - distinct) * np.exp(-shift)
        result[row] = max(shift + np.log(voted) - agreement, 0.0)


def vote(codes: Codes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The class that most of each task's known neighbours have, ties to the smaller code, and how many have it.

    int64 [n] each; class 0 with no votes where no neighbour is known.
    """
    classes, votes = np.zeros(len(codes), np.int64), np.zeros(len(codes), np.int64)
    in_parallel(lambda begin, end: _vote(begin, end, codes, classes, votes), len(codes))
    return classes, votes


@compiled()
def _vote(begin: int, end: int, codes: Any, classes: Any, votes: Any) -> None:
    """Rows begin..end of the result."""
    for row in range(begin, end):
        for i in range(codes.shape[1]):
            code = codes[row, i]
            if code < 0:
                continue
            count = 0
            for j in range(codes.shape[1]):
                count += codes[row, j] == code
            if count > votes[row] or (count == votes[row] and code < classes[row]):
                classes[row], votes[row] = code, count


def candidates(codes: Codes, rule: KnownRule) -> NDArray[np.bool_]:
    """Which tasks are held to be of a known class, by `formulas.is_candidate`: bool [n]."""
    return is_candidate(known_neighbours(codes), np.count_nonzero(codes == INVALID, axis=1), rule)
