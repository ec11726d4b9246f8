"""Progress of an experiment: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 10.0


class Reporter:
    """Counts images while they are encoded, then steps: rounds, or ten labels each. A context."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        self._done = self._total = self._at_start = 0
        self._began = self._spoke = 0.0
        self._task: Any = None

    def __enter__(self) -> Reporter:
        if self._console.is_terminal:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(TextColumn("{task.description}"), *columns, console=self._console)
            self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, words: str) -> None:
        (self._bar.console if self._bar else self._console).print(words, markup=False, soft_wrap=True)

    def begin(self, what: str, total: int, done: int = 0) -> None:
        """Begin a phase of `total` steps; `done` of them were done by an earlier start."""
        self._done, self._total, self._at_start = done, total, done
        self._began, self._spoke = time.monotonic(), time.monotonic()
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total, completed=done)
        else:
            self.say(f"{what}: {done} of {total}")

    def images(self, done: int, total: int) -> None:
        """Show the number of encoded images."""
        if not self._total:
            self.begin("images encoded", total)
        self._advance(done, "images encoded")

    def step(self, name: str, number: int, figures: Mapping[str, Any]) -> None:
        """Count one step of the run called `name`."""
        accuracy = "-" if figures["accuracy"] is None else f"{100 * figures['accuracy']:.1f} %"
        place = f"{figures['labels']} labels" if "labels" in figures else f"round {number}"
        found = f", {figures['found']} known of {figures['asked']}" if figures.get("asked") else ""
        self._advance(self._done + 1, f"{name}, {place}: accuracy {accuracy}{found}")

    def steps(self, name: str, count: int) -> None:
        """Count steps done by another process."""
        self._advance(self._done + count, name)

    def _advance(self, done: int, words: str) -> None:
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=words)
            return
        now = time.monotonic()
        if now - self._spoke >= LINE_EVERY_SECONDS or done == self._total:
            self._spoke = now
            self.say(f"{words} ({done} of {self._total}{self._left(now)})")

    def _left(self, now: float) -> str:
        done = self._done - self._at_start
        if done <= 0 or self._done >= self._total:
            return ""
        seconds = (now - self._began) / done * (self._total - self._done)
        return f", {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"
