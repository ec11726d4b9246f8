"""OPENMAX: query first the samples that OpenMax predicts most surely to be of a known class.

Bendale and Boult, "Towards Open Set Deep Networks", CVPR 2016; settings as in the authors' code (OSDN): tail 20,
alpha 10, distance euclidean/200 + cosine. Activations are the classifier's logits.

Which end is queried: the NEAT paper has OpenMax among its baselines as a method that tells known from unknown,
and its authors' code sorts the scores from high to low, with 0 for unknown classes. So the most surely known come
first here too. (That code reads the true labels to know which are unknown; this one estimates it.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.pool import Indices, Pool
from neat_backend.strategies.weibull import Tail, fit_tail

ALPHA = 10  # ranks that are revised
FEW = 3  # samples of a class below which its own tail says nothing
EUCLIDEAN_PART = 1 / 200

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClassModel:
    """Mean activation vector [C] of a class, and the tail of the distances of its samples to it."""

    mean: Floats
    tail: Tail


def distance(activations: Floats, mean: Floats) -> Floats:
    """Euclidean/200 + cosine distance of activations [m, C] to a mean [C]: float64 [m].

    A vector of zeros has no direction; its cosine is taken as 0.
    """
    euclidean = np.sqrt(np.square(activations - mean).sum(axis=1))
    lengths = np.sqrt(np.square(activations).sum(axis=1)) * np.sqrt(np.square(mean).sum())
    cosine = np.divide(activations @ mean, lengths, out=np.zeros(len(activations)), where=lengths > 0)
    return euclidean * EUCLIDEAN_PART + 1 - cosine


def class_models(activations: Floats, labels: NDArray[np.int64], n_classes: int) -> list[ClassModel | None]:
    """One model for each class of labelled activations [n, C] with labels [n].

    Mean and tail come from the samples that the classifier gets right. What the paper leaves open: a class with
    fewer than 3 of these takes all its labelled samples; one with fewer than 3 of those too has the mean of what
    there is and the tail of all classes' distances together; one without any has no model.
    """
    right = activations.argmax(axis=1) == labels
    samples = []  # for each class [n_c, C]
    for label in range(n_classes):
        own = labels == label
        samples.append(activations[own & right] if np.count_nonzero(own & right) >= FEW else activations[own])
    means = [rows.mean(axis=0) if len(rows) else None for rows in samples]
    distances = [np.zeros(0) if m is None else distance(rows, m) for rows, m in zip(samples, means, strict=True)]
    together = np.concatenate(distances)
    return [
        None if mean is None else ClassModel(mean, fit_tail(own if len(own) >= FEW else together))
        for mean, own in zip(means, distances, strict=True)
    ]


def revise(activations: Floats, models: list[ClassModel | None]) -> tuple[Floats, Floats]:
    """The revised logits [m, C] and the logit of the unknown class [m] for activations [m, C].

    The class of rank i = 1 … alpha, alpha = min(10, C), by falling activation keeps v_c (1 - w_c (alpha+1-i)/alpha),
    w_c = the tail's distribution at the distance to the mean of c; the unknown class gets the sum of what was taken
    (the paper's Algorithm 2). A negative activation is raised and the sum lowered by it, as in the authors' code. A
    class without a model is left as it is.
    """
    alpha = min(ALPHA, activations.shape[1])
    ranked = np.argsort(-activations, axis=1, kind="stable")[:, :alpha]
    weights = np.zeros(activations.shape)  # [m, C] (alpha+1-i)/alpha, 0 beyond rank alpha
    np.put_along_axis(weights, ranked, (alpha - np.arange(alpha))[None, :] / alpha, axis=1)
    for label, model in enumerate(models):
        beyond = 0.0 if model is None else model.tail.cdf(distance(activations, model.mean))
        weights[:, label] *= beyond
    taken = activations * weights
    return activations - taken, taken.sum(axis=1)


def knownness(revised: Floats, unknown: Floats) -> Floats:
    """log(P(known) / P(unknown)) by OpenMax: float64 [m]; it keeps apart what probabilities would round to 1."""
    largest = revised.max(axis=1)
    return largest + np.log(np.exp(revised - largest[:, None]).sum(axis=1)) - unknown


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """The offered samples of largest P(known), best first; ties by index.

    At random while there is no classifier or nothing is labelled with a known class.
    """
    known = pool.known
    if pool.model is None or not len(known) or not len(pool.offered):
        return pool.offered[rng.permutation(len(pool.offered))[:batch_size]]
    models = class_models(pool.model.logits(known).astype(np.float64), pool.labels[known], pool.n_classes)
    scores = knownness(*revise(pool.model.logits(pool.offered).astype(np.float64), models))
    return pool.offered[np.argsort(-scores, kind="stable")[:batch_size]]
