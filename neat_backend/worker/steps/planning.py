"""Strategies that look at the whole pool and choose a batch together, in seconds: `NEAT_STRATEGY` other than neat.

NEAT's own order follows each label in milliseconds. These can't, so their order is a *plan*, made beside the labels:
it is what the strategy chooses for the state of the moment when it began, it is made again as long as the state has
changed since, and meanwhile the last plan, less what has been labelled, is served. It depends on the state alone: once
it is quiet, a backend that was started anew has the same one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.shared import SharedEngine
from neat_backend.records import Ranked
from neat_backend.worker.steps.step import POLL_SECONDS, Step

if TYPE_CHECKING:
    from neat_backend.ranking.pool import Past, Pool

log = logging.getLogger(__name__)

LOOKED_AT = 20_000  # unlabelled tasks that a plan chooses from; of a larger pool a sample drawn by the seed
LOWEST = 0.5  # priorities of planned tasks go from 1 down to this


class Planning(Step):
    """One project's plan: made by a thread of its own, read by those who publish.

    version grows with each plan; event is the last one that the present plan reflects.
    """

    name = "plan"
    again_at_once = False

    def __init__(
        self,
        engine: SharedEngine,
        strategy: str,
        seed: int,
        applied: Callable[[], int],
        *,
        queries: Callable[[], Sequence[Sequence[int]]] = list,
        holds: Callable[[], bool] = lambda: False,
    ) -> None:
        """applied: the last event that the engine has taken in. queries: the tasks that each finished query got
        answers for, oldest first. holds: whether the engine is about to change anyway."""
        self.strategy, self.seed = strategy, seed
        self.version = 0
        self.event = -1
        self._engine, self._applied, self._queries, self._holds = engine, applied, queries, holds
        self._order: list[int] = []
        self._of = -1  # the engine's version that it was made from

    def is_behind(self) -> bool:
        """Has anything changed since the plan was begun?"""
        with self._engine() as engine:
            return engine.version != self._of

    def is_busy(self) -> bool:
        return self.is_behind()

    def step(self) -> bool:
        """Make a new plan if anything has changed; True if so."""
        from neat_backend.strategies import strategy  # imports what the strategy needs, and only where it is wanted

        self.rest_seconds = POLL_SECONDS
        if self._holds():
            return False
        with self._engine() as engine:
            if not self.is_behind():
                return False
            version, reflects, size = engine.version, self._applied(), 2 * engine.batch_size
            ids, pool = engine.pool(LOOKED_AT)
        began = time.monotonic()
        chosen: Sequence[int] = []
        if pool is not None:
            pool = replace(pool, past=_past(ids, pool, self._queries()))
            chosen = ids[strategy(self.strategy)(pool, size, np.random.default_rng(self.seed))].tolist()
        with self._engine():
            self._order, self._of, self.event = list(chosen), version, reflects
            self.version += 1
        # As long a rest as the plan took: the labels and the trainings need the machine too.
        self.rest_seconds = max(POLL_SECONDS, time.monotonic() - began)
        log.debug("a plan of %d tasks by %s in %.2f s", len(chosen), self.strategy, self.rest_seconds)
        return True

    def head(self) -> list[Ranked]:
        """The first 2B to label: what is left of the plan, then the engine's own order."""
        with self._engine() as engine:
            left = engine.unlabelled(self._order)
            planned = [task for task in self._order if task in left]
            size = 2 * engine.batch_size
            if len(planned) < size:
                more = [task for task in engine.head(size + len(planned)) if task not in left]
                planned += more[: size - len(planned)]
            return in_this_order(engine.ranked(planned))


class Unplanned:
    """NEAT's own order, which follows each label: the face of a plan that is never behind."""

    version = event = 0  # never asked for while it is not behind

    def __init__(self, engine: SharedEngine) -> None:
        self._engine = engine

    def is_behind(self) -> bool:
        return False

    def head(self) -> list[Ranked]:
        """The first 2B to label."""
        with self._engine() as engine:
            return engine.ranked(engine.head())


def _past(ids: NDArray[np.int64], pool: Pool, queries: Sequence[Sequence[int]]) -> tuple[Past, ...]:
    """The queries in the pool's own indices, for ids [n]. What is not here or not labelled any more is left out."""
    from neat_backend.ranking.pool import UNLABELLED, Past

    found = []
    for query in queries:
        at = np.flatnonzero(np.isin(ids, np.array(query, np.int64)) & (pool.labels != UNLABELLED))
        found.append(Past(at, pool.labels[at]))
    return tuple(found)


def in_this_order(tasks: Sequence[Ranked]) -> list[Ranked]:
    """The same tasks with priorities that put them in the order given."""
    step = (1 - LOWEST) / max(len(tasks), 1)
    return [replace(task, priority=1 - step * place) for place, task in enumerate(tasks)]
