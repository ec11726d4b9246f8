"""A fitted linear classifier; with NumPy alone, so that the web process can read one (`ranking.linear` fits them)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LinearHead:
    """A fitted head. Its logits of a feature x are weights @ x + biases.

    weights   float32 [m, d], biases float32 [m]: one row for each class of `columns`, then one for "none of these"
              where `unknown`
    classes   the project's, C of them; columns int64 [m or m - 1]: those that have labels
    """

    classes: tuple[str, ...]
    columns: NDArray[np.int64]
    unknown: bool
    weights: Floats
    biases: Floats

    def of_logits(self, logits: Floats) -> tuple[Floats, Floats]:
        """From logits [n, m]: probabilities of the classes [n, C], given that it is one of them, rows sum to 1 (0 for
        a class without labels); and the probability that it is one of them at all [n], 1 without invalid labels."""
        count = len(self.columns)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        known = shifted[:, :count].sum(axis=1)
        chance = known / shifted.sum(axis=1)
        probabilities = np.zeros((len(logits), len(self.classes)), np.float32)
        # A row that is surely of none of the classes still has a most likely one.
        inner = logits[:, :count] - logits[:, :count].max(axis=1, keepdims=True)
        np.exp(inner, out=inner)
        probabilities[:, self.columns] = inner / inner.sum(axis=1, keepdims=True)
        return probabilities, chance.astype(np.float32)

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """As `of_logits`, for features [n, d]."""
        return self.of_logits(features @ self.weights.T + self.biases)
