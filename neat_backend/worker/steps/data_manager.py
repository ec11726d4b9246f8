"""Additions to Label Studio's Data Manager: a tab of the next tasks, a tab of labels to check, columns (columns.py).

The order does not need them: a failure is logged and tried again later. labelstudio/tabs.py makes and finds tabs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from neat_backend.errors import LabelStudioError
from neat_backend.labelstudio import tabs
from neat_backend.labelstudio.publisher import UNCERTAINTY
from neat_backend.labelstudio.tabs import CHECK, NEXT, SELECTION, Tab
from neat_backend.store import insights
from neat_backend.store.arrays import ProjectArrays
from neat_backend.worker.steps import columns
from neat_backend.worker.steps.backoff import Backoff
from neat_backend.worker.steps.columns import Columns
from neat_backend.worker.steps.comparing import Basis
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.followed import Followed
from neat_backend.worker.steps.insight import Insights
from neat_backend.worker.steps.label_schema import Schema
from neat_backend.worker.steps.serving import Serving
from neat_backend.worker.steps.suspicions import Suspicions

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0  # between checks that they exist
LONGEST_BACKOFF_SECONDS = 3600.0  # longest wait between failing tries
SHORTEST_REST_SECONDS = 10.0  # between changes of the list of labels to check
MOST_CHECKED = 50  # tasks in that list; each is a line among the tab's filters


class Tabs:
    """Maintains the tabs of one project; from any thread."""

    def __init__(self, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
        self.project, self.client, self.arrays = context.project, context.client, context.arrays
        self._clock = clock
        self._lock = threading.Lock()
        self._ids = _read_ids(self.arrays)  # title → the tab's id
        self._shown: tuple[str, tuple[int, ...]] = ("", ())  # sampling and tasks to check of the last update
        self._waits = False  # a change has to wait
        self._look_at = self._change_at = self._again_at = float("-inf")
        self._backoff = Backoff(LOOK_SECONDS, LONGEST_BACKOFF_SECONDS)

    def step(self, sampling: str, to_check: Sequence[int]) -> bool:
        """Update the tabs if that is due; True if it was done.

        sampling: the project's; it decides which end of the scores is best. to_check: tasks whose label
        disagrees with their neighbours', the strongest disagreement first.
        """
        wanted = (sampling, tuple(sorted(to_check[:MOST_CHECKED])))
        now = self._clock()
        self._waits = wanted != self._shown
        news = wanted != self._shown and (wanted[0] != self._shown[0] or now >= self._change_at)
        if now < self._again_at or (not news and now < self._look_at):
            return False
        with self._lock:
            began = self._clock()
            self._look_at = now + LOOK_SECONDS
            try:
                self.make(*wanted)
            except LabelStudioError as error:
                self._again_at = now + self._backoff.failed()
                log.warning("project %d: its tabs could not be looked at: %s", self.project, error)
                return False
            self._backoff.worked()
            self._change_at = self._clock() + max(SHORTEST_REST_SECONDS, 20 * (self._clock() - began))
        return True

    def moments(self) -> Iterable[float]:
        """When the next check is due, and when a change that has to wait may be made."""
        return (self._again_at, self._look_at, *((self._change_at,) if self._waits else ()))

    def make(self, sampling: str, to_check: Sequence[int]) -> None:
        """Create, find or repair both tabs. Raises LabelStudioError."""
        best_first = "tasks:predictions_score" if sampling == UNCERTAINTY else "-tasks:predictions_score"
        likeliest_first = ("-tasks:predictions_score",)  # by suspicions.py
        found = self.client.tabs(self.project)
        for tab in (Tab(NEXT, (best_first,)), Tab(CHECK, likeliest_first, tuple(to_check), labels=True)):
            if self._ensure(tab, found)[1]:
                found = self.client.tabs(self.project)
        self._shown = (sampling, tuple(to_check))

    def select(self, tasks: Sequence[int]) -> int:
        """Show these tasks in the tab of chosen tasks; returns its id. Raises LabelStudioError."""
        with self._lock:
            return self._ensure(Tab(SELECTION, tasks=tuple(tasks)))[0]

    def _ensure(self, tab: Tab, there: list[dict[str, Any]] | None = None) -> tuple[int, bool]:
        """The tab's id, and whether it was made. there: the project's tabs as they have just been read."""
        found, made = tabs.ensure(self.client, self.project, tab, self._ids.get(tab.title), there)
        if made:
            log.info("project %d: made the tab %r", self.project, tab.title)
        if self._ids.get(tab.title) != found:
            self._ids[tab.title] = found
            _write_ids(self.arrays, self._ids)
        return found, made


class DataManager:
    """Maintains tabs and columns of one project; `step` from one thread."""

    def __init__(
        self,
        context: Context,
        followed: Followed,
        schema: Schema,
        serving: Serving,
        insight: Insights,
        suspicions: Suspicions,
        tabs: Tabs,
        basis: Basis,
    ) -> None:
        self._context, self._followed, self._schema = context, followed, schema
        self._serving, self._insight, self._basis = serving, insight, basis
        self.tabs, self._suspicions, self._columns = tabs, suspicions, Columns(context)

    def step(self) -> bool:
        """Do one piece of due work; True if there was any."""
        return self._keep_tabs() | self._write_columns()

    def moments(self) -> Iterable[float]:
        """When there may be work, if nothing changes before."""
        parts = (self.tabs, self._suspicions) if self._context.settings.configure_project else ()
        return chain.from_iterable(part.moments() for part in (*parts, self._columns))

    def _keep_tabs(self) -> bool:
        """Recreate missing tabs, sort the first by the sampling, list the labels to check."""
        if not self._context.settings.configure_project or self._basis.since is None:  # not before the first reading
            return False
        with self._context.database.read() as conn:
            to_check = insights.unconfirmed(conn, self._context.project, self._insight.mistakes())[:MOST_CHECKED]
        done = self.tabs.step(self._followed.sampling, [one.task for one in to_check])
        return self._suspicions.step(to_check, self._schema.config) or done

    def _write_columns(self) -> bool:
        if not self._context.settings.task_columns or self._schema.config.image_key in columns.NAMES:
            return False
        return self._columns.step(self._serving.order.head, self._insight.mistakes()[:MOST_CHECKED])


def _read_ids(arrays: ProjectArrays) -> dict[str, int]:
    """Ids of the tabs by title; without this note, tabs are found by their titles."""
    found = arrays.read_snapshot("tabs")
    return {} if found is None else dict(zip(found["titles"].tolist(), found["ids"].tolist(), strict=True))


def _write_ids(arrays: ProjectArrays, ids: dict[str, int]) -> None:
    arrays.write_snapshot(
        "tabs", {"titles": np.array(list(ids), np.str_), "ids": np.array(list(ids.values()), np.int64)}
    )
