"""Waiting times after consecutive failures."""

from __future__ import annotations


class Backoff:
    """Doubles the wait after each failure, from `first_seconds` up to `longest_seconds`."""

    def __init__(self, first_seconds: float, longest_seconds: float) -> None:
        self._first, self._longest = first_seconds, longest_seconds
        self._next = first_seconds

    def failed(self) -> float:
        """Record a failure; returns the seconds to wait."""
        wait, self._next = self._next, min(self._next * 2, self._longest)
        return wait

    def worked(self) -> None:
        """Record a success: the next failure counts as the first."""
        self._next = self._first
