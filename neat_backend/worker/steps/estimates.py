"""How many known images the pool still holds, estimated from the labels of tasks that were drawn at random.

The order goes for known images, so its labels are no sample of the pool; the random draws (`ranking.draws`) are. The
linear head's chance of a known class is corrected by one number a, for which they are enough:

    logit P(known | task) = logit(chance of the head) + a

a has a prior, Student's t with 3 degrees of freedom around -0.8 with scale 0.8: the head learns mostly from what the
order has chosen, so it takes too much for known. The likelihood is that of the draws' labels, each with the chance by a
head that has not learnt it (five folds). Known ones in the pool are a sum of independent labels for each a, near enough
a normal distribution; the range is that of the mixture over a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, ndtr

from neat_backend.ranking.linear import fit_head
from neat_backend.ranking.scores import INVALID

Floats = NDArray[np.float64]

FOLDS = 5
LEAST_DRAWS = 5  # labelled; below it, nothing is estimated
LEAST_OF_EACH = 2  # known and invalid labels, for the head to separate them; below it, all tasks are alike
MOST_TAUGHT = 2000  # labels that the folds' heads learn from; of more, a sample with all draws
SHIFTS = np.linspace(-10, 10, 401)  # a
CENTRE, SCALE, FREEDOM = -0.8, 0.8, 3  # of a's prior
TAIL = 0.025  # on either side of the range
_LEAST_CHANCE = 1e-5  # nearer to 0 or 1, a chance is beyond single precision
_BINS = 577  # of the pool's log-odds, 0.04 wide


@dataclass(frozen=True)
class Drawn:
    """The labelled random draws, by heads that have not learnt them."""

    logits: Floats  # [m] log-odds of a known class
    known: NDArray[np.bool_]  # [m] the label
    tested: int  # known ones for which a head has named a class
    right: int  # of these


@dataclass(frozen=True)
class Estimate:
    """Known images among the unlabelled: the median, its 95 % range, and those expected in the next batch."""

    known: float
    low: float
    high: float
    wanted: float


def log_odds(chance: NDArray[np.floating]) -> Floats:
    """Of chances [n], kept finite."""
    inside = np.clip(chance.astype(np.float64), _LEAST_CHANCE, 1 - _LEAST_CHANCE)
    return np.asarray(np.log(inside / (1 - inside)), np.float64)


def enough_of_each(codes: NDArray[np.integer]) -> bool:
    """Whether a head can learn from labels [m] to separate known from invalid."""
    return min(int((codes >= 0).sum()), int((codes == INVALID).sum())) >= LEAST_OF_EACH


def score_draws(
    features: NDArray[np.float32],
    codes: NDArray[np.integer],
    classes: Sequence[str],
    draws: NDArray[np.bool_],
    rng: np.random.Generator,
) -> Drawn:
    """Score the draws among all labelled tasks: features [m, d], codes [m] (class or INVALID), draws [m].

    Folds are stratified by code. Where nothing separates known from invalid, log-odds are 0.
    """
    if len(codes) > MOST_TAUGHT:
        others = rng.permutation(np.flatnonzero(~draws))[: max(MOST_TAUGHT - int(draws.sum()), 0)]
        taken = np.sort(np.concatenate([np.flatnonzero(draws), others]))
        features, codes, draws = features[taken], codes[taken], draws[taken]
    m, separates = len(codes), enough_of_each(codes)
    fold = np.empty(m, np.int64)
    fold[np.lexsort((rng.permutation(m), codes))] = np.arange(m) % FOLDS
    logits, predicted = np.zeros(m), np.full(m, -1, np.int64)
    for number in range(FOLDS):
        held_out, kept = np.flatnonzero(draws & (fold == number)), fold != number
        head = fit_head(features[kept], codes[kept], classes) if len(held_out) else None
        if head is not None:
            probabilities, chance = head.predict(features[held_out])
            predicted[held_out] = probabilities.argmax(axis=1)
            if separates:
                logits[held_out] = log_odds(chance)
    tested = draws & (codes >= 0) & (predicted >= 0)
    right = int((predicted[tested] == codes[tested]).sum())
    return Drawn(logits[draws], codes[draws] >= 0, int(tested.sum()), right)


def known_left(drawn: Drawn, pool: Floats, wanted: Floats) -> Estimate | None:
    """Estimate how many of the unlabelled tasks are of known classes; None = too few draws.

    pool [n]: log-odds of a known class by the head of all labels; wanted: those of some tasks, counted apart.
    """
    if len(drawn.known) < LEAST_DRAWS:
        return None
    weights = posterior(drawn)
    counts, edges = np.histogram(pool, _BINS, (-0.02 * _BINS, 0.02 * _BINS))
    chances = expit((edges[:-1] + edges[1:]) / 2 + SHIFTS[:, None])  # [shifts, bins]
    mean, deviation = chances @ counts, np.sqrt((chances * (1 - chances)) @ counts)
    low, median, high = (_quantile(share, weights, mean, deviation, len(pool)) for share in (TAIL, 0.5, 1 - TAIL))
    apart = float(weights @ expit(wanted + SHIFTS[:, None]).sum(axis=1))
    return Estimate(median, float(np.floor(low)), float(min(np.ceil(high), len(pool))), apart)


def posterior(drawn: Drawn) -> Floats:
    """Of each of SHIFTS, sums to 1."""
    prior = -(FREEDOM + 1) / 2 * np.log1p(((SHIFTS - CENTRE) / SCALE) ** 2 / FREEDOM)
    signs = np.where(drawn.known, 1.0, -1.0)
    likelihood = log_expit(signs * (drawn.logits + SHIFTS[:, None])).sum(axis=1)
    found = np.exp(prior + likelihood - (prior + likelihood).max())
    return np.asarray(found / found.sum(), np.float64)


def _quantile(share: float, weights: Floats, mean: Floats, deviation: Floats, most: int) -> float:
    """Of the mixture of normal distributions, within [0, most], by bisection."""
    low, high = 0.0, float(most)
    for _ in range(50):
        middle = (low + high) / 2
        if weights @ ndtr((middle - mean) / np.maximum(deviation, 1e-9)) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2
