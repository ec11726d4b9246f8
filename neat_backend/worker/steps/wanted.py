"""Requests to read from Label Studio, made by any thread, fulfilled by one step (bulk.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Wanted:
    """Open requests. A flag is cleared before the work, so that no request made meanwhile is lost."""

    def __init__(self, *, read: bool) -> None:
        """read: whether this process has yet to read the whole project."""
        self.read = read  # the whole project
        self.compare = not read  # now, instead of when it is due
        self.annotations: set[int] = set()  # of these tasks
        self.on_news: Callable[[], None] = lambda: None  # runs the step

    def read_again(self) -> None:
        """Request a reading of the whole project."""
        self.read = True
        self.wake()

    def compare_now(self) -> None:
        """Request a comparison: objects may have appeared in Label Studio or gone, even the project or connection."""
        self.compare = True
        self.wake()

    def read_annotations(self, tasks: Iterable[int]) -> None:
        """Request the annotations of tasks that were imported with some."""
        self.annotations |= set(tasks)
        self.wake()

    def wake(self) -> None:
        """Have the step look for work."""
        self.on_news()

    def is_open(self) -> bool:
        """Whether any request is open."""
        return self.read or self.compare or bool(self.annotations)
