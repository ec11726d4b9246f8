"""Finding near-duplicates in the background, a block of tasks at a time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.duplicates import NearDuplicates
from neat_backend.ranking.repeats import Groups
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.store import insights
from neat_backend.store.insights import Duplicates as Found
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.step import Step

PIECE = 2048  # tasks of one step
MOST = 200_000  # tasks that are searched: the first by id
SAMPLE = 4096  # tasks to find the search's axes from
REST_SECONDS = 0.5


class Duplicates(Step):
    """Finds one project's near-duplicates. A step rests as long as it took, to leave the cores to labels."""

    name = "duplicates"
    again_at_once = False
    in_background = True
    rests_in_full = True

    def __init__(
        self, context: Context, engine: SharedEngine, kind: str, settled: Callable[[], bool] = lambda: True
    ) -> None:
        """kind: of the features' arrays. settled: whether no images are being encoded (they arrive in any order)."""
        self._arrays, self._kind = context.arrays, kind
        self._similarity, self._seed = context.settings.duplicate_similarity, context.settings.seed
        self._skipped = context.settings.skip_duplicates
        self._engine, self._settled = engine, settled
        self._found: NearDuplicates | None = None
        self._of = -1  # pool version of the groups
        self.rest_seconds = REST_SECONDS

    def load(self) -> None:
        """Give the engine the groups of an earlier process until new ones are found."""
        found = insights.read_duplicates(self._arrays)
        if found is None:
            return
        if (found.kind, found.similarity) != (self._kind, self._similarity):
            self._write(Groups.none())
            return
        groups = Groups(found.tasks, found.groups)
        with self._engine() as engine:
            engine.set_groups(groups)
        if found.skipped != self._skipped:
            self._write(groups)

    def _work(self) -> bool:
        """Search some more tasks; True when all are done and the engine has the groups."""
        if not self._has_work():
            return False
        began = time.monotonic()
        try:
            return self._look()
        except KeyError:  # a task was removed meanwhile
            self._found = None
            return False
        finally:
            self.rest_seconds = max(REST_SECONDS, time.monotonic() - began)

    def wait_seconds(self, done: bool) -> float:
        return 0.0 if self._has_work() else math.inf

    def _has_work(self) -> bool:
        with self._engine() as engine:
            return bool(self._similarity) and engine.pool_version != self._of and self._settled()

    def _look(self) -> bool:
        with self._engine() as engine:
            version, gone = engine.pool_version, engine.take_gone()
            ids = np.sort(np.array(engine.tasks(), np.int64))[:MOST]
            found = self._found if self._found is not None and self._found.remove(gone) else None
            new = ids if found is None else ids[~found.has(ids)]
            if found is None or (len(new) and new[0] < found.last):
                rng = np.random.default_rng(self._seed)
                drawn = ids if len(ids) <= SAMPLE else rng.choice(ids, SAMPLE, replace=False)
                found, new = NearDuplicates(self._similarity, engine.features(drawn), self._features), ids
            self._found = found
            piece = new[:PIECE]
            features = engine.features(piece)
        found.add(piece, features)
        if len(piece) < len(new):
            return False
        groups = found.groups()
        with self._engine() as engine:
            engine.set_groups(groups)
        self._write(groups)
        self._of = version
        return True

    def _write(self, groups: Groups) -> None:
        insights.write_duplicates(
            self._arrays, Found(groups.tasks, groups.groups, self._kind, self._similarity, self._skipped)
        )

    def _features(self, tasks: NDArray[np.int64]) -> NDArray[np.float32]:
        with self._engine() as engine:
            return engine.features(tasks)
