"""The input of a strategy. It holds no true label of an unlabelled sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.hashing import mixed
from neat_backend.ranking.scores import INVALID, KnownRule

TARGET_PRECISION = 0.6
UNLABELLED = -3  # in `Pool.labels`; never confused with INVALID = -1

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
Keys = NDArray[np.uint64]


class Model(Protocol):
    """A trained classifier; samples are named by their index."""

    @property
    def n_outputs(self) -> int:
        """Number of classes."""

    def logits(self, indices: Indices) -> Floats:
        """Before the softmax: float32 [m, n_outputs]."""

    def embeddings(self, indices: Indices) -> Floats:
        """Activations of the penultimate layer, what the last linear layer sees: float32 [m, h]."""

    def dropout_logits(self, indices: Indices, passes: int, rng: np.random.Generator) -> Floats:
        """Logits of several stochastic passes, dropout before the last layer: float32 [passes, m, n_outputs]."""


@dataclass(frozen=True)
class Generated:
    """Generated samples: inputs [m, …] of the learner's form and int64 targets [m]."""

    inputs: Floats
    targets: NDArray[np.int64]


class Learner(Protocol):
    """Trains classifiers from scratch the way the experiment does."""

    def fit(
        self,
        indices: Indices,
        targets: NDArray[np.int64],
        n_outputs: int,
        rng: np.random.Generator,
        *,
        temperature: float = 1.0,
        generated: Generated | None = None,
    ) -> Model:
        """Train on samples [m], targets in 0..n_outputs-1; the loss is the cross-entropy of logits / temperature."""

    def inputs(self, indices: Indices) -> Floats:
        """The classifier's inputs: images [m, 3, s, s] in [0, 1], or features [m, d]."""


@dataclass(frozen=True)
class Past:
    """One earlier query: the queried samples, in order, and their answers (class code or INVALID)."""

    indices: Indices
    answers: NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """The state of the labelling before one query.

    features    float32 [n, d], unit rows, of all samples, labelled or not
    labels      int64 [n]: 0..C-1, INVALID, or UNLABELLED
    offered     int64 [u], ascending: the unlabelled samples that may be chosen
    model       the classifier of this round, trained on the labelled known samples; None before the first
    learner     trains further models (a detector); None where a strategy can do without
    k, rule     neighbours and known rule of NEAT; cut: keep only the first so many times B of the candidates by
                n_known (the reference's code: 2), None = all (the paper)
    target_precision   share of a query that neat_plus wants to be of known classes
    past        earlier queries, oldest first, without the initial labels
    class_features   float32 [C, d] of the class names, where the encoder reads text
    keys        uint64 [n], all different: a random order of the samples that labels don't change; None = by index
    """

    features: Floats
    labels: NDArray[np.int64]
    n_classes: int
    offered: Indices
    model: Model | None = None
    learner: Learner | None = None
    k: int = 10
    rule: KnownRule = "all"
    cut: int | None = None
    past: tuple[Past, ...] = ()
    target_precision: float = TARGET_PRECISION
    class_features: Floats | None = field(default=None)
    keys: Keys | None = field(default=None)

    @property
    def sample_keys(self) -> Keys:
        """The keys, or a hash of the index of each."""
        return mixed(np.arange(len(self.labels)), 0) if self.keys is None else self.keys

    @property
    def known(self) -> Indices:
        """Samples labelled with a known class, ascending."""
        return np.flatnonzero(self.labels >= 0)

    @property
    def invalid(self) -> Indices:
        """Samples labelled invalid, ascending."""
        return np.flatnonzero(self.labels == INVALID)

    @property
    def labelled(self) -> Indices:
        """Both, ascending."""
        return np.flatnonzero(self.labels != UNLABELLED)

    def offering(self, indices: Indices) -> Pool:
        """The same state with only these unlabelled samples to choose from."""
        return replace(self, offered=np.sort(indices))

    def probabilities(self, indices: Indices) -> NDArray[np.float64]:
        """The classifier's class probabilities, [m, C]; uniform before the first classifier."""
        if self.model is None:
            return np.full((len(indices), self.n_classes), 1 / self.n_classes)
        logits = self.model.logits(indices).astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
        return exponentials / exponentials.sum(axis=1, keepdims=True)


Select = Callable[[Pool, int, np.random.Generator], Indices]
