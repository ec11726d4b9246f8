"""Near-duplicates among the features of a pool: groups around leaders, found one task after the other.

In the order of their ids, a task joins the group of the most similar leader before it (cosine at least `similarity`,
ties to the smaller id), or else leads a group of its own. So every task of a group is near its leader, and no chain of
small differences joins a whole class, as connected components do. The result follows from the features alone.

A search costs a product with each leader along 64 axes instead of all: with rests of the lengths r, s that the axes
leave, x·y ≤ Px·Py + r·s (Cauchy-Schwarz), which is one inner product. Those within reach are compared exactly (the
features lie on a grid, `ranking.neighbors`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.planes import grown
from neat_backend.ranking.repeats import Groups

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

AXES = 64
REACHED = 64  # leaders that a task is compared with exactly: those with the highest bounds
SLACK = 1e-4  # of a bound: it is computed in single precision
AT_ONCE = 1024  # tasks compared with each other in full
LEADERS_AT_ONCE = 4096  # whose bounds are computed together: 17 MB


class NearDuplicates:
    """Groups of the tasks added so far; exact while no task has more than REACHED leaders within its bound."""

    def __init__(self, similarity: float, sample: Floats, features: Callable[[Ids], Floats]) -> None:
        """sample [n, d]: features to find the axes from. features: returns those of tasks added before, [m, d]."""
        self.similarity = np.float32(similarity)
        self._features = features
        values = sample.astype(np.float64)
        self._axes = np.linalg.eigh(values.T @ values)[1][:, -AXES:]  # the rest: what they leave of length 1
        self._leaders: Ids = np.zeros(0, np.int64)  # ascending
        self._reduced_leaders: Floats = np.zeros((0, self._axes.shape[1] + 1), np.float32)  # and room for more
        self._group: dict[int, int] = {}  # task → its leader
        self._sizes: dict[int, int] = {}  # leader → tasks of its group

    def __len__(self) -> int:
        return len(self._group)

    @property
    def last(self) -> int:
        """The largest task id added so far; 0 = none."""
        return next(reversed(self._group), 0)

    def groups(self) -> Groups:
        return Groups.of(self._group)

    def add(self, tasks: Ids, features: Floats) -> None:
        """Add tasks, ascending and larger than `last`; features [n, d], unit vectors on the grid."""
        for start in range(0, len(tasks), AT_ONCE):
            self._add(tasks[start : start + AT_ONCE], features[start : start + AT_ONCE])

    def has(self, tasks: Ids) -> NDArray[np.bool_]:
        """Which of the tasks have been added: bool [n]."""
        return np.isin(tasks, np.fromiter(self._group, np.int64))

    def remove(self, tasks: Iterable[int]) -> bool:
        """Remove tasks. Returns False if other tasks depend on one of them; then rebuild the groups."""
        gone = [task for task in tasks if task in self._group]
        for task in gone:
            self._sizes[self._group.pop(task)] -= 1
        alone = [task for task in gone if task in self._sizes]
        if any(self._sizes.pop(task) for task in alone):
            return False
        if alone:
            at = np.searchsorted(self._leaders, alone)
            self._leaders = np.delete(self._leaders, at)
            self._reduced_leaders = np.delete(self._reduced_leaders, at, axis=0)
        return True

    def _add(self, tasks: Ids, features: Floats) -> None:
        reduced = self._reduced(features)
        before = self._nearest_leader(features, reduced)
        values = features.astype(np.float64)
        among = (values @ values.T).astype(np.float32)
        new: list[int] = []  # rows of the leaders among these
        for row, task in enumerate(tasks.tolist()):
            near, leader = before[row]
            if new:
                here = int(np.argmax(among[row, new]))
                if among[row, new[here]] > near:
                    near, leader = among[row, new[here]], int(tasks[new[here]])
            if near < self.similarity:
                leader = task
                new.append(row)
            self._group[task] = leader
            self._sizes[leader] = self._sizes.get(leader, 0) + 1
        count = len(self._leaders)
        self._leaders = np.concatenate([self._leaders, tasks[new]])
        if len(self._leaders) > len(self._reduced_leaders):
            self._reduced_leaders = grown(self._reduced_leaders, len(self._leaders) + count // 4)
        self._reduced_leaders[count : len(self._leaders)] = reduced[new]

    def _reduced(self, features: Floats) -> Floats:
        """[n, d] → [n, axes + 1]: along the axes, and the length of the rest."""
        along = features.astype(np.float64) @ self._axes
        rest = np.sqrt(np.maximum((features.astype(np.float64) ** 2).sum(axis=1) - (along**2).sum(axis=1), 0))
        return np.concatenate([along, rest[:, None]], axis=1).astype(np.float32)

    def _nearest_leader(self, features: Floats, reduced: Floats) -> list[tuple[np.float32, int]]:
        """For each row the similarity and id of the most similar leader; -1 where none is within reach."""
        nearest = [(np.float32(-1), 0)] * len(features)
        row, place = self._within_reach(reduced)
        if not len(row):
            return nearest
        leaders, at = np.unique(self._leaders[place], return_inverse=True)
        theirs = self._features(leaders).astype(np.float64)
        similarity = np.einsum("ij,ij->i", features[row].astype(np.float64), theirs[at]).astype(np.float32)
        for best in np.lexsort((-leaders[at], similarity)).tolist():  # the last assignment to a row is its best
            nearest[int(row[best])] = (similarity[best], int(leaders[at[best]]))
        return nearest

    def _within_reach(self, reduced: Floats) -> tuple[Ids, Ids]:
        """Pairs whose bound allows the similarity, rows and places of leaders; of each row the REACHED highest."""
        bound: Floats = np.zeros(0, np.float32)
        row = place = self._leaders[:0]
        bars = np.full((len(reduced), 1), self.similarity - SLACK, np.float32)
        for start in range(0, len(self._leaders), LEADERS_AT_ONCE):
            stop = min(start + LEADERS_AT_ONCE, len(self._leaders))
            products = reduced @ self._reduced_leaders[start:stop].T
            rows, places = np.nonzero(products >= bars)
            bound = np.concatenate([bound, products[rows, places]])
            row, place = np.concatenate([row, rows]), np.concatenate([place, places + start])
            order = np.lexsort((-bound, row))
            rank = np.arange(len(row)) - np.searchsorted(row[order], row[order])
            order, rank = order[rank < REACHED], rank[rank < REACHED]
            bound, row, place = bound[order], row[order], place[order]
            bars[row[rank == REACHED - 1], 0] = bound[rank == REACHED - 1]
        return row, place
