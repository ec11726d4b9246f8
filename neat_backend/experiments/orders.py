"""The orders that a live experiment compares. Each chooses the next query and receives each answer.

random      a permutation drawn by the seed
live        the default: classes in balance, led by the linear head, which is fitted again after each label
unbalanced  the same with NEAT_BALANCE=0
former      the default until the classes were balanced: the paper's score of each task at each moment, P from rounds
neat_plus   NEAT_STRATEGY=neat_plus, a plan made again after each label
paper       NEAT_RERANK=round: the first B as one batch, then a round; Algorithm 1 of the paper

Rounds take no time here: a real one takes minutes, in which people label on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from neat_backend import strategies
from neat_backend.errors import SettingsError
from neat_backend.experiments.checkpoints import Run
from neat_backend.experiments.loop import Samples
from neat_backend.experiments.models import Clock
from neat_backend.experiments.presets import ALL_ORDERS
from neat_backend.experiments.protocols import LiveProtocol
from neat_backend.experiments.splits import stream
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.linear import fit_head
from neat_backend.ranking.method import Method
from neat_backend.ranking.pool import Past
from neat_backend.ranking.prefill import MODES, filled_in
from neat_backend.ranking.views import Source
from neat_backend.records import Label


class Order(Protocol):
    """The order of one run over a pool of n samples."""

    def take(self, samples: Sequence[int], codes: Sequence[int]) -> None:
        """Apply labels: code of the class, or INVALID."""

    def next(self) -> list[int]:
        """The samples to query before the next call; never empty, no sample twice."""


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
    """The engine's own order. Task t is sample rows[t] of a permutation, so that ids are independent of classes.

    follow: updates the engine before a query; at_once: samples queried between updates.
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
            Method(
                protocol.k,
                protocol.rule,
                protocol.batch,
                run.seed,
                balance=balance,
                random_share=protocol.random_share,
            ),
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
        """The choice pre-filled by each mode of NEAT_PREFILL, as class code; tested: see `live_loop`."""
        (ranked,) = self.engine.ranked([int(self.tasks[sample])])
        choices = {mode: filled_in(ranked, mode, tested, self.engine.k) for mode in MODES}
        return {mode: None if name is None else self.engine.classes.index(name) for mode, name in choices.items()}

    def predicted(self, sample: int) -> int:
        """The class that the classifier in force predicts, -1 = none."""
        return int(self.engine.predictions([int(self.tasks[sample])])[self.engine.source][0])


class PlannedOrder(EngineOrder):
    """A strategy's plan, made again after each label; the linear head's probabilities, past queries of B labels."""

    def __init__(self, protocol: LiveProtocol, samples: Samples, run: Run, clock: Clock) -> None:
        super().__init__(protocol, samples, run, clock, follow_head, True, "linear")
        self._select, self._asked = strategies.following(run.strategy), list[int]()

    def take(self, samples: Sequence[int], codes: Sequence[int]) -> None:
        super().take(samples, codes)
        if len(samples) == 1:  # else those of the start
            self._asked += self.tasks[samples].tolist()

    def next(self) -> list[int]:
        self._follow(self)
        with self.clock("order"):
            ids, pool = self.engine.pool(len(self.rows))
            if pool is None:
                raise RuntimeError("a live experiment has classes")
            size = self.engine.batch_size
            queries = np.array(self._asked[: len(self._asked) // size * size], np.int64).reshape(-1, size)
            at = [np.sort(np.searchsorted(ids, query)) for query in queries]
            pool = replace(pool, past=tuple(Past(rows, pool.labels[rows]) for rows in at))
            chosen = self._select(pool, 2 * size, np.random.default_rng(self.run.seed))
            return [int(self.rows[ids[chosen[0]]])]


def follow_head(order: EngineOrder) -> None:
    """Fit the linear head and apply it to all tasks, as the worker does after each label."""
    engine = order.engine
    with order.clock("fit"):
        _, codes, features = engine.training_data()
        head = fit_head(features, codes, engine.classes)
    with order.clock("apply"):
        for _ in engine.set_linear(head):
            pass


class Rounds:
    """Trains on the known labels, once two classes have some, and sets the engine's probabilities of all tasks.

    every: new labels of any kind between rounds, including the initial ones; 0 = a round each time.
    """

    def __init__(self, every: int) -> None:
        self._every, self._counted, self._number = every, 0, 0

    def __call__(self, order: EngineOrder) -> None:
        engine, samples, run = order.engine, order.samples, order.run
        ids, codes, _ = engine.training_data()
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
    """Raise SettingsError for an unknown order."""
    for name in names:
        if name not in ALL_ORDERS:
            raise SettingsError(f"--orders {name!r}: must be one of {', '.join(ALL_ORDERS)}")


def build(protocol: LiveProtocol, samples: Samples, run: Run, clock: Clock) -> Order:
    """The order of a run, before the first label."""
    if run.strategy == "random":
        return RandomOrder(len(samples.features), stream("random order", run.seed, run.known))
    if run.strategy in ("live", "unbalanced"):
        return EngineOrder(protocol, samples, run, clock, follow_head, run.strategy == "live", "linear")
    if run.strategy == "neat_plus":
        return PlannedOrder(protocol, samples, run, clock)
    if run.strategy == "former":
        return EngineOrder(protocol, samples, run, clock, Rounds(protocol.batch), False, "resnet18")
    return EngineOrder(protocol, samples, run, clock, Rounds(1), False, "resnet18", protocol.batch)
