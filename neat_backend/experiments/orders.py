"""The orders that a live experiment compares. Each says what to ask for next and is told each answer.

random      a permutation drawn by the seed
live        the default: classes in balance, led by the linear head, which is fitted again after each label
unbalanced  the same with NEAT_BALANCE=0
former      the default until the classes were balanced: the paper's score of each task at each moment, P from rounds
paper       NEAT_RERANK=round: the first B as they are, asked whole, then a round; Algorithm 1 of the paper

Rounds are trained in no time: a real one takes minutes, in which the labels go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import SettingsError
from neat_backend.experiments.checkpoints import Run
from neat_backend.experiments.loop import Samples
from neat_backend.experiments.models import Clock
from neat_backend.experiments.presets import ALL_ORDERS
from neat_backend.experiments.protocols import LiveProtocol
from neat_backend.experiments.splits import stream
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.linear import fit_head
from neat_backend.ranking.prefill import MODES, filled_in
from neat_backend.ranking.views import Source
from neat_backend.records import Label


class Order(Protocol):
    """Of one run over a pool of n samples."""

    def take(self, samples: Sequence[int], codes: Sequence[int]) -> None:
        """These are labelled now: code of the class, or INVALID."""

    def next(self) -> list[int]:
        """What to ask for, all of it before this is called again; never empty, nothing twice."""


class RandomOrder:
    def __init__(self, n: int, rng: np.random.Generator) -> None:
        self._left = rng.permutation(n).tolist()[::-1]
        self._labelled: set[int] = set()

    def take(self, samples: Sequence[int], codes: Sequence[int]) -> None:
        self._labelled.update(samples)

    def next(self) -> list[int]:
        while self._left[-1] in self._labelled:
            self._left.pop()
        return [self._left[-1]]


class EngineOrder:
    """The engine's own order. Task t is sample rows[t] of a permutation, so that ids say nothing of classes.

    follow: brings the engine up to date before it is asked; at_once: how many are asked before that again.
    """

    def __init__(
        self,
        protocol: LiveProtocol,
        samples: Samples,
        run: Run,
        clock: Clock,
        follow: Callable[[EngineOrder], None],
        balance: bool,
        source: Source,
        at_once: int = 1,
    ) -> None:
        n, dim = samples.features.shape
        self.samples, self.clock, self.run = samples, clock, run
        self.rows = stream("task ids", run.seed, run.known).permutation(n)
        self.tasks = np.argsort(self.rows)
        self.engine = Engine(
            dim,
            [str(code) for code in run.known],
            k=protocol.k,
            rule=protocol.rule,
            batch_size=protocol.batch,
            seed=run.seed,
            balance=balance,
            source=source,
        )
        self.engine.reserve(n)
        self.engine.add_tasks(np.arange(n), samples.features[self.rows])
        self._follow, self._at_once = follow, at_once

    def take(self, samples: Sequence[int], codes: Sequence[int]) -> None:
        with self.clock("order"):
            self.engine.set_labels(
                Label(task, invalid=True) if code < 0 else Label(task, choice=self.engine.classes[code])
                for task, code in zip(self.tasks[samples].tolist(), codes, strict=True)
            )

    def next(self) -> list[int]:
        self._follow(self)
        with self.clock("order"):
            return self.rows[self.engine.head(self._at_once)].tolist()

    def filled_in(self, sample: int, tested: tuple[int, int]) -> dict[str, int | None]:
        """What each mode of NEAT_PREFILL shows for it now, as class code; tested: as the worker's, see `live_loop`."""
        (ranked,) = self.engine.ranked([int(self.tasks[sample])])
        choices = {mode: filled_in(ranked, mode, tested, self.engine.k) for mode in MODES}
        return {mode: None if name is None else self.engine.classes.index(name) for mode, name in choices.items()}

    def predicted(self, sample: int) -> int:
        """The class that the classifier in force names for it, -1 = none."""
        return int(self.engine.says([int(self.tasks[sample])])[self.engine.source][0])


def follow_head(order: EngineOrder) -> None:
    """As the worker does after each label: fit the linear head, and let it speak of all tasks."""
    engine = order.engine
    with order.clock("fit"):
        _, codes, features = engine.taught()
        head = fit_head(features, codes, engine.classes)
    with order.clock("apply"):
        for _ in engine.set_linear(head):
            pass


class Rounds:
    """Trains on the known labels, once two classes have some, and lets the engine know what it says of all tasks.

    every: new labels of any kind that a round is due after, those of the start counted in; 0 = each time.
    """

    def __init__(self, every: int) -> None:
        self._every, self._counted, self._number = every, 0, 0

    def __call__(self, order: EngineOrder) -> None:
        engine, samples, run = order.engine, order.samples, order.run
        ids, codes, _ = engine.taught()
        known = codes >= 0
        if len(ids) - self._counted < self._every or len(np.unique(codes[known])) < 2:
            return
        self._counted, self._number = len(ids), self._number + 1
        with order.clock("round"):
            taught = np.sort(order.rows[ids[known]])
            of = np.empty(len(order.rows), np.int64)
            of[order.rows[ids]] = codes
            model = samples.learner.fit(
                taught, of[taught], len(run.known), stream("training", run.seed, run.known, self._number)
            )
            engine.set_probabilities(np.arange(len(order.rows)), _softmax(model.logits(order.rows)), engine.classes)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def check(names: Sequence[str]) -> None:
    """Raises SettingsError for a name that is no order's."""
    for name in names:
        if name not in ALL_ORDERS:
            raise SettingsError(f"--orders {name!r}: must be one of {', '.join(ALL_ORDERS)}")


def build(protocol: LiveProtocol, samples: Samples, run: Run, clock: Clock) -> Order:
    """The order that a run is of, before anything is labelled."""
    if run.strategy == "random":
        return RandomOrder(len(samples.features), stream("random order", run.seed, run.known))
    if run.strategy in ("live", "unbalanced"):
        return EngineOrder(protocol, samples, run, clock, follow_head, run.strategy == "live", "linear")
    if run.strategy == "former":
        return EngineOrder(protocol, samples, run, clock, Rounds(protocol.batch), False, "resnet18")
    return EngineOrder(protocol, samples, run, clock, Rounds(1), False, "resnet18", protocol.batch)
