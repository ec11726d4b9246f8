"""Views of an engine's state: the order, neighbours, a pool for strategies, counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Source = Literal["resnet18", "linear"]
PREDICTORS = ("resnet18", "linear", "vote")  # of a task's class


@dataclass(frozen=True)
class Ranking:
    """The order of the whole pool at one moment, ascending by task id; arrays of one length n."""

    ids: NDArray[np.int64]
    priority: NDArray[np.float64]  # sort by this, then by id; a random draw's is that of its place
    quality: NDArray[np.float64]  # value of a label before the classes are balanced; ties are broken
    queue: NDArray[np.int16]  # that it waits in, see ranking.queues; -1 = the only one, without balance
    place: NDArray[np.int64]  # how many of its queue come before it
    known_chance: NDArray[np.float32]  # probability of a known class by the linear head
    inconsistency: NDArray[np.float64]
    known_neighbours: NDArray[np.int16]
    candidate: NDArray[np.bool_]
    predicted: NDArray[np.int16]  # index into classes; -1 before the first round
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Labelled:
    """Each task's K nearest labelled tasks, itself left out; rows ascending by task id."""

    ids: NDArray[np.int64]  # [n]
    codes: NDArray[np.int16]  # [n, K] what they are labelled with: class, INVALID; UNLABELLED = fewer than K labelled
    similarities: NDArray[np.float32]  # [n, K]


class Trained:
    """The classifier for strategies: precomputed probabilities, embeddings of the encoder."""

    def __init__(self, probabilities: NDArray[np.float64], features: NDArray[np.float32]) -> None:
        self.n_outputs = probabilities.shape[1]
        self._logits = np.log(np.maximum(probabilities, 1e-12)).astype(np.float32)
        self._features = features

    def logits(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [m, C]"""
        return self._logits[indices]

    def embeddings(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """The encoder's features: float32 [m, dim]."""
        return self._features[indices]

    def dropout_logits(self, indices: NDArray[np.int64], passes: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Without the network there is no dropout: the same logits for each pass, float32 [passes, m, C]."""
        return np.repeat(self._logits[indices][None], passes, axis=0)


@dataclass(frozen=True)
class PoolPart:
    """Rows of the pool as a strategy needs them, ascending by task id; arrays of one length n."""

    ids: NDArray[np.int64]
    codes: NDArray[np.int64]
    trained: NDArray[np.bool_]
    probabilities: NDArray[np.float32]  # [n, C]
    features: NDArray[np.float32]  # [n, dim]


@dataclass(frozen=True)
class Counts:
    """Labelled tasks and the rest; the three never overlap and cover all tasks that the engine holds."""

    known: int
    invalid: int
    unlabelled: int
