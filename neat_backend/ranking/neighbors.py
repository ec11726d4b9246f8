"""For every task, its K nearest labelled tasks: exact, and kept up as labels come and go.

Features are L2-normalised rows on the 2^-22 grid (`grid.to_grid`). A product of two grid
values is a multiple of 2^-44 and every partial sum stays below 2^4, so a dot product in float64 is
*exact* whatever the order of summation. The similarity of two tasks is that exact value rounded to
float32: one number, independent of batch shapes, threads and libraries. Ties go to the smaller id.

Fast products of the features' leading eight bits only *filter*: where they leave it possible that a label is
among a row's K nearest, its similarity is computed exactly. Adding m labels is one blocked pass over the rows
(`ranking.planes`); unlabelling searches again only for the rows that had the task as a neighbour. Searches from scratch
multiply rows and labels by BLAS (`ranking.all_pairs`); where a GPU holds the pool, large ones are FAISS's on the GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking import kernels
from neat_backend.ranking.all_pairs import rounding
from neat_backend.ranking.cells import GROWN, MOST_CELLS, SAMPLE_PER_CELL, Cells
from neat_backend.ranking.gpus import GPU_PAIRS, index_on_gpus
from neat_backend.ranking.kernels import NONE
from neat_backend.ranking.planes import FeaturePlanes, Rows, grown

Ids = NDArray[np.int64]
Features = NDArray[np.float32]

_BLOCK_ROWS = 8192
_BULK_LABELS = 64  # from here on, and from an eighth of the labels, a search of all rows beats adding columns
_SEARCH_SLACK = 8  # neighbours requested from FAISS beyond K, to prove that the K are the right ones


@dataclass(frozen=True)
class LargePool:
    """Options for a pool that exceeds memory.

    neighbours: auto = approximate when the exact part of the features exceeds `memory_bytes`, on a CPU.
    scratch: folder on a local disk for what exceeds them; None = it stays in memory all the same.
    listed: labels that a cell lists for each of a row's K neighbours; more is nearer to exact and slower.
    """

    neighbours: Literal["exact", "approximate", "auto"] = "exact"
    memory_bytes: float = np.inf
    scratch: Path | None = None
    listed: int = 20


class NeighborTable:
    """The K nearest labelled rows of every row, the row itself excluded.

    neighbours   int32 [capacity, K]    rows, nearest first; NONE where fewer than K are labelled
    similarities float32 [capacity, K]  cosine, -inf where there is no neighbour
    ids          int64 [capacity]       task id of a row
    labelled, alive  bool [capacity]

    A row keeps its number while its task lives; rows of removed tasks are used again.
    """

    def __init__(self, dim: int, k: int, device: str | None = None, large: LargePool | None = None) -> None:
        """device: where the pool is kept and multiplied; default the CPU, and the CPU in approximate mode."""
        self._large = large or LargePool()
        if self._large.neighbours == "approximate":
            device = None
        if dim < 1 or k < 1:
            raise ValueError(f"dim and k must be at least 1, got {dim} and {k}")
        self.dim, self.k = dim, k
        self.planes = FeaturePlanes(dim, device or "cpu", self._large.scratch, self._large.memory_bytes)
        self._cells: Cells | None = None
        self._cell: Rows = np.zeros(0, np.int32)  # each row's, while there are cells
        self.ids: Ids = np.zeros(0, np.int64)
        self.alive: NDArray[np.bool_] = np.zeros(0, bool)
        self.labelled: NDArray[np.bool_] = np.zeros(0, bool)
        self.neighbours: Rows = np.zeros((0, k), np.int32)
        self.similarities: NDArray[np.float32] = np.zeros((0, k), np.float32)
        self._known: Ids = np.zeros(0, np.int64)  # the tasks of the table, ascending
        self._known_rows: Rows = np.zeros(0, np.int32)  # and their rows
        self._free: Rows = np.zeros(0, np.int32)  # unused rows

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self._known)

    def __contains__(self, task: int) -> bool:
        return self.find([task])[0] != NONE

    def find(self, tasks: Sequence[int] | Ids) -> Rows:
        """Rows of tasks, NONE for unknown tasks: int32 [n]."""
        wanted = np.asarray(tasks, np.int64)
        if not len(self._known):
            return np.full(len(wanted), NONE, np.int32)
        at = np.minimum(np.searchsorted(self._known, wanted), len(self._known) - 1)
        return np.where(self._known[at] == wanted, self._known_rows[at], np.int32(NONE))

    def rows(self, tasks: Sequence[int] | Ids) -> Rows:
        """Rows of tasks: int32 [n]. Raises KeyError for an unknown task."""
        rows = self.find(tasks)
        if (rows == NONE).any():
            raise KeyError(int(np.asarray(tasks)[rows == NONE][0]))
        return rows

    def reserve(self, n: int) -> None:
        """Reserve capacity for n tasks in all, instead of growing step by step."""
        self._grow(n)

    def add_tasks(self, tasks: Ids, features: Features) -> Rows:
        """Add unlabelled tasks with their features [n, dim]; returns their rows.

        Raises ValueError for a task that exists, or features of another shape or off the grid.
        """
        features = np.ascontiguousarray(features, np.float32)
        if features.shape != (len(tasks), self.dim):
            raise ValueError(f"features are {features.shape}, expected {(len(tasks), self.dim)}")
        here = self.find(tasks) != NONE
        if here.any():
            raise ValueError(f"task {tasks[here][0]} is in the table already")
        if len(np.unique(tasks)) != len(tasks):
            raise ValueError("a task is given twice")
        rows = self._take_rows(len(tasks))
        try:
            self.planes.set(rows, features)
        except ValueError:
            self._free = np.concatenate([self._free, rows])
            raise
        self.ids[rows] = tasks
        self.alive[rows] = True
        self.labelled[rows] = False
        order = np.argsort(tasks)
        at = np.searchsorted(self._known, tasks[order])
        self._known = np.insert(self._known, at, tasks[order])
        self._known_rows = np.insert(self._known_rows, at, rows[order])
        if self._cells is not None:
            self._cell[rows] = self._cells.of(features)
        self._search(rows)
        return rows

    def remove_tasks(self, tasks: Sequence[int] | Ids) -> Rows:
        """Remove tasks, labelled or not; returns the rows whose neighbours changed."""
        rows = self.rows(tasks)
        touched = self.unlabel(rows[self.labelled[rows]])
        self.alive[rows] = False
        self.ids[rows] = 0
        self.neighbours[rows] = NONE
        self.similarities[rows] = -np.inf
        self.planes.note(rows, self)
        stays = ~np.isin(self._known_rows, rows)
        self._known, self._known_rows = self._known[stays], self._known_rows[stays]
        self._free = np.concatenate([self._free, rows])
        return touched[self.alive[touched]]

    def label(self, rows: Rows) -> Rows:
        """Make rows neighbours of all others; returns the rows whose neighbours changed."""
        rows = np.unique(rows[~self.labelled[rows]]).astype(np.int32)
        if not len(rows):
            return rows
        self.planes.settle(np.flatnonzero(self.alive).astype(np.int32))
        self._settle_cells()
        before = self.count_labelled()
        self.labelled[rows] = True
        entered = None if self._cells is None else self._cells.add(rows, self.planes.exact(rows), self.ids)
        filled = before > self.k  # every row has K neighbours besides itself
        if not filled or len(rows) >= max(_BULK_LABELS, before // 8):
            return self._search(np.flatnonzero(self.alive).astype(np.int32))
        if self._cells is None or entered is None or before + len(rows) <= self._cells.listed:
            return self.planes.offer(rows, self)
        return self._offer_to_cells(rows, entered)

    def unlabel(self, rows: Rows) -> Rows:
        """Stop rows being neighbours; returns the rows whose neighbours changed."""
        rows = np.unique(rows[self.labelled[rows]]).astype(np.int32)
        if not len(rows):
            return rows
        touched = self.rows_near(rows)
        self.labelled[rows] = False
        if self._cells is None:
            self._search(touched)
            return touched
        cells = self._cells.listing(rows)
        before = {int(cell): self._cells.labels(int(cell)) for cell in cells}
        labels = self._labels()
        self._cells.relist(cells, labels, self.planes.exact(labels), self.ids)
        self._search(touched)
        # A cell that lost a label lists another instead; offer that one to the cell's other rows.
        fresh = {cell: np.setdiff1d(self._cells.labels(cell), was) for cell, was in before.items()}
        offered = np.unique(np.concatenate([*fresh.values(), rows[:0]])).astype(np.int32)
        entered = np.zeros((len(offered), len(self._cells)), bool)
        for cell, some in fresh.items():
            entered[np.searchsorted(offered, some), cell] = True
        return np.unique(np.concatenate([touched, self._offer_to_cells(offered, entered)]))

    def rows_near(self, rows: Rows) -> Rows:
        """The rows that have any of these rows among their neighbours."""
        wanted = np.zeros(len(self.ids), bool)
        wanted[rows] = True
        found = np.empty(len(self.ids), np.int32)

        def work(begin: int, end: int) -> Rows:
            return found[begin : begin + kernels.holders(begin, end, wanted, self.neighbours, found)]

        return np.concatenate(kernels.in_parallel(work, len(self.ids)))

    @property
    def approximate(self) -> bool:
        """Whether labels are offered only to the cells near them."""
        return self._cells is not None

    def _settle_cells(self) -> None:
        """In approximate mode, cut the pool into cells once there are enough rows, and again as it grows."""
        how = self._large.neighbours
        on_cpu = self.planes.device == "cpu"  # a GPU that holds the pool is fast enough without cells
        wanted = how == "approximate" or (how == "auto" and on_cpu and self.planes.mapped)
        if not wanted or len(self) < 16 or (self._cells is not None and len(self) < GROWN * self._cells.made_for):
            return
        rows = np.flatnonzero(self.alive).astype(np.int32)
        step = max(1, len(rows) // (MOST_CELLS * SAMPLE_PER_CELL))
        self._cells = Cells(self.planes.exact(rows[::step]), len(rows), self._large.listed * self.k)
        self._cell = np.zeros(len(self.ids), np.int32)
        for start in range(0, len(rows), _BLOCK_ROWS):
            part = rows[start : start + _BLOCK_ROWS]
            self._cell[part] = self._cells.of(self.planes.exact(part))
        labels = self._labels()
        self._cells.relist(np.arange(len(self._cells)), labels, self.planes.exact(labels), self.ids)

    def _offer_to_cells(self, labels: Rows, entered: NDArray[np.bool_]) -> Rows:
        """Offer each label to the rows of its cells, entered bool [labels, cells]; returns the rows that took any."""
        found = np.empty(len(self.ids), np.int32)
        taken = [labels[:0]]
        for label, wanted in zip(labels.tolist(), entered, strict=True):

            def work(begin: int, end: int, wanted: NDArray[np.bool_] = wanted) -> Rows:
                count = kernels.rows_of_cells(begin, end, wanted, self._cell, self.alive, found)
                return found[begin : begin + count]

            rows = np.concatenate(kernels.in_parallel(work, len(self.ids)))
            # Some rows may still have a label that a cell lists again.
            rows = rows[(rows != label) & (self.neighbours[rows] != label).all(axis=1)]
            taken.append(self.planes.offer_to(label, rows, self))
        return np.unique(np.concatenate(taken))

    def _take_rows(self, n: int) -> Rows:
        """n unused rows, growing the arrays by a quarter (or as much as is needed) where there are none."""
        missing = n - len(self._free)
        if missing > 0:
            self._grow(len(self.ids) + max(missing, len(self.ids) // 4))
        taken, self._free = self._free[:n], self._free[n:]
        return taken

    def _grow(self, size: int) -> None:
        old = len(self.ids)
        if size <= old:
            return
        for name in ("ids", "alive", "labelled", "neighbours", "similarities"):
            setattr(self, name, grown(getattr(self, name), size))
        self.neighbours[old:], self.similarities[old:] = NONE, -np.inf
        self.planes.grow(size)
        if self._cells is not None:
            self._cell = grown(self._cell, size)
        self._free = np.concatenate([self._free, np.arange(old, size, dtype=np.int32)])

    def _labels(self) -> Rows:
        """The labelled rows, ascending."""
        return np.flatnonzero(self.labelled).astype(np.int32)

    def _search(self, rows: Rows) -> Rows:
        """Search the neighbours of rows from scratch; returns the rows (all count as changed)."""
        labels, left = self._labels(), np.sort(rows)
        if self._cells is not None and len(labels) > self._cells.listed:
            self._search_cells(left, self._cells)
            return rows
        if self.planes.device != "cpu" and len(rows) * len(labels) >= GPU_PAIRS:
            left = self._search_on_gpus(left, labels)
        self.planes.search(left, labels, self)
        return rows

    def _search_cells(self, rows: Rows, cells: Cells) -> None:
        """As `_search`, among the labels that each row's cell lists; rows ascending."""
        rows = rows[np.argsort(self._cell[rows], kind="stable")]
        distinct, starts = np.unique(self._cell[rows], return_index=True)
        for cell, part in zip(distinct.tolist(), np.split(rows, starts)[1:], strict=True):
            self.planes.search(part, np.sort(cells.labels(cell)), self)

    def _search_on_gpus(self, rows: Rows, labels: Rows) -> Rows:
        """As `_search`, by FAISS; returns the rows that are not proven to have the right neighbours."""
        index = index_on_gpus(self.planes.exact(labels))
        if index is None:
            return rows
        queried, unproven = min(len(labels), self.k + 1 + _SEARCH_SLACK), [rows[:0]]
        for start in range(0, len(rows), _BLOCK_ROWS):
            part = rows[start : start + _BLOCK_ROWS]
            rough, found = index.search(self.planes.exact(part), queried)  # [n, queried]
            self.neighbours[part], self.similarities[part] = NONE, -np.inf
            self.planes.offer_pairs(part, np.arange(len(part) + 1) * queried, labels[found].ravel(), self)
            self.planes.note(part, self)
            if queried < len(labels):
                # Whatever FAISS left out is at most its last value plus the error of both computations.
                unproven.append(part[self.similarities[part, -1] <= rough[:, -1] + 2 * rounding(self.dim)])
        return np.concatenate(unproven)

    def count_labelled(self) -> int:
        """Number of labelled tasks."""
        return int(np.count_nonzero(self.labelled))

    def rows_by_id(self) -> Rows:
        """The rows of all tasks, ascending by task id; never changed in place, so it may be kept."""
        return self._known_rows
