"""neat_plus: the pool as a standing background class, a calibrated p(known), and a batch that covers what is uncertain.

One query:

1.  z(x), how much more like known samples than like the pool and the invalid ones x is (`plus_detector`).
2.  Gate: x may be asked about when z(x) ≥ the 10 % quantile of z over the labelled known samples, as many as would
    admit nine of ten known samples of the pool if the labelled ones stood for them. Wide on purpose: what lies
    closest to the labelled set is pure and teaches nothing. At least 2B are let in.
3.  p(known | z), fitted to the answers so far.
4.  u(x) = 1 - (P₁ - P₂) + 0.05, P₁ and P₂ being the classifier's two largest probabilities (margin sampling, Scheffer
    et al. 2001; the 0.05 leaves sure samples a little to say). Without a classifier u is the same for all.
5.  Greedy facility location (Wei, Iyer and Bilmes, ICML 2015) over a random part of the gate: each choice c has the
    largest p(c)^γ u(c) · Σ_x p(x)^γ u(x) · max(0, s(x, c) - the largest similarity of x to a labelled known sample or
    to an earlier choice). Early, when little is covered, it spreads; later what is left uncovered is what u singles
    out.
6.  γ follows the precision that queries really had: 1 at first, doubled after one below 0.7, halved after one above
    0.8. A classifier that is sure of nearly all known samples is uncertain about the unknown ones: then purity has
    to weigh more; where most answers are known anyway it can weigh less.

7.  A class without a label looks like what is unknown. While there are any, their share of the batch is spread by the
    same greedy choice, all weights 1, over what lies outside the gate and is far from all that is labelled. A class
    with one or two labels gets its share of the samples nearest to them.

`neat_plus-PART-…` is the same without those of PARTS: `docs/neat-plus.md` has the measurements, and what was tried and
dropped. `pool.k`, `pool.rule` and `pool.cut` belong to NEAT and are not used; neither is the learner.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import SettingsError
from neat_backend.ranking.pool import UNLABELLED, Indices, Past, Pool, Select
from neat_backend.strategies import plus_choice, plus_detector

Floats = NDArray[np.float64]

LEFT_OUT = 0.1  # share of the labelled known samples below the gate
LEAST_UNCERTAIN = 0.05
PRECISION_WANTED = (0.7, 0.8)  # of a query
MOST_PURITY = 64.0  # γ lies between this and its reciprocal
PURITY_STEP = 2.0  # what γ is multiplied or divided by after a query that missed it
RARE = 3  # labels; a class with fewer gets its share of the batch whatever z says
HEAD = 1000  # candidates compared with one another, or HEAD_BATCHES · B if that is more
HEAD_BATCHES = 3
PARTS = (*plus_detector.PARTS, "gate", "p", "feedback", "uncertainty", "cover", "rare")  # what can be left out


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """B offered samples in the order of the greedy choice; see the module."""
    return _select(pool, batch_size, rng, frozenset(PARTS))


def without(parts: Sequence[str]) -> Select:
    """The same with some of PARTS left out. Raises SettingsError for what is none of them.

    odds, ratio, background, invalid: see plus_detector.detection_score. gate: all may be asked about. p: it weighs 1
    for all. feedback: γ = 1. uncertainty: u = 1. cover: the B with the largest p^γ u, at random where these are all
    alike. rare: no share for classes with few labels.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise SettingsError(f"neat_plus has no part {unknown[0]!r}: {', '.join(PARTS)}")
    kept = frozenset(PARTS) - set(parts)
    return lambda pool, batch_size, rng: _select(pool, batch_size, rng, kept)


def _select(pool: Pool, batch_size: int, rng: np.random.Generator, parts: frozenset[str]) -> Indices:
    """The generator draws the part of the gate that is compared, and nothing else of the whole method.

    Before any known sample is labelled there is nothing to tell known from unknown by: then those most like a class
    name come first, or, where the encoder reads no text, a random sample that covers the pool.
    """
    size = min(batch_size, len(pool.offered))
    if not size:
        return pool.offered[:0].copy()
    if not len(pool.known):
        return _without_known(pool, size, rng)
    behind = plus_detector.background(pool)
    score = plus_detector.detection_score(pool, behind, parts)
    unlabelled = behind[pool.labels[behind] == UNLABELLED]
    p = plus_detector.probability_known(score, pool.known, pool.invalid, unlabelled)
    admitted: Indices = np.arange(len(pool.offered))
    if "gate" in parts:
        admitted = gate(score[pool.offered], score[pool.known], size)
    explored = pool.offered[:0]
    if "rare" in parts:
        explored = _explored(pool, np.delete(pool.offered, admitted), size, rng)
        explored = np.concatenate([explored, _of_rare_classes(pool, explored, size)])[:size]
    offered = np.setdiff1d(pool.offered[admitted], explored)
    head = _sample(offered, max(HEAD, HEAD_BATCHES * size), rng) if "cover" in parts else offered
    value: Floats = np.ones(len(head))
    if "p" in parts:
        value = p[head] ** (purity_weight(pool.past) if "feedback" in parts else 1.0)
    if "uncertainty" in parts:
        value = value * uncertainty(pool.probabilities(head))
    if "cover" in parts:
        covered = (pool.features[head] @ pool.features[pool.known].T).max(axis=1)
        best = head[_cover(pool, head, value, value, covered, size - len(explored))]
    else:
        best = head[np.lexsort((rng.random(len(head)), -value))[: size - len(explored)]]
    return np.concatenate([best, explored])


def _explored(pool: Pool, outside: Indices, size: int, rng: np.random.Generator) -> Indices:
    """Samples outside the gate that cover what no labelled one does, in the share of classes without any label."""
    missing = pool.n_classes - len(np.unique(pool.labels[pool.known]))
    wanted = min(round(size * missing / pool.n_classes), len(outside))
    if not wanted:
        return outside[:0]
    head = _sample(outside, max(HEAD, HEAD_BATCHES * wanted), rng)
    covered = (pool.features[head] @ pool.features[pool.labelled].T).max(axis=1)
    even = np.ones(len(head))
    return head[_cover(pool, head, even, even, covered, wanted)]


def _of_rare_classes(pool: Pool, taken: Indices, size: int) -> Indices:
    """For each class with a label but fewer than RARE, its share of the batch: those nearest to its labels."""
    counts = np.bincount(pool.labels[pool.known], minlength=pool.n_classes)
    found = taken
    for code in np.flatnonzero((counts > 0) & (counts < RARE)) if pool.n_classes > 1 else ():
        left = np.setdiff1d(pool.offered, found)
        nearness = (pool.features[left] @ pool.features[pool.labels == code].T).max(axis=1, initial=-1)
        found = np.concatenate([found, left[np.argsort(-nearness, kind="stable")[: round(size / pool.n_classes)]]])
    return found[len(taken) :]


def purity_weight(past: tuple[Past, ...]) -> float:
    """γ, the exponent of p(known), from the precision of all queries so far."""
    low, high = PRECISION_WANTED
    weight = 1.0
    for query in past:
        if not len(query.answers):
            continue
        precision = np.count_nonzero(query.answers >= 0) / len(query.answers)
        weight *= PURITY_STEP if precision < low else 1 / PURITY_STEP if precision > high else 1.0
    return float(np.clip(weight, 1 / MOST_PURITY, MOST_PURITY))


def gate(offered: Floats, known: Floats, size: int) -> Indices:
    """Places of the offered scores [u] at or above the LEFT_OUT quantile of the known ones, ascending.

    Where fewer than 2 · size are, the best 2 · size; ties go to the smaller place.
    """
    admitted = np.flatnonzero(offered >= np.quantile(known, LEFT_OUT))
    if len(admitted) < 2 * size:
        admitted = np.sort(np.argsort(-offered, kind="stable")[: 2 * size])
    return admitted


def uncertainty(probabilities: Floats) -> Floats:
    """u = 1 - (P₁ - P₂) + LEAST_UNCERTAIN of each row of [m, C]: float64 [m]; with one class, LEAST_UNCERTAIN."""
    if probabilities.shape[1] < 2:
        return np.full(len(probabilities), LEAST_UNCERTAIN)
    largest = -np.partition(-probabilities, 1, axis=1)[:, :2]
    uncertain: Floats = 1 - (largest[:, 0] - largest[:, 1]) + LEAST_UNCERTAIN
    return uncertain


def _without_known(pool: Pool, size: int, rng: np.random.Generator) -> Indices:
    if pool.class_features is not None:
        likeness = (pool.features[pool.offered] @ pool.class_features.T).max(axis=1)
        return pool.offered[np.argsort(-likeness, kind="stable")[:size]]
    head = _sample(pool.offered, max(HEAD, HEAD_BATCHES * size), rng)
    even = np.ones(len(head))
    return head[_cover(pool, head, even, even, np.zeros(len(head), np.float32), size)]


def _sample(indices: Indices, size: int, rng: np.random.Generator) -> Indices:
    return indices if len(indices) <= size else np.sort(rng.choice(indices, size, replace=False))


def _cover(
    pool: Pool, head: Indices, weight: Floats, worth: Floats, covered: NDArray[np.float32], size: int
) -> Indices:
    similarities = pool.features[head] @ pool.features[head].T  # [m, m]
    np.fill_diagonal(similarities, 1)
    return plus_choice.cover(similarities, weight, worth, covered, size)
