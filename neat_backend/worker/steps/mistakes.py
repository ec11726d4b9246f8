"""How likely each label is a mistake, from what the other labels say of its image.

Two witnesses are asked of an image, both without its own label: a linear head fitted to the labels of the other folds,
and its nearest labelled images. "None of these" is an answer like the classes. Their word q is a product of both, with
exponents that are fitted together with the share of mistakes e: a given label y is taken for right with 1 - e, and then
has the probability q(y); or for one of the C other answers given by mistake, all alike. So the likelihood of the labels
is Π ((1 - e) q(y) + e / C), and a label's chance of being a mistake is its second part in the whole. Where images are
hard, q explains labels that the witnesses contradict as well as mistakes do, and e stays 0.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.linear import fit_head
from neat_backend.ranking.scores import INVALID

Floats = NDArray[np.float64]

FOLDS = 5
LEAST_OF_AN_ANSWER = 5  # labels; of fewer nothing is learnt, and nothing is said
LEAST_LABELS = 50
MOST_LABELS = 10_000  # looked at; of more, a sample
FLOOR = -12.0  # of log-probabilities
EVIDENCE = 1.5  # natural logarithm of the likelihood that mistakes must gain, else there are none
LISTED_FROM = 0.5  # chance of being a mistake
MOST_SHARE = 0.15  # of mistakes; where more would be, it is the witnesses that are wrong
# Exponents before any label is seen: the logarithm of their sum is normal around that of USUAL_SUM, which labels
# without mistakes gave on CIFAR-10 and Fashion-MNIST; their ratio is hardly known. Without it, blunt witnesses would
# explain mistakes away.
USUAL_SUM, SPREAD_OF_SUM, SPREAD_OF_RATIO = 2.1, 0.1, 2.0
# What is tried: exponents of either witness, and shares of mistakes, the first of them none.
EXPONENTS = np.exp2(np.arange(-4, 2.5, 0.5))
SHARES = np.concatenate([[0.0], np.geomspace(0.004, 0.4, 20)])


def chances(
    features: NDArray[np.float32],
    codes: NDArray[np.integer],
    nearest: NDArray[np.integer],
    n_classes: int,
    rng: np.random.Generator,
) -> Floats:
    """Of each label the chance that it is a mistake: float64 [n], 0 where nothing can be said.

    features [n, d], unit rows; codes [n], class or INVALID; nearest [n, K]: the labels of each one's nearest labelled
    tasks, itself left out, anything below INVALID = there is none.
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
    """Rows to look at, the likeliest mistake first: no more than there are expected to be."""
    order = np.argsort(-mistaken, kind="stable")[: round(float(mistaken.sum()))]
    return order[mistaken[order] >= LISTED_FROM]


def unseen(
    features: NDArray[np.float32],
    codes: NDArray[np.integer],
    given: NDArray[np.int64],
    m: int,
    rng: np.random.Generator,
) -> Floats:
    """Log-probabilities [n, m] of a head that has not seen the row's own fold."""
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
    """Each label's chance of being a mistake by the likeliest exponents and share; 0 where that gains too little."""
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
