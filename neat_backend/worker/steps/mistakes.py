"""The probability that a label is a mistake, predicted from the other labels.

Two predictors, both without the image's own label: a linear head fitted to the labels of the other folds, and the
nearest labelled images. "None of these" is an answer like the classes. Their joint prediction q is a product of both,
with exponents that are fitted together with the share of mistakes e. A given label y is right with probability 1 - e
and then has the probability q(y); else it is one of the C other answers, all equally likely. So the likelihood of the
labels is Π ((1 - e) q(y) + e / C), and a label's chance of being a mistake is the second term's share of the sum. Where
images are hard, q explains labels that the predictors contradict as well as mistakes do, and e stays 0.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.linear import fit_head
from neat_backend.ranking.scores import INVALID

Floats = NDArray[np.float64]

FOLDS = 5
LEAST_OF_AN_ANSWER = 5  # labels; an answer with fewer is left out
LEAST_LABELS = 50
MOST_LABELS = 10_000  # used; of more, a sample
FLOOR = -12.0  # of log-probabilities
EVIDENCE = 1.5  # least gain in log-likelihood by mistakes, else none are reported
LISTED_FROM = 0.5  # chance of being a mistake
MOST_SHARE = 0.15  # of mistakes; a larger share means that the predictors are wrong
# Prior of the exponents: the logarithm of their sum is normal around that of USUAL_SUM, which labels without mistakes
# gave on CIFAR-10 and Fashion-MNIST; the prior of their ratio is wide. Without it, weak predictors would explain
# mistakes away.
USUAL_SUM, SPREAD_OF_SUM, SPREAD_OF_RATIO = 2.1, 0.1, 2.0
# The grid: exponents of either predictor, and shares of mistakes, the first of them 0.
EXPONENTS = np.exp2(np.arange(-4, 2.5, 0.5))
SHARES = np.concatenate([[0.0], np.geomspace(0.004, 0.4, 20)])


def chances(
    features: NDArray[np.float32],
    codes: NDArray[np.integer],
    nearest: NDArray[np.integer],
    n_classes: int,
    rng: np.random.Generator,
) -> Floats:
    """The probability that each label is a mistake: float64 [n], 0 where it can't be estimated.

    features [n, d], unit rows; codes [n], class or INVALID; nearest [n, K]: the labels of each row's nearest labelled
    tasks, itself left out; anything below INVALID = none.
    """
    found = np.zeros(len(codes))
    answers = np.where(codes == INVALID, n_classes, codes)
    enough = np.bincount(answers, minlength=n_classes + 1) >= LEAST_OF_AN_ANSWER
    rows = np.flatnonzero(enough[answers])
    if len(rows) > MOST_LABELS:
        rows = np.sort(rng.choice(rows, MOST_LABELS, replace=False))
    there = np.unique(answers[rows])
    if len(rows) < LEAST_LABELS or len(there) < 2:
        return found
    given = np.searchsorted(there, answers[rows])
    head = unseen(features[rows], codes[rows], given, len(there), rng)
    found[rows] = _mistaken(head, _votes(nearest[rows], there, n_classes), given)
    return found


def listed(mistaken: Floats) -> NDArray[np.int64]:
    """Rows to check, the likeliest mistake first: at most the expected number of mistakes."""
    order = np.argsort(-mistaken, kind="stable")[: round(float(mistaken.sum()))]
    return order[mistaken[order] >= LISTED_FROM]


def unseen(
    features: NDArray[np.float32],
    codes: NDArray[np.integer],
    given: NDArray[np.int64],
    m: int,
    rng: np.random.Generator,
) -> Floats:
    """Log-probabilities [n, m] of a head fitted without the row's own fold."""
    fold = np.empty(len(given), np.int64)
    for answer in range(m):  # each answer is spread over all folds
        of = rng.permutation(np.flatnonzero(given == answer))
        fold[of] = (np.arange(len(of)) + rng.integers(FOLDS)) % FOLDS
    found = np.full((len(given), m), FLOOR)
    names = [str(code) for code in range(int(codes.max()) + 1)]
    for part in range(FOLDS):
        head = fit_head(features[fold != part], codes[fold != part], names)
        if head is not None:  # its outputs are all the answers, ascending, "none of these" last
            found[fold == part] = _log_shares(features[fold == part] @ head.weights.T + head.biases)
    return np.maximum(found, FLOOR)


def _votes(nearest: NDArray[np.integer], there: NDArray[np.int64], n_classes: int) -> Floats:
    """Logarithms of each answer's share of the neighbours [n, m], half a vote added to each."""
    answers = np.where(nearest == INVALID, n_classes, nearest)
    votes = (answers[:, :, None] == there).sum(axis=1) + 0.5
    found: Floats = np.log(votes / votes.sum(axis=1, keepdims=True))
    return found


def _log_shares(logits: NDArray[np.floating]) -> Floats:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    found: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found


def _mistaken(head: Floats, votes: Floats, given: NDArray[np.int64]) -> Floats:
    """Each label's probability of a mistake by the likeliest exponents and share; 0 where the gain is too small."""
    rows, other = np.arange(len(given)), 1 / (head.shape[1] - 1)
    best = (-np.inf, 0.0, np.ones(len(given)))  # log-likelihood, share, q of the given labels
    without = -np.inf
    for of_head, of_votes in product(EXPONENTS, EXPONENTS):
        q = np.exp(_log_shares(of_head * head + of_votes * votes)[rows, given])
        sharpness = np.log((of_head + of_votes) / USUAL_SUM) / SPREAD_OF_SUM
        prior = (sharpness**2 + (np.log(of_head / of_votes) / SPREAD_OF_RATIO) ** 2) / 2
        likely = np.log(np.outer(1 - SHARES, q) + np.outer(SHARES, np.full(len(q), other)) + 1e-12).sum(axis=1)
        likely -= prior
        at = int(likely.argmax())
        without = max(without, float(likely[0]))
        if likely[at] > best[0]:
            best = float(likely[at]), float(SHARES[at]), q
    likeliest, share, q = best
    if likeliest - without < EVIDENCE or share > MOST_SHARE:
        return np.zeros(len(given))
    found: Floats = share * other / ((1 - share) * q + share * other)
    return found
