"""Optional columns in Label Studio's Data Manager.

The next tasks get predicted class and inconsistency. The labels to check get the neighbours' class and the probability
of a mistake.

A column is a key in every task's data, which belongs to the users. So columns are off by default, and only four keys
are set, through Label Studio's own action (see `LabelStudioClient.set_column`). That action sets one value for many
tasks, so tasks are grouped by value and numbers rounded.

Only the head of the order and the labels to check are written. A task that leaves them keeps its last values.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from neat_backend.errors import LabelStudioError
from neat_backend.records import Ranked
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.insights import Mistake
from neat_backend.worker.steps.backoff import Backoff
from neat_backend.worker.steps.context import Context

log = logging.getLogger(__name__)

CLASS, INCONSISTENCY = "neat_class", "neat_inconsistency"
NEIGHBOURS, SUSPICION = "neat_neighbours", "neat_suspicion"
KINDS: dict[str, type[np.generic]] = {
    CLASS: np.str_,
    INCONSISTENCY: np.float64,
    NEIGHBOURS: np.str_,
    SUSPICION: np.float64,
}
NAMES = tuple(KINDS)
DECIMALS = 1  # of numbers: few values, so few calls
INVALID = "none of the classes"
RESTS = 20  # rest after a call, in multiples of its duration
SHORTEST_REST_SECONDS = 0.5
AGAIN_SECONDS, LONGEST_AGAIN_SECONDS = 60.0, 3600.0  # after a failure, and after many in a row

Value = str | float


class Columns:
    """Updates the columns of one project; `step` from one thread."""

    def __init__(self, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
        self.project, self.client, self.arrays = context.project, context.client, context.arrays
        self._clock = clock
        self._written = _read(self.arrays)  # column → task → its value
        self._free_at = float("-inf")
        self._backoff = Backoff(AGAIN_SECONDS, LONGEST_AGAIN_SECONDS)

    def step(self, head: Sequence[Ranked], mistakes: Sequence[Mistake] = ()) -> bool:
        """Make one call to Label Studio, for the value that most of these tasks lack; True if one was due.

        Label Studio's failures are logged and tried again; no other work waits for them.
        """
        began = self._clock()
        if began < self._free_at:
            return False
        wanted = self._missing(head, mistakes)
        if not wanted:
            return False
        (name, value), tasks = max(wanted.items(), key=lambda item: len(item[1]))
        try:
            self.client.set_column(self.project, tasks, name, value)
        except LabelStudioError as error:
            self._free_at = self._clock() + self._backoff.failed()
            log.warning("project %d: the column %s could not be written: %s", self.project, name, error)
            return False
        self._backoff.worked()
        self._written[name] |= dict.fromkeys(tasks, value)
        if len(wanted) == 1:  # everything is written: record it for the next start
            keep = {ranked.task for ranked in head} | {mistake.task for mistake in mistakes}
            self._written = {n: {t: v for t, v in found.items() if t in keep} for n, found in self._written.items()}
            _write(self.arrays, self._written)
        self._free_at = self._clock() + max(SHORTEST_REST_SECONDS, RESTS * (self._clock() - began))
        return True

    def moments(self) -> Iterable[float]:
        """When the next call may be made."""
        return (self._free_at,)

    def _missing(self, head: Sequence[Ranked], mistakes: Sequence[Mistake] = ()) -> dict[tuple[str, Value], list[int]]:
        """Column and value → the tasks that should have it but don't."""
        wanted: dict[tuple[str, Value], list[int]] = defaultdict(list)

        def want(task: int, name: str, value: Value) -> None:
            if self._written[name].get(task) != value:
                wanted[name, value].append(task)

        for ranked in head:
            want(ranked.task, INCONSISTENCY, round(ranked.inconsistency, DECIMALS))
            if ranked.predicted is not None or ranked.task in self._written[CLASS]:
                want(ranked.task, CLASS, ranked.predicted or "")
        for mistake in mistakes:
            want(mistake.task, NEIGHBOURS, mistake.neighbours_say or INVALID)
            want(mistake.task, SUSPICION, round(mistake.chance, DECIMALS))
        return wanted


def _read(arrays: ProjectArrays) -> dict[str, dict[int, Value]]:
    """The values that an earlier process wrote; without this note, all are written again."""
    found = arrays.read_snapshot("columns") or {}
    return {
        name: dict(zip(found[f"{name}_ids"].tolist(), found[name].tolist(), strict=True)) if name in found else {}
        for name in NAMES
    }


def _write(arrays: ProjectArrays, written: Mapping[str, Mapping[int, Value]]) -> None:
    snapshot = {}
    for name, kind in KINDS.items():
        snapshot[f"{name}_ids"] = np.array(list(written[name]), np.int64)
        snapshot[name] = np.array(list(written[name].values()), kind)
    arrays.write_snapshot("columns", snapshot)
