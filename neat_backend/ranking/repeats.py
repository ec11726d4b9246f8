"""Groups of near-duplicates, and which of their tasks need no label.

Plain NumPy: the web process reads the groups too. How they are found: `ranking.duplicates`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Groups:
    """Tasks that have a near-duplicate, ascending by group and by id; a group's number is its smallest task."""

    tasks: Ids  # [n]
    groups: Ids  # [n], each task's group

    @classmethod
    def none(cls) -> Groups:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))

    @classmethod
    def of(cls, leaders: dict[int, int]) -> Groups:
        """From each task's group; groups of one are left out."""
        tasks = np.fromiter(leaders.keys(), np.int64, len(leaders))
        groups = np.fromiter(leaders.values(), np.int64, len(leaders))
        _, at, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        several = sizes[at] > 1
        tasks, groups = tasks[several], groups[several]
        order = np.lexsort((tasks, groups))
        return cls(tasks[order], groups[order])

    def without(self, tasks: Iterable[int]) -> Groups:
        """The same without these tasks."""
        kept = ~np.isin(self.tasks, np.fromiter(tasks, np.int64))
        return self if kept.all() else Groups(self.tasks[kept], self.groups[kept])

    def with_task(self, task: int) -> list[int]:
        """The near-duplicates of a task, ascending, itself left out."""
        found = self.tasks[np.isin(self.groups, self.groups[self.tasks == task])]
        return found[found != task].tolist()

    @property
    def count(self) -> int:
        """How many groups."""
        return len(np.unique(self.groups))


def repeats(
    groups: Ids, quality: NDArray[np.float64], labelled: NDArray[np.bool_], open_tasks: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which tasks need no label beside another of their group: bool [n].

    groups [n], ascending; within a group ids ascend. In a group with a label these are all open tasks; in another, all
    but the task of the highest quality, ties to the smaller id.

    Worked example: groups 1 1 1 4 4, qualities .2 .8 .8 .9 .1, the last one labelled: repeats are the first, the
    third and the fourth.
    """
    found = np.zeros(len(groups), bool)
    if not len(groups):
        return found
    starts = np.flatnonzero(np.concatenate([[True], groups[1:] != groups[:-1]]))
    number = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(groups))))
    worth = np.where(open_tasks, quality, -1.0)
    best = np.flatnonzero(worth == np.maximum.reduceat(worth, starts)[number])
    first = best[np.unique(number[best], return_index=True)[1]]
    found[open_tasks] = True
    found[first] = False
    return found | (open_tasks & np.logical_or.reduceat(labelled, starts)[number])
