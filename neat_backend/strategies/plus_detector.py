"""How likely a sample is of a known class: the pool itself stands in for what is unknown, in every query.

    background   a fixed random sample of the pool, BACKGROUND of them, labelled or not
    η(x)         log odds of "some known class" against "background or invalid", from a softmax regression with
                 C + 1 outputs on the features (E2OAL, CVPR 2026, trains such an output; LfOSA, CVPR 2022, one on
                 answers alone)
    s(x)         density ratio of near neighbours: a - (b + i) / 2, or a - b before anything is invalid, where a, b
                 and i are the mean cosines to the NEIGHBOURS nearest known, background and invalid samples
    z(x)         η and s, each in standard deviations of the background, added
    p(known | z) a logistic curve of z, fitted to the answers and, with soft labels, to the background

For labelled samples η comes from a fit that left them out and s does not count the sample itself, so z means the
same for them as for the pool.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from neat_backend.ranking.pool import UNLABELLED, Indices, Pool

Floats = NDArray[np.float64]

BACKGROUND = 3000
BACKGROUND_FIT = 1000  # of them for η, drawn once; three times as many take three times as long
NEIGHBOURS = 5
FOLDS = 3  # for the η of labelled samples
PENALTY = 0.4  # on half the squared weights, beside the summed loss; features have root mean square length 1
MOST_STEPS = 40
SOFT_LABEL_STEPS = 4
PARTS = ("odds", "ratio", "background", "invalid")  # of the score
_BLOCK_ROWS = 2048
_kept: list[tuple[weakref.ref[Any], bytes, Floats]] = []  # at most one: the features, the background, its b


def background(pool: Pool) -> Indices:
    """The same random sample of the pool in every query, in random order: any part of it is one as well."""
    return np.random.default_rng(0).permutation(len(pool.labels))[:BACKGROUND]


def detection_score(pool: Pool, behind: Indices, parts: Collection[str] = PARTS) -> Floats:
    """z of all samples: float64 [n]. behind: the background. Needs a labelled known sample.

    parts: those of PARTS that are used: odds = η, ratio = s, background = b in s, invalid = invalid samples in both.
    """
    invalid = pool.invalid if "invalid" in parts else pool.invalid[:0]
    used = []
    if "odds" in parts:
        used.append(log_odds(pool, behind, invalid))
    if "ratio" in parts:
        used.append(density_ratio(pool, behind if "background" in parts else behind[:0], invalid))
    unlabelled = behind[pool.labels[behind] == UNLABELLED]
    base = unlabelled if len(unlabelled) else behind
    score = np.zeros(len(pool.labels))
    for part in used:
        score += (part - part[base].mean()) / (part[base].std() or 1.0)
    return score


def density_ratio(pool: Pool, behind: Indices, invalid: Indices) -> Floats:
    """s of all samples: a - (b + i) / 2, or a less the one of them that has samples: float64 [n]."""
    others = [of_background(pool, behind)] if len(behind) else []
    others += [mean_of_nearest(pool, invalid)] if len(invalid) else []
    near_known = mean_of_nearest(pool, pool.known)
    return near_known - sum(others, start=np.zeros(len(near_known))) / max(len(others), 1)


def of_background(pool: Pool, behind: Indices) -> Floats:
    """b of all samples: float64 [n], `mean_of_nearest` of the background.

    It is the same in every query, and the most expensive part of one, so the last answer is kept for as long as the
    array of features exists that it was computed from.
    """
    for features, of, kept in _kept:
        if features() is pool.features and of == behind.tobytes():
            return kept
    found = mean_of_nearest(pool, behind)
    found.flags.writeable = False
    _kept[:] = [(weakref.ref(pool.features), behind.tobytes(), found)]
    return found


def mean_of_nearest(pool: Pool, among: Indices, k: int = NEIGHBOURS) -> Floats:
    """Mean cosine of every sample to the k nearest of `among`, itself apart: float64 [n]; fewer count as they are.

    A sample with no other to compare with gets -1, the least there is.
    """
    columns = pool.features[among]  # [m, d]
    place = np.full(len(pool.labels), -1)
    place[among] = np.arange(len(among))
    means = np.full(len(pool.labels), -1.0)
    if not len(among):
        return means
    for start in range(0, len(means), _BLOCK_ROWS):
        part = slice(start, start + _BLOCK_ROWS)
        cosines = pool.features[part] @ columns.T  # [r, m]
        own = np.flatnonzero(place[part] >= 0)
        cosines[own, place[part][own]] = -np.inf
        width = min(k, len(among))
        best = -np.partition(-cosines, width - 1, axis=1)[:, :width].astype(np.float64)
        count = np.isfinite(best).sum(axis=1)
        sums = np.where(np.isfinite(best), best, 0.0).sum(axis=1)
        means[part] = np.where(count > 0, sums / np.maximum(count, 1), -1.0)
    return means


def log_odds(pool: Pool, behind: Indices, invalid: Indices) -> Floats:
    """η of all samples; that of a labelled one from a fit without its fold: float64 [n].

    Known samples have weight 1 each, invalid ones too, the unlabelled background together as much as the known.
    """
    centre = pool.features[behind].mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = ((pool.features[behind] - centre) ** 2).sum(axis=1, dtype=np.float64).mean()
    scale = np.float32(np.sqrt(spread) or 1.0)
    unlabelled = behind[pool.labels[behind] == UNLABELLED][:BACKGROUND_FIT]
    known = pool.known[np.argsort(pool.labels[pool.known], kind="stable")]  # by class: each fold gets of all
    labelled = np.concatenate([known, invalid])
    targets = np.where(pool.labels[labelled] >= 0, pool.labels[labelled], pool.n_classes)
    rest = (pool.features[unlabelled] - centre) / scale  # [m, d]
    marked = (pool.features[labelled] - centre) / scale  # [l, d]

    def fit(used: Indices, start: Floats | None = None) -> Floats:
        of_background = np.full(len(rest), pool.n_classes)
        share = np.count_nonzero(targets[used] < pool.n_classes) / max(len(rest), 1)
        return fit_softmax(
            np.concatenate([marked[used], rest]),
            np.concatenate([targets[used], of_background]),
            np.concatenate([np.ones(len(used)), np.full(len(rest), share)]),
            pool.n_classes + 1,
            start,
        )

    whole = fit(np.arange(len(labelled)))
    odds = np.empty(len(pool.labels))
    for at in range(0, len(odds), _BLOCK_ROWS):
        odds[at : at + _BLOCK_ROWS] = _known_against_rest(
            (pool.features[at : at + _BLOCK_ROWS] - centre) / scale, whole
        )
    fold = np.arange(len(labelled)) % FOLDS
    for left_out in range(min(FOLDS, len(labelled)) if len(labelled) > 1 else 0):
        held = fold == left_out
        odds[labelled[held]] = _known_against_rest(marked[held], fit(np.flatnonzero(~held), whole))
    return odds


def _known_against_rest(features: NDArray[np.float32], weights: Floats) -> Floats:
    logits = features @ weights[:-1].astype(np.float32) + weights[-1]  # [m, C + 1]
    odds: Floats = logsumexp(logits[:, :-1], axis=1) - logits[:, -1]
    return odds


def fit_softmax(
    features: NDArray[np.float32], targets: Indices, weight: Floats, n_outputs: int, start: Floats | None = None
) -> Floats:
    """Weights and, as the last row, biases [d + 1, n_outputs]; by L-BFGS from `start`, or from zero.

    They minimise Σ weight · cross-entropy + PENALTY/2 ‖weights‖²; the biases are free. features: [m, d].
    """
    m, d = features.shape
    wanted = np.zeros((m, n_outputs))
    wanted[np.arange(m), targets] = 1

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights, biases = flat[: d * n_outputs].reshape(d, n_outputs), flat[d * n_outputs :]
        logits = (features @ weights.astype(np.float32)).astype(np.float64) + biases  # [m, n_outputs]
        logs = logits - logsumexp(logits, axis=1, keepdims=True)
        value = -float(weight @ logs[np.arange(m), targets]) + PENALTY / 2 * float((weights**2).sum())
        slope = weight[:, None] * (np.exp(logs) - wanted)
        by_weights = features.T @ slope.astype(np.float32) + PENALTY * weights
        return value, np.concatenate([by_weights.ravel(), slope.sum(axis=0)])

    zero = np.zeros((d + 1) * n_outputs)
    found = minimize(
        loss,
        zero if start is None else start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MOST_STEPS, "ftol": 1e-5, "gtol": 1e-3},
    ).x
    weights: Floats = found.reshape(d + 1, n_outputs)
    return weights


def known_share(of_known: Floats, of_pool: Floats) -> float:
    """The largest share of known samples that the pool can have, from scores of both: in [0.02, 0.9].

    Above any threshold lie at least share · (part of the known above it) of the pool, so the smallest quotient of
    the two, over the 10 % … 90 % quantiles of the known, bounds the share (Blanchard, Lee and Scott, JMLR 2010).
    """
    quantiles = np.linspace(0.1, 0.9, 17)
    above = np.array([(of_pool >= bar).mean() for bar in np.quantile(of_known, quantiles)])
    return float(np.clip((above / (1 - quantiles)).min(), 0.02, 0.9))


def probability_known(score: Floats, known: Indices, invalid: Indices, unlabelled: Indices) -> Floats:
    """p(known | z) = 1 / (1 + exp(-(β z + α))) of all samples, from their scores [n]: float64 [n].

    Known and invalid samples have weight 1. Each unlabelled one counts as known with its own p and as unknown with
    1 - p, all of them together as much as the known; p starts at the pool's share of known samples, and after each
    fit α is moved until p has that share as its mean.
    """
    if not len(unlabelled):
        unlabelled = np.concatenate([known, invalid])
    m = len(unlabelled)
    share = known_share(score[known], score[unlabelled])
    values = score[np.concatenate([known, unlabelled, unlabelled, invalid])]
    targets = np.concatenate([np.ones(len(known) + m), np.zeros(m + len(invalid))])
    soft = np.full(m, share)
    each = len(known) / m
    slope = shift = 0.0
    for _ in range(SOFT_LABEL_STEPS):
        weight = np.concatenate([np.ones(len(known)), each * soft, each * (1 - soft), np.ones(len(invalid))])
        slope, _ = fit_logistic(values, targets, weight)
        shift = _with_mean(slope * score[unlabelled], share)
        soft = expit(slope * score[unlabelled] + shift)
    probabilities: Floats = expit(slope * score + shift)
    return probabilities


def fit_logistic(values: Floats, targets: Floats, weight: Floats) -> tuple[float, float]:
    """(β, α) that minimise Σ weight · cross-entropy of sigmoid(β z + α) + 0.005 β², by Newton steps."""
    design = np.stack([values, np.ones(len(values))], axis=1)  # [m, 2]
    ridge = np.diag([0.01, 1e-6])
    found: Floats = np.zeros(2)
    for _ in range(25):
        p = expit(design @ found)
        slope = design.T @ (weight * (p - targets)) + ridge @ found
        curvature = (design * (weight * np.maximum(p * (1 - p), 1e-6))[:, None]).T @ design + ridge
        step = np.linalg.solve(curvature, slope)
        found = found - step / max(1.0, float(np.abs(step).max()) / 2)  # at most 2 at a time: far steps overshoot
        if np.abs(step).max() < 1e-8:
            break
    return float(found[0]), float(found[1])


def _with_mean(logits: Floats, mean: float) -> float:
    """What to add to the logits [m] for their sigmoids to have this mean; by halving."""
    low, high = -float(np.abs(logits).max()) - 10, float(np.abs(logits).max()) + 10
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(logits + middle).mean() < mean else (low, middle)
    return (low + high) / 2
