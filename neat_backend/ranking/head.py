"""The head of an order, watched for changes."""

from __future__ import annotations

from abc import ABC, abstractmethod


class WatchedHead(ABC):
    """The first 2B of an order, and whether they have changed."""

    version: int  # grows with every change
    batch_size: int
    _head: tuple[int, ...] = ()  # the first 2B when they were last looked at
    _head_at = -1  # the version of then
    _head_version = 0

    @property
    def head_version(self) -> int:
        """A number that grows exactly when the list of the first 2B has changed since it was last read.

        Reading it is free while nothing has happened at all. A list that changed and is back to what it was
        when somebody last looked (at this number or at `head()`) counts as unchanged; so do the numbers
        of tasks that stay in their places.
        """
        self._look_at_head()
        return self._head_version

    def head(self, n: int | None = None) -> list[int]:
        """The n unlabelled tasks to label first, best first (default 2B)."""
        if n is not None and n > 2 * self.batch_size:
            return self._best(n)
        self._look_at_head()
        return list(self._head[:n])

    def _look_at_head(self) -> None:
        if self._head_at != self.version:
            head = tuple(self._best(2 * self.batch_size))
            self._head_version += head != self._head
            self._head, self._head_at = head, self.version

    def _forget_head(self) -> None:
        """Look again when the order has changed by something that is no change of the state, as new settings."""
        self._head_at = -1

    @abstractmethod
    def _best(self, n: int) -> list[int]:
        """The first n."""
