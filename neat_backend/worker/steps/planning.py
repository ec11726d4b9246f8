"""Strategies that choose a whole batch from the whole pool, in seconds: `NEAT_STRATEGY` other than neat.

NEAT's own order follows each label in milliseconds. These strategies can't, so their order is a *plan*, computed in the
background from a snapshot of the state and again whenever the state has changed. Meanwhile the last plan, without the
tasks labelled since, is served. A plan depends on the state alone: without changes, a restarted backend computes the
same one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.records import Ranked
from neat_backend.worker.steps.step import POLL_SECONDS, Step

if TYPE_CHECKING:
    from neat_backend.ranking.pool import Past, Pool, Select

log = logging.getLogger(__name__)

LOOKED_AT = 20_000  # unlabelled tasks that a plan chooses from; in a larger pool the seed draws a sample
LOWEST = 0.5  # priorities of planned tasks go from 1 down to this


class Planning(Step):
    """One project's plan: computed in a thread of its own, read by the publishing steps.

    version grows with each plan; event is the last event that the present plan reflects.
    """

    name = "plan"
    again_at_once = False
    rests_in_full = True

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
        """applied: the last event that the engine has applied. queries: the answered tasks of each finished query,
        oldest first. holds: whether the engine is about to change anyway."""
        self.strategy, self.seed = strategy, seed
        self.version = 0
        self.event = -1
        self._engine, self._applied, self._queries, self._holds = engine, applied, queries, holds
        self._order: list[int] = []
        self._of = -1  # the engine's version that the plan was computed from
        self._select: Select | None = None
        self._select_of = -1  # the engine's pool_version that it keeps anything of

    def is_behind(self) -> bool:
        """Whether the state has changed since the plan was begun."""
        with self._engine() as engine:
            return engine.version != self._of

    def is_busy(self) -> bool:
        return self.is_behind()

    def _work(self) -> bool:
        """Compute a new plan if the state has changed; True if so."""
        self.rest_seconds = POLL_SECONDS
        if self._holds():
            return False
        with self._engine() as engine:
            if not self.is_behind():
                return False
            version, reflects, size = engine.version, self._applied(), 2 * engine.batch_size
            ids, pool = engine.pool(LOOKED_AT)
            select = self._following(engine.pool_version)
        began = time.monotonic()
        chosen: Sequence[int] = []
        if pool is not None:
            pool = replace(pool, past=_past(ids, pool, self._queries()))
            chosen = ids[select(pool, size, np.random.default_rng(self.seed))].tolist()
        with self._engine():
            self._order, self._of, self.event = list(chosen), version, reflects
            self.version += 1
        # Rest as long as the plan took: labels and trainings need the machine too.
        self.rest_seconds = max(POLL_SECONDS, time.monotonic() - began)
        log.debug("a plan of %d tasks by %s in %.2f s", len(chosen), self.strategy, self.rest_seconds)
        return True

    def _following(self, pool_version: int) -> Select:
        """The strategy, with what it has kept; nothing is kept where tasks have come or gone."""
        from neat_backend.strategies import following  # here: imports the strategy's libraries only where it is used

        if self._select is None or self._select_of != pool_version:
            self._select, self._select_of = following(self.strategy), pool_version
        return self._select

    def head(self) -> list[Ranked]:
        """The first 2B to label: the rest of the plan, then the engine's own order."""
        with self._engine() as engine:
            left = engine.unlabelled(self._order)
            planned = [task for task in self._order if task in left]
            size = 2 * engine.batch_size
            if len(planned) < size:
                more = [task for task in engine.head(size + len(planned)) if task not in left]
                planned += more[: size - len(planned)]
            return in_this_order(engine.ranked(engine.with_draws(planned)[:size]))


class Unplanned:
    """NEAT's own order, which follows each label, with the interface of a plan that is never behind."""

    version = event = 0  # not read while the plan is never behind

    def __init__(self, engine: SharedEngine) -> None:
        self._engine = engine

    def is_behind(self) -> bool:
        return False

    def head(self) -> list[Ranked]:
        """The first 2B to label."""
        with self._engine() as engine:
            return engine.ranked(engine.head())


def _past(ids: NDArray[np.int64], pool: Pool, queries: Sequence[Sequence[int]]) -> tuple[Past, ...]:
    """The queries in the pool's own indices, for ids [n]. Tasks that are missing or no longer labelled are left out."""
    from neat_backend.ranking.pool import UNLABELLED, Past

    found = []
    for query in queries:
        at = np.flatnonzero(np.isin(ids, np.array(query, np.int64)) & (pool.labels != UNLABELLED))
        found.append(Past(at, pool.labels[at]))
    return tuple(found)


def in_this_order(tasks: Sequence[Ranked]) -> list[Ranked]:
    """The tasks with priorities that sort them in the given order."""
    step = (1 - LOWEST) / max(len(tasks), 1)
    return [replace(task, priority=1 - step * place) for place, task in enumerate(tasks)]
