"""Helpers of the classifiers of experiments."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.pool import Generated, Learner, Model

Indices = NDArray[np.int64]
Floats = NDArray[np.float32]
DROPOUT = 0.5


def dropout_logits(
    embeddings: Floats, weights: Floats, biases: Floats, passes: int, rng: np.random.Generator
) -> Floats:
    """Logits of stochastic passes, half of the activations [m, h] dropped in each: float32 [passes, m, C]."""
    logits = np.empty((passes, len(embeddings), len(biases)), np.float32)
    for one in range(passes):
        kept = rng.random(embeddings.shape, dtype=np.float32) >= DROPOUT
        logits[one] = (embeddings * kept / np.float32(1 - DROPOUT)) @ weights + biases
    return logits


class Clock:
    """Seconds spent in each phase. An inner phase does not count for the outer one."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    def __call__(self, phase: str) -> Phase:
        return Phase(self, phase)

    def enter(self, phase: str) -> None:
        self._book()
        self._running.append(phase)

    def leave(self) -> None:
        self._book()
        self._running.pop()

    def _book(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] = self.seconds.get(self._running[-1], 0.0) + now - self._since
        self._since = now


class Phase:
    def __init__(self, clock: Clock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._clock.enter(self._name)

    def __exit__(self, *_: object) -> None:
        self._clock.leave()


class TimedModel:
    """A model whose time counts as the phase "inference"."""

    def __init__(self, model: Model, clock: Clock) -> None:
        self.n_outputs = model.n_outputs
        self._model, self._clock = model, clock

    def logits(self, indices: Indices) -> Floats:
        with self._clock("inference"):
            return self._model.logits(indices)

    def embeddings(self, indices: Indices) -> Floats:
        with self._clock("inference"):
            return self._model.embeddings(indices)

    def dropout_logits(self, indices: Indices, passes: int, rng: np.random.Generator) -> Floats:
        with self._clock("inference"):
            return self._model.dropout_logits(indices, passes, rng)


class TimedLearner:
    """A learner whose time counts as the phase "detector", for models that a strategy trains."""

    def __init__(self, learner: Learner, clock: Clock) -> None:
        self._learner, self._clock = learner, clock

    def inputs(self, indices: Indices) -> Floats:
        return self._learner.inputs(indices)

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
        with self._clock("detector"):
            model = self._learner.fit(indices, targets, n_outputs, rng, temperature=temperature, generated=generated)
        return TimedModel(model, self._clock)
