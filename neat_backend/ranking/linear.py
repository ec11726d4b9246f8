"""Multinomial logistic regression on an encoder's features: the classifier that is ready after every label.

Beside the known classes it may have one more output, "none of these", that learns from the labels that are invalid:
1 - its probability is how likely a task is of a known class at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.kernels import compiled, in_parallel
from neat_backend.ranking.linear_head import LinearHead
from neat_backend.ranking.scores import INVALID

Floats = NDArray[np.float32]

# On the squared weights, beside the mean loss. Of 3e-2 … 1e-4, on 20 to 800 labelled digits with EfficientNet-Lite0
# features, 3e-4 had the best accuracy or was within 0.3 points of it.
PENALTY = 3e-4
# Of the head that orders the pool: smoother probabilities predict better what is worth a label.
HEAD_PENALTY = 3e-3
TOLERANCE = 1e-4  # of the gradient's largest entry
HEAD_TOLERANCE = 2e-3  # of 5,000 labels × 1,280: a third of the steps of 1e-5, probabilities 0.002 off in the mean
MOST_STEPS = 200
FIRST_SAMPLES = 640
NAME_SCALE = 100.0
_LEAST_SPREAD = 1e-6


def fit_head(features: Floats, codes: NDArray[np.integer], classes: Sequence[str]) -> LinearHead | None:
    """The head of labelled tasks: unit features [n, d], codes [n] = index into classes or INVALID.

    Each class has the same weight, however many labels it has; known and invalid labels weigh by their number. The
    same features, codes and order of rows give the same head: each fit starts from zero. None while there are fewer
    than two outputs.
    """
    codes = np.asarray(codes, np.int64)
    columns = np.unique(codes[codes >= 0])
    unknown = bool((codes == INVALID).any())
    outputs = len(columns) + unknown
    if outputs < 2 or not len(columns):
        return None
    targets = np.where(codes == INVALID, len(columns), np.searchsorted(columns, codes))
    counts = np.bincount(targets, minlength=outputs).astype(np.float64)
    weights = np.ones(outputs)
    weights[: len(columns)] = counts[: len(columns)].sum() / len(columns) / counts[: len(columns)]
    centre = np.sum(in_parallel(lambda i, j: features[i:j].sum(axis=0, dtype=np.float64), len(features), 512), axis=0)
    centre /= len(features)
    # The spread of rows of length 1 around their mean, as of a sample.
    spread = (1 - float(centre @ centre)) * len(features) / max(len(features) - 1, 1)
    scale = np.float32(np.sqrt(spread) if spread > _LEAST_SPREAD else 1.0)
    moved, middle = np.empty(features.shape, np.float32), centre.astype(np.float32)

    def move(begin: int, end: int) -> None:
        np.subtract(features[begin:end], middle, out=moved[begin:end])
        moved[begin:end] /= scale

    in_parallel(move, len(features), 512)
    found, biases = fit_weights(
        moved, targets, outputs, penalty=HEAD_PENALTY, sample_weights=weights[targets], tolerance=HEAD_TOLERANCE
    )
    found = np.ascontiguousarray(found.T / scale)  # undo the scaling
    return LinearHead(tuple(classes), columns, unknown, found, (biases - found @ middle).astype(np.float32))


def name_head(features: Floats, classes: Sequence[str]) -> LinearHead:
    """The head of the classes' names, before there is a label: text features [C + 1, d], the last of "any object".

    Logits are CLIP's, 100 cosines (Radford et al., 2021, section 2.3). A task that is nearer to the last text than to
    any class is probably of none of them.
    """
    weights = (NAME_SCALE * features).astype(np.float32)
    return LinearHead(
        tuple(classes), np.arange(len(classes)), True, np.ascontiguousarray(weights), np.zeros(len(weights), np.float32)
    )


def fit_weights(
    features: Floats,
    targets: NDArray[np.int64],
    n_classes: int,
    temperature: float = 1.0,
    penalty: float = PENALTY,
    sample_weights: NDArray[np.floating] | None = None,
    tolerance: float = TOLERANCE,
) -> tuple[Floats, Floats]:
    """Weights [d, C] and biases [C] that minimise mean cross-entropy(logits / temperature) + penalty/2 ‖weights‖².

    sample_weights [n]: what each sample counts in the mean; default alike. By L-BFGS from zero, until the largest entry
    of the gradient is below `tolerance`. A class without a sample gets a low bias and no weights of its own; one class
    gives zeros. The penalty does not act on the biases. Raises ValueError when there is nothing to learn from.

    With many samples, an evenly spaced part is fitted first, which leaves few passes over all of them.

    Loss and gradient come from one pass over the samples, in threads of this process that sleep while idle. BLAS's own
    threads spin while they wait; beside a training they took hundreds of times as long.
    """
    from scipy.optimize import minimize

    if not len(features):
        raise ValueError("there are no labelled samples to train on")
    n, d = features.shape
    features, targets = np.ascontiguousarray(features, np.float32), np.ascontiguousarray(targets, np.int64)
    share = np.full(n, 1 / n) if sample_weights is None else sample_weights / sample_weights.sum()

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = flat[: d * n_classes].reshape(n_classes, d)
        head = weights.astype(np.float32), flat[d * n_classes :].astype(np.float32)

        def work(begin: int, end: int) -> tuple[float, Floats, NDArray[np.float64]]:
            by_weights, by_biases = np.zeros((n_classes, d), np.float32), np.zeros(n_classes)
            slopes = by_weights, by_biases
            return _cross_entropy(begin, end, features, targets, share, head, temperature, slopes), *slopes

        parts = in_parallel(work, n, least=256)
        by_weights = sum(part[1] for part in parts) + penalty * weights
        value = sum(part[0] for part in parts) + penalty / 2 * float((weights**2).sum())
        return value, np.concatenate([by_weights.ravel(), sum(part[2] for part in parts)])

    start: NDArray[np.float64] = np.zeros((d + 1) * n_classes)
    if n > 2 * FIRST_SAMPLES:
        some = np.linspace(0, n - 1, FIRST_SAMPLES).astype(np.int64)
        first = fit_weights(features[some], targets[some], n_classes, temperature, penalty, share[some], tolerance)
        start = np.concatenate([first[0].T.ravel(), first[1]]).astype(np.float64)
    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MOST_STEPS, "gtol": tolerance, "ftol": 1e-9},
    ).x
    weights = found[: d * n_classes].reshape(n_classes, d).astype(np.float32)
    return np.ascontiguousarray(weights.T), found[d * n_classes :].astype(np.float32)


@compiled(fastmath=True)
def _cross_entropy(
    begin: int,
    end: int,
    features: Any,
    targets: Any,
    share: Any,
    head: tuple[Any, Any],
    temperature: float,
    slopes: tuple[Any, Any],
) -> float:
    """Weighted cross-entropy of samples begin..end under weights [C, d] and biases [C]; slopes are added to two alike.

    Four samples at a time, so that weights and slopes are read from the cache once for all four. Where fewer are left,
    the last one is repeated with weight 0.
    """
    weights, biases = head
    by_weights, by_biases = slopes
    n_classes, d = weights.shape
    logits, of_logits = np.empty((4, n_classes)), np.empty((4, n_classes), np.float32)
    value = 0.0
    for first in range(begin, end, 4):
        a, b = first, min(first + 1, end - 1)
        e, f = min(first + 2, end - 1), min(first + 3, end - 1)
        for c in range(n_classes):
            of_a, of_b, of_e, of_f = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
            for j in range(d):
                weight = weights[c, j]
                of_a += weight * features[a, j]
                of_b += weight * features[b, j]
                of_e += weight * features[e, j]
                of_f += weight * features[f, j]
            logits[0, c], logits[1, c] = (of_a + biases[c]) / temperature, (of_b + biases[c]) / temperature
            logits[2, c], logits[3, c] = (of_e + biases[c]) / temperature, (of_f + biases[c]) / temperature
        for r in range(4):
            i = first + r
            if i >= end:
                of_logits[r] = 0
                continue
            most = logits[r].max()
            sums = np.exp(logits[r] - most).sum()
            value -= share[i] * (logits[r, targets[i]] - most - np.log(sums))
            for c in range(n_classes):
                slope = (np.exp(logits[r, c] - most) / sums - (c == targets[i])) * share[i] / temperature
                by_biases[c] += slope
                of_logits[r, c] = slope
        for c in range(n_classes):
            on_a, on_b, on_e, on_f = of_logits[0, c], of_logits[1, c], of_logits[2, c], of_logits[3, c]
            for j in range(d):
                by_weights[c, j] += (
                    on_a * features[a, j] + on_b * features[b, j] + on_e * features[e, j] + on_f * features[f, j]
                )
    return value
