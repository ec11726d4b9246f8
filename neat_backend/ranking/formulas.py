"""The method's formulas, once, in plain NumPy: what is compiled elsewhere is tested against these.

The web process imports them, so this module imports neither PyTorch nor FAISS nor numba.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

KnownRule = Literal["all", "majority"]
Floats = NDArray[np.float64]

ASIDE = 2.0**-20  # priorities of tasks that are set aside lie below this, all others above
SEARCHED_FOR = 50  # labels for each class, after which the search for unseen ones gets rarer


def inconsistency(votes: npt.ArrayLike, probabilities: npt.ArrayLike | None) -> Floats:
    """Inconsistency between the classifier and the neighbours' votes, Eq. 5: float64 [n].

    I = -sum_c P[c] log softmax(V)[c] = logsumexp(V) - P·V, in (0, max_inconsistency]; 0 only where there is one class.
    votes: [n, C], how many neighbours each class has. probabilities: [n, C], rows sum to 1; None = uniform.
    """
    counts = np.asarray(votes, np.float64)
    chances = np.full(counts.shape, 1 / counts.shape[1]) if probabilities is None else np.asarray(probabilities, float)
    most = counts.max(axis=1)  # e^V itself overflows above 709
    voted = np.log(np.exp(counts - most[:, None]).sum(axis=1))
    return np.maximum(most + voted - (chances * counts).sum(axis=1), 0.0)


def max_inconsistency(k: int, n_classes: int) -> float:
    """The largest inconsistency there can be, log(e^k + C - 1): all k votes for a class of probability 0."""
    return k + math.log1p((n_classes - 1) * math.exp(-k))


def scaled(inconsistency: npt.ArrayLike, k: int, n_classes: int) -> Floats:
    """J = I / max_inconsistency: float64 [n] in [0, 1]."""
    return np.minimum(np.asarray(inconsistency, np.float64) / max_inconsistency(k, n_classes), 1.0)


def is_candidate(known: npt.ArrayLike, invalid: npt.ArrayLike, rule: KnownRule) -> NDArray[np.bool_]:
    """Which tasks are presumed to be of a known class (Algorithm 1, line 8): bool [n].

    known, invalid: [n], how many of the nearest labelled tasks are so. "all": every one is known (the paper).
    "majority": known ones outnumber invalid ones (the authors' code). While fewer than k tasks are labelled, those that
    are decide; with none, nothing is a candidate. Raises ValueError for another rule.
    """
    known, invalid = np.asarray(known), np.asarray(invalid)
    if rule == "all":
        return (invalid == 0) & (known > 0)
    if rule == "majority":
        return known > invalid
    raise ValueError(f"known rule {rule!r} is neither 'all' nor 'majority'")


def priority(
    inconsistency: npt.ArrayLike, known: npt.ArrayLike, candidate: npt.ArrayLike, k: int, n_classes: int
) -> Floats:
    """One number in [0, 1] to order the pool by, higher = label first: float64 [n].

    Candidates come first, by inconsistency: 0.5 + 0.5 J; the others by known neighbours, then by inconsistency:
    0.5 (n_known + J) / (k + 1).
    """
    share = scaled(inconsistency, k, n_classes)
    return np.where(candidate, 0.5 + 0.5 * share, 0.5 * (np.asarray(known) + share) / (k + 1))


def quality(inconsistency: npt.ArrayLike, known_chance: npt.ArrayLike, k: int, n_classes: int) -> Floats:
    """Expected value of a label for each task, before the classes are balanced: float64 [n] in [0, 1].

    known_chance [n] · J: the probability that the task is of a known class, times its scaled inconsistency. NEAT's two
    parts (detection, Eq. 5) with a probability in place of the rule.
    """
    return np.asarray(known_chance) * scaled(inconsistency, k, n_classes)


def label_counts(counts: NDArray[np.int64], labels: int) -> Floats:
    """Number of labels that each queue counts as having (see `queues.py`): float64 [C + 2].

    counts: int64 [C], labels of each class; labels: all of them, with the invalid ones.
    """
    seen = int((counts > 0).sum())
    rarer = max(1.0, labels / (SEARCHED_FOR * max(len(counts), 1)))
    return np.array([*counts.tolist(), labels / (seen + 1) * rarer, 0.0])
