"""What is to be read from Label Studio, noted by those who learn of it, done by one thread (bulk.py)."""

from __future__ import annotations

import threading
from collections.abc import Iterable


class Wanted:
    """Requests stay until they are fulfilled. A flag is cleared before the work, so none made meanwhile is lost."""

    def __init__(self, *, read: bool) -> None:
        """read: the whole project has not been read by this process yet."""
        self.read = read  # the whole project
        self.compare = not read  # now, not only when it is time
        self.annotations: set[int] = set()  # of these tasks
        self._news = threading.Event()

    def read_again(self) -> None:
        """Whatever is known of the project may be wrong."""
        self.read = True
        self.wake()

    def compare_now(self) -> None:
        """Something may be gone from Label Studio, or there by now: perhaps the project itself, or the connection."""
        self.compare = True
        self.wake()

    def read_annotations(self, tasks: Iterable[int]) -> None:
        """These tasks came with annotations that nothing has told of."""
        self.annotations |= set(tasks)
        self.wake()

    def wake(self) -> None:
        """There is something to do."""
        self._news.set()

    def begin(self) -> None:
        """From now on `wait` returns at what comes."""
        self._news.clear()

    def wait(self, seconds: float) -> None:
        self._news.wait(seconds)
