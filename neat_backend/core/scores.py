"""How much a task is worth labelling: inconsistency (Eq. 5), the known rule, priority.

All functions take the labels of each task's nearest labelled neighbours as class codes:

    codes  int [n, k]   0 … C-1 = known class, INVALID = labelled invalid, MISSING = fewer than k labelled

Votes are never laid out as an [n, C] matrix: a class without a vote adds e^0 = 1 to the sum of
exponentials, so counting the k neighbours is enough whatever the number of classes.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from neat_backend.core.kernels import compiled, in_parallel

INVALID = -1
MISSING = -2

KnownRule = Literal["all", "majority"]
Floats = NDArray[np.float64]
Codes = NDArray[np.integer]


def known_neighbours(codes: Codes) -> NDArray[np.int64]:
    """How many of each task's neighbours are of a known class: int64 [n]."""
    return np.count_nonzero(codes >= 0, axis=1)


def inconsistency(codes: Codes, probabilities: NDArray[np.floating] | None, n_classes: int) -> Floats:
    """Inconsistency between the classifier and the neighbours' votes, Eq. 5: float64 [n].

    I = -sum_c P[c] log softmax(V)[c] = logsumexp(V) - P·V, with V[c] the number of neighbours of
    class c. It lies in (0, max_inconsistency]; it is 0 only where there is a single class.

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
    votes = np.zeros(k)  # V[c] at the first neighbour of each class c, else 0
    for row in range(begin, end):
        distinct = 0  # classes that have a vote
        agreement = 0.0  # P·V
        most = 0.0
        for i in range(k):
            votes[i] = 0.0
            code = codes[row, i]
            if code < 0:
                continue
            agreement += 1.0 / n_classes if uniform else np.float64(probabilities[row, code])
            count = 0
            first = True
            for j in range(k):
                if codes[row, j] == code:
                    count += 1
                    first = first and j >= i
            if first:
                votes[i] = count
                most = max(most, votes[i])
                distinct += 1
        voted = (n_classes - distinct) * np.exp(-most)  # sum of e^(V[c] - most): e^V itself overflows above 709
        for i in range(k):
            if votes[i] > 0:
                voted += np.exp(votes[i] - most)
        result[row] = max(most + np.log(voted) - agreement, 0.0)


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


def max_inconsistency(k: int, n_classes: int) -> float:
    """The largest inconsistency there can be: all k votes for a class of probability 0."""
    return k + math.log1p((n_classes - 1) * math.exp(-k))  # log(e^k + C - 1), which overflows above 709


def candidates(codes: Codes, rule: KnownRule) -> NDArray[np.bool_]:
    """Which tasks are held to be of a known class (Algorithm 1, line 8): bool [n].

    "all": every labelled neighbour is known (the paper). "majority": known ones outnumber invalid
    ones (the authors' code). While fewer than k tasks are labelled, those there are decide; with none,
    nothing is a candidate.
    """
    known = known_neighbours(codes)
    invalid = np.count_nonzero(codes == INVALID, axis=1)
    if rule == "all":
        return (invalid == 0) & (known > 0)
    if rule == "majority":
        return known > invalid
    raise ValueError(f"known rule {rule!r} is neither 'all' nor 'majority'")


def priority(
    inconsistency: Floats, known: NDArray[np.integer], candidate: NDArray[np.bool_], k: int, n_classes: int
) -> Floats:
    """One number in [0, 1] to order the pool by, higher = label first: float64 [n].

    Candidates come first, by inconsistency: 0.5 + 0.5 J; the others by known neighbours, then by
    inconsistency: 0.5 (n_known + J) / (k + 1); where J = I / max_inconsistency is in [0, 1].
    """
    scaled = np.minimum(inconsistency / max_inconsistency(k, n_classes), 1.0)
    return np.where(candidate, 0.5 + 0.5 * scaled, 0.5 * (known + scaled) / (k + 1))


def quality(inconsistency: Floats, known_chance: NDArray[np.floating], k: int, n_classes: int) -> Floats:
    """What a label of each task is expected to be worth, before the classes are balanced: float64 [n] in [0, 1].

    known_chance [n] · J: the probability that the task is of a known class, times its scaled inconsistency, where
    J = I / max_inconsistency. NEAT's two parts (detection, Eq. 5) with a probability in place of the rule.
    """
    return known_chance * np.minimum(inconsistency / max_inconsistency(k, n_classes), 1.0)
