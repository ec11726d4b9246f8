"""Background publishing: the tail's scores, old revisions, the Data Manager's tabs and columns."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.records import Ranked
from neat_backend.store.measures import Measures
from neat_backend.worker.steps.data_manager import DataManager
from neat_backend.worker.steps.followed import Followed
from neat_backend.worker.steps.publishing import Publishing
from neat_backend.worker.steps.step import Step


class Tidying(Step):
    """Does one piece of background publishing at a time."""

    name = "tidy"
    in_background = True
    rest_seconds = 1.0

    def __init__(
        self,
        engine: SharedEngine,
        followed: Followed,
        publishing: Publishing,
        data_manager: DataManager,
        measures: Measures,
    ) -> None:
        self._engine, self._followed, self._publishing = engine, followed, publishing
        self._data_manager, self._measures = data_manager, measures

    def _work(self) -> bool:
        self._measures.save()
        # The Data Manager's steps handle their own failures; the one that may raise comes last.
        done = self._data_manager.step()
        return self._publishing.background_step(self._first, self._followed.sampling) or done

    def wait_seconds(self, done: bool) -> float:
        return min(self._measures.due_seconds(), self.first_moment_seconds())

    def moments(self) -> Iterable[float]:
        return chain(self._data_manager.moments(), self._publishing.moments())

    def _first(self, n: int) -> list[Ranked]:
        with self._engine() as engine:
            return engine.ranked(engine.head(n))
