"""State shown to people: a live project's state in words, the progress of long work, the order for the web process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.store import projects, snapshots
from neat_backend.store.selections import Selection
from neat_backend.store.snapshots import Head
from neat_backend.worker.steps.context import Context

log = logging.getLogger(__name__)

CHEAP_RANKING_SECONDS = 0.02  # of a processor, to write the whole ranking: up to this after every change
RANKING_RESTS = 20  # beyond it, a rest of so many times as long as writing it took
MOST_MOVED = 10_000  # tasks listed as having left the written ranking; with more, it is written again
PROGRESS_SECONDS = 1.0
LOG_PROGRESS_SECONDS = 10.0


class ShownState:
    """The project's state, worst problem and progress, stored in its row by `update`(field=value, …)."""

    def __init__(self, project: int, update: Callable[..., None]) -> None:
        self.bulk = ""  # the state by the long work
        self._project, self._update = project, update
        self._problems: dict[str, tuple[str, str]] = {}
        self._notice = ""
        self._problem_since: float | None = None
        self._lock = threading.Lock()
        self._shown: tuple[str, str] | None = None
        self._progress_at = self._logged_at = 0.0

    def problem(self, where: str, state: str, detail: str) -> None:
        """Show a problem that stops a part from working, until it is solved."""
        with self._lock:
            self._problems[where] = (state, detail)
            self._problem_since = self._problem_since or time.monotonic()
            self._shown = None  # another writer of the state (a new /setup) does not know of the problem
        self._show()

    def solved(self, where: str) -> None:
        with self._lock:
            was = self._problems.pop(where, None)
            if not self._problems:
                self._problem_since = None
        if was:
            self._show()

    def notice(self, detail: str) -> None:
        """Show a notice while there is no problem."""
        if detail and detail != self._notice:
            log.warning("project %d: %s", self._project, detail)
        self._notice = detail
        self._show()

    def stuck_seconds(self) -> float:
        """How long a problem has lasted; 0 = there is none."""
        since = self._problem_since
        return 0.0 if since is None else time.monotonic() - since

    def at(self, bulk: str) -> None:
        """Set the state by the long work."""
        if bulk != self.bulk:
            self.bulk = bulk
            self._progress_at = self._logged_at = 0.0
            self._update(progress_done=0, progress_total=0, progress_eta_seconds=None)
        self._show()

    def progress(self, done: int, total: int, eta_seconds: float | None = None) -> None:
        now = time.monotonic()
        if now - self._progress_at < PROGRESS_SECONDS and done < total:
            return
        self._progress_at = now
        self._update(progress_done=done, progress_total=total, progress_eta_seconds=eta_seconds)
        if now - self._logged_at >= LOG_PROGRESS_SECONDS:
            self._logged_at = now
            left = "" if eta_seconds is None else f", {eta_seconds:.0f} s left"
            log.info("project %d: %s, %d of %d%s", self._project, self.bulk, done, total, left)

    def _show(self) -> None:
        with self._lock:  # one writer at a time, so that the last state is the one that stays
            worst = sorted(self._problems.values(), key=lambda p: p[0] != projects.BLOCKED)
            state, detail = worst[0] if worst else (self.bulk or projects.CONNECTING, self._notice)
            if (state, detail) != self._shown:
                self._update(state=state, detail=detail)
                self._shown = (state, detail)


class ShownOrder:
    """The order in the two files that the web process reads."""

    def __init__(self, context: Context, engine: SharedEngine, model_version: str) -> None:
        self.head: Head | None = None  # the head written last
        self._arrays, self._engine = context.arrays, engine
        self._model_version = model_version
        self._moved: set[int] = set()  # tasks that may have left the pool since the ranking was written
        self._ranking_of = -1  # the engine's version of the written ranking
        self._ranking_at = 0.0  # when the next one may be written

    def moved(self, tasks: Iterable[int]) -> None:
        """Record tasks that may have left the pool; call it with the engine's lock held."""
        self._moved.update(tasks)
        if len(self._moved) > MOST_MOVED:
            self.invalidate()

    def invalidate(self) -> None:
        """Write a new ranking in any case: more has changed than the head can record."""
        self._moved.clear()
        self._ranking_at = 0.0

    def selections(self, tasks: Iterable[int]) -> dict[int, Selection]:
        """Rank and inconsistency in the shown order of those tasks that are in the pool."""
        with self._engine() as engine:
            pool, head = engine.unlabelled(tasks), self.head
        if not pool:
            return {}
        places = snapshots.places(self._arrays, head or snapshots.read_head(self._arrays), pool)
        return {task: Selection(one.rank, one.inconsistency) for task, one in places.items()}

    def left(self) -> tuple[int, ...]:
        """The tasks of the written ranking that have left the pool."""
        with self._engine() as engine:
            return tuple(sorted(self._moved - engine.unlabelled(self._moved)))

    def reflects(self, event: int) -> bool:
        """Whether the head written last reflects the inbox up to this event."""
        return self.head is not None and self.head.event >= event

    def is_written(self, version: int) -> bool:
        """Whether the written ranking is of this version of the engine."""
        return self._ranking_of == version

    def show(self, head: Head, model_version: str) -> None:
        """Write the head if it has changed, and the ranking if it is due."""
        self._model_version = model_version or self._model_version
        head = replace(head, model_version=self._model_version)
        if head != self.head:
            snapshots.write_head(self._arrays, head)
            self.head = head
        self._show_ranking()

    def _show_ranking(self) -> None:
        """Write the whole ranking, at once where that is cheap, else at intervals that grow with its cost."""
        began, cpu_began = time.monotonic(), time.thread_time()
        with self._engine() as engine:
            if self.is_written(engine.version) or time.monotonic() < self._ranking_at:
                return
            version, moved, self._moved = engine.version, self._moved, set()
            finish = engine.copied_ranking()
        try:
            snapshots.write_ranking(self._arrays, vars(finish()))
        except BaseException:
            with self._engine():
                self._moved |= moved
            raise
        self._ranking_of = version
        # Only processor time counts as cost, not waiting for a slow disk or a busy machine.
        if time.thread_time() - cpu_began > CHEAP_RANKING_SECONDS:
            self._ranking_at = time.monotonic() + RANKING_RESTS * (time.monotonic() - began)
