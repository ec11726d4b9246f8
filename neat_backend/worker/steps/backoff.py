"""How long to wait after failures in a row."""

from __future__ import annotations


class Backoff:
    """Twice as long after each failure, from `first_seconds` up to `longest_seconds`."""

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        self._first, self._longest = first_seconds, longest_seconds
        self._next = first_seconds

    def failed(self) -> float:
        """The seconds to wait now."""
        wait, self._next = self._next, min(self._next * 2, self._longest)
        return wait

    def worked(self) -> None:
        """The next failure is the first again."""
        self._next = self._first
