"""Showing progress: a bar with the time left on a terminal, a plain line from time to time in a log or a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_EVERY_SECONDS = 10.0


class Progress:
    """A context manager; call `show` at each change."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._bar: Bar | None = None
        self._words = ""
        self._said: tuple[str, int] | None = None
        self._said_at = self._began = 0.0
        self._at_start = 0

    def __enter__(self) -> Progress:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Bar(*columns, console=self._console)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, words: str, done: int = 0, total: int | None = None) -> None:
        """words: the current activity. total: None while it is unknown; then neither count nor time is shown."""
        if words != self._words:
            self._words, self._began, self._at_start = words, self._clock(), done
        if self._bar is not None:
            if not self._bar.tasks:
                self._bar.add_task("", total=None)
            self._bar.update(self._bar.tasks[0].id, description=escape(words), completed=done, total=total)
        else:
            self._line(words, done, total)

    def _line(self, words: str, done: int, total: int | None) -> None:
        now = self._clock()
        news, over = (words, done) != self._said, total is not None and done >= total
        fresh = self._said is None or words != self._said[0]
        if not news or not (fresh or over or now - self._said_at >= LINE_EVERY_SECONDS):
            return
        self._said, self._said_at = (words, done), now
        count = "" if total is None else f": {done} of {total}{self._left(done, total, now)}"
        self._console.print(f"{words}{count}", markup=False, highlight=False, soft_wrap=True)

    def _left(self, done: int, total: int, now: float) -> str:
        since_start = done - self._at_start
        if since_start <= 0 or done >= total:
            return ""
        seconds = (now - self._began) / since_start * (total - done)
        return f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"
