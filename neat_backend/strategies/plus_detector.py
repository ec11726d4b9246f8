"""How likely a sample is of a known class: unlabelled samples stand in for what is unknown, in every query.

    background   a random sample of the unlabelled part of the pool
    η(x)         log odds of "some known class" against "none of them", from a softmax regression with C + 1 outputs on
                 the features. The background is trained as the last output (Elkan and Noto, KDD 2008), then again with
                 soft labels: each sample as unknown with 1 - p and as class c with p · P(c), one step of expectation
                 maximisation (Nigam et al., Machine Learning 2000)
    p(known | η) a logistic curve of η, fitted to the answers and, with soft labels, to the background

For labelled samples η comes from a fit that left them out, so it means the same for them as for the pool. All known
classes weigh the same, however many labels they have: else p(known) of the classes that are hard to detect falls, they
get fewer labels, and p(known) falls further.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax

from neat_backend.ranking.pool import UNLABELLED, Indices, Pool

Floats = NDArray[np.float64]

BACKGROUND = 1000
FOLDS = 3  # for the η of labelled samples
PENALTY = 0.4  # on half the squared weights, beside the summed loss; features have root mean square length 1
MOST_STEPS = 40
SOFT_LABEL_STEPS = 4
PARTS = ("soft",)  # that can be left out


def background(pool: Pool) -> Indices:
    """The first BACKGROUND unlabelled samples in the order of the pool's keys, the same in every query."""
    unlabelled = np.flatnonzero(pool.labels == UNLABELLED)
    return unlabelled[np.argsort(pool.sample_keys[unlabelled])[:BACKGROUND]]


def probability_known(pool: Pool, parts: Collection[str] = PARTS) -> Floats:
    """p(known) of all samples: float64 [n]. Needs a labelled known sample and an unlabelled one.

    parts: soft = η is trained again with soft labels.
    """
    behind = background(pool)
    unknown = np.eye(pool.n_classes + 1)[np.full(len(behind), pool.n_classes)]  # [m, C + 1]
    score, classes = log_odds(pool, behind, unknown)
    weights = class_weights(pool.labels[pool.known])
    if "soft" in parts:
        p = calibrated(score, pool.known, weights, pool.invalid, behind)[behind, None]
        score, _ = log_odds(pool, behind, np.concatenate([p * classes, 1 - p], axis=1))
    return calibrated(score, pool.known, weights, pool.invalid, behind)


def class_weights(labels: NDArray[np.int64]) -> Floats:
    """Weights of samples with these classes [n]: each class has the same sum, all together n."""
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights: Floats = len(labels) / (len(counts) * counts[codes])
    return weights


def log_odds(pool: Pool, behind: Indices, shares: Floats) -> tuple[Floats, Floats]:
    """η of all samples [n], and the classes' probabilities of the background, given that it is known [m, C].

    behind: the background [m]; shares: what each of it counts as, rows sum to 1: [m, C + 1]. Invalid samples have
    weight 1 each, known ones that of `class_weights`, the background together as much as the known ones. η of a
    labelled sample is of a fit without its fold.
    """
    known = pool.known[np.argsort(pool.labels[pool.known], kind="stable")]  # by class: each fold gets of all
    labelled = np.concatenate([known, pool.invalid])
    rows = pool.features[np.concatenate([labelled, behind])]
    base = rows[len(labelled) :]
    centre = base.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.float32(np.sqrt(((base - centre) ** 2).sum(axis=1, dtype=np.float64).mean()) or 1.0)
    rows = (rows - centre) / scale
    codes = np.where(pool.labels[labelled] >= 0, pool.labels[labelled], pool.n_classes)
    marks = np.eye(pool.n_classes + 1)[codes]
    marks[: len(known)] *= class_weights(codes[: len(known)])[:, None]

    def fit(used: Indices, start: Floats | None = None) -> Floats:
        weight = np.count_nonzero(codes[used] < pool.n_classes) / len(behind)
        some = np.concatenate([used, np.arange(len(labelled), len(rows))])
        return fit_softmax(rows[some], np.concatenate([marks[used], weight * shares]), start)

    whole = fit(np.arange(len(labelled)))
    weights = (whole[:-1] / scale).astype(np.float32)
    logits = pool.features @ weights + (whole[-1] - centre @ weights)
    fold = np.arange(len(labelled)) % FOLDS
    for held in (fold == number for number in range(min(FOLDS, len(labelled)) if len(labelled) > 1 else 0)):
        without = fit(np.flatnonzero(~held), whole)
        logits[labelled[held]] = rows[: len(labelled)][held] @ without[:-1].astype(np.float32) + without[-1]
    return logsumexp(logits[:, :-1], axis=1) - logits[:, -1], softmax(logits[behind, :-1], axis=1)


def fit_softmax(features: NDArray[np.float32], shares: Floats, start: Floats | None = None) -> Floats:
    """Weights and, as the last row, biases [d + 1, K]; by L-BFGS from `start`, or from zero.

    They minimise -Σ share · log probability + PENALTY/2 ‖weights‖²; the biases are free. features: [m, d]; shares:
    [m, K], how much each sample counts as each output.
    """
    d, n_outputs = features.shape[1], shares.shape[1]
    total = shares.sum(axis=1, keepdims=True)

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights, biases = flat[: d * n_outputs].reshape(d, n_outputs), flat[d * n_outputs :]
        logits = (features @ weights.astype(np.float32)).astype(np.float64) + biases  # [m, K]
        logits -= logits.max(axis=1, keepdims=True)
        logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        slope = total * np.exp(logs) - shares
        by_weights = features.T @ slope.astype(np.float32) + PENALTY * weights
        value = -float((shares * logs).sum()) + PENALTY / 2 * float((weights**2).sum())
        return value, np.concatenate([by_weights.ravel(), slope.sum(axis=0)])

    found: Floats = minimize(
        loss,
        np.zeros((d + 1) * n_outputs) if start is None else start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MOST_STEPS, "ftol": 1e-5, "gtol": 1e-3},
    ).x
    return found.reshape(d + 1, n_outputs)


def known_share(of_known: Floats, weights: Floats, of_pool: Floats) -> float:
    """The largest share of known samples that the pool can have, from scores of both: in [0.02, 0.9].

    Above any threshold lie at least share · (part of the known above it) of the pool, so the smallest quotient of
    the two, over the 10 % … 90 % quantiles of the known, bounds the share (Blanchard, Lee and Scott, JMLR 2010).
    weights: of the known, as many.
    """
    quantiles = np.linspace(0.1, 0.9, 17)
    order = np.argsort(of_known, kind="stable")
    shares = weights[order] / weights.sum()
    middles = np.cumsum(shares) - shares / 2  # of the steps; the first is quantile 0 and the last 1
    bars = np.interp(middles[0] + quantiles * (middles[-1] - middles[0]), middles, of_known[order])
    above = np.array([(of_pool >= bar).mean() for bar in bars])
    return float(np.clip((above / (1 - quantiles)).min(), 0.02, 0.9))


def calibrated(score: Floats, known: Indices, weights: Floats, invalid: Indices, unlabelled: Indices) -> Floats:
    """p(known | η) = 1 / (1 + exp(-(β η + α))) of all samples, from their scores [n]: float64 [n].

    weights: of the known, 1 in the mean; invalid samples have weight 1. Each unlabelled one counts as known with its
    own p and as unknown with 1 - p, all of them together as much as the known; p starts at the pool's share of known
    samples, and after each fit α is moved until p has that share as its mean.
    """
    spread = score[unlabelled].std() or 1.0  # the penalty of the fit is for scores of standard deviation 1
    score = (score - score[unlabelled].mean()) / spread
    m = len(unlabelled)
    share = known_share(score[known], weights, score[unlabelled])
    values = score[np.concatenate([known, unlabelled, unlabelled, invalid])]
    targets = np.concatenate([np.ones(len(known) + m), np.zeros(m + len(invalid))])
    soft = np.full(m, share)
    each = len(known) / m
    slope = shift = 0.0
    for _ in range(SOFT_LABEL_STEPS):
        weight = np.concatenate([weights, each * soft, each * (1 - soft), np.ones(len(invalid))])
        slope, _ = fit_logistic(values, targets, weight)
        shift = _with_mean(slope * score[unlabelled], share)
        soft = expit(slope * score[unlabelled] + shift)
    probabilities: Floats = expit(slope * score + shift)
    return probabilities


def fit_logistic(values: Floats, targets: Floats, weight: Floats) -> tuple[float, float]:
    """(β, α) that minimise Σ weight · cross-entropy of sigmoid(β η + α) + 0.005 β², by Newton steps."""
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
