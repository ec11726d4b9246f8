"""The head of an order, random draws included, watched for changes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.draws import Draws, Ids
from neat_backend.ranking.labels import LabelBook


class WatchedHead(ABC):
    """The first 2B of an order, and whether they have changed."""

    version: int  # grows with every change
    pool_version: int  # grows when tasks come or go
    batch_size: int
    draws: Draws
    _book: LabelBook
    _head: tuple[int, ...] = ()  # the first 2B when last read
    _drawn: dict[int, float]  # those of them that are random draws, and the priorities that put them in their places
    _head_at = -1  # the version at that time
    _head_version = 0

    @property
    def head_version(self) -> int:
        """A number that grows exactly when the list of the first 2B has changed since it was last read.

        Reading it is free while `version` stays the same. A list that changed and changed back since the last read
        (of this number or of `head()`) counts as unchanged. Changed numbers of tasks that keep their places don't
        count.
        """
        self._look_at_head()
        return self._head_version

    def head(self, n: int | None = None) -> list[int]:
        """The n unlabelled tasks to label first, best first (default 2B)."""
        if n is not None and n > 2 * self.batch_size:
            return self.with_draws(self._best(n)[0])[:n]
        self._look_at_head()
        return list(self._head[:n])

    def with_draws(self, tasks: Sequence[int]) -> list[int]:
        """Unlabelled tasks in this order, with the random draws in their places among the first 2B."""
        return self._mixed(tasks)[0]

    def draw_priorities(self) -> dict[int, float]:
        """The random draws of the head, with the priorities that put them in their places."""
        self._look_at_head()
        return self._drawn

    def sample(self) -> Ids:
        """The labelled tasks that are a random sample of all tasks with features, see `draws`; none with share 0."""
        if not self.draws.share:
            return np.zeros(0, np.int64)
        self.draws.permute(self._all_ids(), self.pool_version)
        return self.draws.sample(self._book)

    def _look_at_head(self) -> None:
        if self._head_at != self.version:
            size = 2 * self.batch_size
            best, priorities = self._best(size + bool(self.draws.share))  # one more, for the last one's priority
            mixed, drawn = self._mixed(best)
            head = tuple(mixed[:size])
            self._head_version += head != self._head
            self._drawn = _between(mixed, drawn, dict(zip(best, priorities.tolist(), strict=True)))
            self._head, self._head_at = head, self.version

    def _mixed(self, tasks: Sequence[int]) -> tuple[list[int], set[int]]:
        if not self.draws.share:
            return list(tasks), set()
        self.draws.permute(self._all_ids(), self.pool_version)
        return self.draws.mix(tasks, self._book, 2 * self.batch_size)

    @abstractmethod
    def _all_ids(self) -> Ids:
        """All tasks with features, labelled or not."""

    @abstractmethod
    def _best(self, n: int) -> tuple[list[int], NDArray[np.float64]]:
        """The first n without random draws, and their priorities."""


def _between(order: Sequence[int], drawn: set[int], priorities: dict[int, float]) -> dict[int, float]:
    """For the drawn ones: the middle between the tasks before and after them."""
    found: dict[int, float] = {}
    before, after = 1.0, 0.0
    for place, task in enumerate(order):
        if task in drawn:
            after = next((priorities[one] for one in order[place + 1 :] if one not in drawn), 0.0)
            before = found[task] = (before + after) / 2
        else:
            before = priorities[task]
    return found
