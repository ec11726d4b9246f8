"""Small pools for tests of strategies, with a classifier and a learner that need no network.

pool = make_pool()                          # 120 samples, 60 offered, half of the rest known, half invalid
pool = make_pool(model=False, invalid=False)
pool.learner.fit(indices, targets, 3, rng)  # softmax regression on the features
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from neat_backend.models.grid import to_grid
from neat_backend.ranking.pool import UNLABELLED, Floats, Generated, Indices, Pool
from neat_backend.ranking.scores import INVALID

STEPS = 60
STEP_SIZE = 4.0
DROPPED = 0.3


@dataclass(frozen=True)
class LinearModel:
    """Logits = features · weights + bias; the penultimate embedding is the features themselves."""

    features: Floats  # [n, d]
    weights: Floats  # [d, n_outputs]
    bias: Floats  # [n_outputs]

    @property
    def n_outputs(self) -> int:
        return len(self.bias)

    def logits(self, indices: Indices) -> Floats:
        return self.features[indices] @ self.weights + self.bias

    def embeddings(self, indices: Indices) -> Floats:
        return self.features[indices].copy()

    def dropout_logits(self, indices: Indices, passes: int, rng: np.random.Generator) -> Floats:
        embeddings = self.features[indices]  # [m, d]
        kept = rng.random((passes, *embeddings.shape)) >= DROPPED
        return (embeddings * kept / (1 - DROPPED)).astype(np.float32) @ self.weights + self.bias


@dataclass(frozen=True)
class LinearLearner:
    """Softmax regression by full-batch gradient steps from small random weights."""

    features: Floats  # [n, d]

    def inputs(self, indices: Indices) -> Floats:
        return self.features[indices].copy()

    def fit(
        self,
        indices: Indices,
        targets: np.ndarray,
        n_outputs: int,
        rng: np.random.Generator,
        *,
        temperature: float = 1.0,
        generated: Generated | None = None,
    ) -> LinearModel:
        assert len(indices) == len(targets)
        inputs = self.features[indices].astype(np.float64)
        if generated is not None:
            inputs = np.concatenate([inputs, generated.inputs])
            targets = np.concatenate([targets, generated.targets])
        assert len(targets), "nothing to train on"
        assert targets.min() >= 0
        assert targets.max() < n_outputs
        weights = rng.normal(0, 0.01, (inputs.shape[1], n_outputs))
        bias = np.zeros(n_outputs)
        wanted = np.eye(n_outputs)[targets]  # [m, n_outputs]
        for _ in range(STEPS):
            scaled = (inputs @ weights + bias) / temperature
            scaled -= scaled.max(axis=1, keepdims=True)
            probabilities = np.exp(scaled) / np.exp(scaled).sum(axis=1, keepdims=True)
            error = (probabilities - wanted) / (temperature * len(wanted))  # gradient of the loss by the logits
            weights -= STEP_SIZE * inputs.T @ error
            bias -= STEP_SIZE * error.sum(axis=0)
        return LinearModel(self.features, weights.astype(np.float32), bias.astype(np.float32))


@dataclass(frozen=True)
class FixedModel:
    """Fixed outputs: logits [n, n_outputs] and embeddings [n, h] of every sample."""

    all_logits: Floats
    all_embeddings: Floats

    @property
    def n_outputs(self) -> int:
        return self.all_logits.shape[1]

    def logits(self, indices: Indices) -> Floats:
        return self.all_logits[indices]

    def embeddings(self, indices: Indices) -> Floats:
        return self.all_embeddings[indices]

    def dropout_logits(self, indices: Indices, passes: int, rng: np.random.Generator) -> Floats:
        raise AssertionError("not needed here")


def fixed_model(probabilities: npt.ArrayLike, embeddings: npt.ArrayLike | None = None) -> FixedModel:
    """A model of these probabilities [n, C], up to rounding; a probability of 0 becomes e^-1000."""
    wanted = np.asarray(probabilities, np.float64)
    logits = np.where(wanted > 0, np.log(np.where(wanted > 0, wanted, 1)), -1000).astype(np.float32)
    points = np.zeros((len(wanted), 2)) if embeddings is None else np.asarray(embeddings)
    return FixedModel(logits, points.astype(np.float32))


def make_pool(
    n: int = 120,
    d: int = 16,
    n_classes: int = 3,
    n_offered: int = 60,
    seed: int = 0,
    invalid: bool = True,
    model: bool = True,
    learner: bool = True,
) -> Pool:
    """Clusters of unit features: one for each known class and as many of unknown classes.

    The offered samples are drawn from all clusters; those left are labelled, the ones of unknown clusters INVALID
    or, without `invalid`, UNLABELLED and not offered. Arrays can't be written to. The model is trained on the known
    samples; there is none where there are none.
    """
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(2 * n_classes, d))
    cluster = rng.permutation(np.arange(n) % (2 * n_classes))
    features = to_grid(centres[cluster] + 0.8 * rng.normal(size=(n, d)))
    offered = np.sort(rng.permutation(n)[:n_offered])
    labels = np.where(cluster < n_classes, cluster, INVALID if invalid else UNLABELLED).astype(np.int64)
    labels[offered] = UNLABELLED
    for array in (features, offered, labels):
        array.setflags(write=False)
    teacher = LinearLearner(features)
    known = np.flatnonzero(labels >= 0)
    fitted = teacher.fit(known, labels[known], n_classes, rng) if model and len(known) else None
    return Pool(features, labels, n_classes, offered, fitted, teacher if learner else None)
