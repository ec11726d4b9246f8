"""What people see of a live project: its state in words, how far long work has come, the order for the web process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from neat_backend.ranking.shared import SharedEngine
from neat_backend.store import projects, snapshots
from neat_backend.store.selections import Selection
from neat_backend.store.snapshots import Head
from neat_backend.worker.steps.context import Context

log = logging.getLogger(__name__)

CHEAP_RANKING_SECONDS = 0.02  # of a processor, to write the whole ranking: up to this after every change
RANKING_RESTS = 20  # beyond it, a rest of so many times as long as writing it took
MOST_MOVED = 10_000  # tasks that are named as gone from the written ranking; beyond them it is written anew
PROGRESS_SECONDS = 1.0
LOG_PROGRESS_SECONDS = 10.0


class ShownState:
    """The project's state, its worst problem and its progress, kept in its row by `update`(field=value, …)."""

    def __init__(self, project: int, update: Callable[..., None]) -> None:
        self.bulk = ""  # what the long work is at
        self._project, self._update = project, update
        self._problems: dict[str, tuple[str, str]] = {}
        self._notice = ""
        self._problem_since: float | None = None
        self._lock = threading.Lock()
        self._shown: tuple[str, str] | None = None
        self._progress_at = self._logged_at = 0.0

    def problem(self, where: str, state: str, detail: str) -> None:
        """Something keeps a part from working: show it until it is solved."""
        with self._lock:
            self._problems[where] = (state, detail)
            self._problem_since = self._problem_since or time.monotonic()
            self._shown = None  # whoever else wrote the state meanwhile (a new /setup) does not know of it
        self._show()

    def solved(self, where: str) -> None:
        with self._lock:
            was = self._problems.pop(where, None)
            if not self._problems:
                self._problem_since = None
        if was:
            self._show()

    def notice(self, detail: str) -> None:
        """Something that keeps no part from working, but that somebody should know: shown while there is no problem."""
        if detail and detail != self._notice:
            log.warning("project %d: %s", self._project, detail)
        self._notice = detail
        self._show()

    def stuck_seconds(self) -> float:
        """For how long something has kept a part from working; 0 = nothing does."""
        since = self._problem_since
        return 0.0 if since is None else time.monotonic() - since

    def at(self, bulk: str) -> None:
        """The long work has come to this."""
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
        with self._lock:  # one after the other, so that the last word is the one that stays
            worst = sorted(self._problems.values(), key=lambda p: p[0] != projects.BLOCKED)
            state, detail = worst[0] if worst else (self.bulk or projects.CONNECTING, self._notice)
            if (state, detail) != self._shown:
                self._update(state=state, detail=detail)
                self._shown = (state, detail)


class ShownOrder:
    """The order in the two files that the web process answers from."""

    def __init__(self, context: Context, engine: SharedEngine, model_version: str) -> None:
        self.head: Head | None = None  # the one that was written last
        self._arrays, self._engine = context.arrays, engine
        self._model_version = model_version
        self._moved: set[int] = set()  # tasks that may have left the pool since the ranking was written
        self._ranking_of = -1  # the engine's version that the written ranking is of
        self._ranking_at = 0.0  # when the next one may be written

    def moved(self, tasks: Iterable[int]) -> None:
        """These may have left the pool; with the engine's lock held."""
        self._moved.update(tasks)
        if len(self._moved) > MOST_MOVED:
            self.is_another()

    def is_another(self) -> None:
        """More has changed than can be said beside the ranking that is shown: write a new one, whatever it costs."""
        self._moved.clear()
        self._ranking_at = 0.0

    def selections(self, tasks: Iterable[int]) -> dict[int, Selection]:
        """Where those of the tasks that are in the pool stand in the order that is shown."""
        with self._engine() as engine:
            pool, head = engine.unlabelled(tasks), self.head
        if not pool:
            return {}
        places = snapshots.places(self._arrays, head or snapshots.read_head(self._arrays), pool)
        return {task: Selection(one.rank, one.inconsistency) for task, one in places.items()}

    def left(self) -> tuple[int, ...]:
        """The tasks of the written ranking that are in the pool no more."""
        with self._engine() as engine:
            return tuple(sorted(self._moved - engine.unlabelled(self._moved)))

    def reflects(self, event: int) -> bool:
        """Does the head that was written last reflect the inbox up to this event?"""
        return self.head is not None and self.head.event >= event

    def is_written(self, version: int) -> bool:
        """Is the written ranking that of this version of the engine?"""
        return self._ranking_of == version

    def show(self, head: Head, model_version: str) -> None:
        """Write the head if it is another, and the ranking if it is its turn."""
        self._model_version = model_version or self._model_version
        head = replace(head, model_version=self._model_version)
        if head != self.head:
            snapshots.write_head(self._arrays, head)
            self.head = head
        self._show_ranking()

    def _show_ranking(self) -> None:
        """The whole ranking, at once where that costs little, else at a pace that follows its cost."""
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
        # What a slow disk or a busy machine takes is no reason to wait: only work is.
        if time.thread_time() - cpu_began > CHEAP_RANKING_SECONDS:
            self._ranking_at = time.monotonic() + RANKING_RESTS * (time.monotonic() - began)
