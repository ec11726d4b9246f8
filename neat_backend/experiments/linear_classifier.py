"""Multinomial logistic regression on frozen features: the quick classifier."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neat_backend.experiments.models import Floats, Indices, dropout_logits
from neat_backend.ranking.linear import fit_weights
from neat_backend.ranking.pool import Generated


class LinearModel:
    """Weights [d, C] and biases [C] over the features of all samples."""

    def __init__(self, features: Floats, weights: Floats, biases: Floats) -> None:
        self.n_outputs = len(biases)
        self._features = features
        self._weights = weights
        self._biases = biases

    def logits(self, indices: Indices) -> Floats:
        return self._features[indices] @ self._weights + self._biases

    def embeddings(self, indices: Indices) -> Floats:
        return self._features[indices]

    def dropout_logits(self, indices: Indices, passes: int, rng: np.random.Generator) -> Floats:
        return dropout_logits(self._features[indices], self._weights, self._biases, passes, rng)


class LinearLearner:
    """Trains on features [n + m, d], unit rows, of all samples. Nothing about it is random: `rng` is not used.

    Inside, features are moved and scaled so that those of the pool, the first n, have mean 0 and root mean square
    length 1: the optimiser takes a quarter of the steps, and one penalty suits every encoder.
    """

    def __init__(self, features: Floats, n_pool: int) -> None:
        self._features = features
        self._centre = features[:n_pool].mean(axis=0, dtype=np.float64).astype(np.float32)  # [d]
        spread = 1 - float(np.square(self._centre, dtype=np.float64).sum())  # rows have length 1
        self._scale = np.float32(np.sqrt(spread) if spread > 1e-6 else 1.0)

    def inputs(self, indices: Indices) -> Floats:
        return self._features[indices]

    def fit(
        self,
        indices: Indices,
        targets: NDArray[np.int64],
        n_outputs: int,
        rng: np.random.Generator,
        *,
        temperature: float = 1.0,
        generated: Generated | None = None,
    ) -> LinearModel:
        features = self._features[indices]
        if generated is not None and len(generated.inputs):
            features = np.concatenate([features, generated.inputs.astype(np.float32)])
            targets = np.concatenate([targets, generated.targets])
        weights, biases = fit_weights((features - self._centre) / self._scale, targets, n_outputs, temperature)
        weights /= self._scale  # so that they are of the features as they are
        return LinearModel(self._features, weights, biases - self._centre @ weights)
