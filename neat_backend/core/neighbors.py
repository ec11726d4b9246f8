"""For every task, its K nearest labelled tasks: exact, and kept up as labels come and go.

Features are L2-normalised rows on the 2^-24 grid (`core.features.to_grid`). A product of two grid
values is a multiple of 2^-48 and every partial sum stays below 2, so a dot product in float64 is
*exact* whatever the order of summation. The similarity of two tasks is that exact value rounded to
float32: one number, independent of batch shapes, threads and libraries. Ties go to the smaller id.

Fast half-precision products only *filter*: what they put within their error bound of a row's K-th
similarity is computed exactly. Adding m labels is one blocked pass over the rows; unlabelling searches
again only for the rows that had the task as a neighbour. Bulk searches go through a FAISS flat index of
the labelled tasks, on a GPU when faiss sees one.
"""

from __future__ import annotations

from collections.abc import Sequence

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from neat_backend.core.planes import FeaturePlanes, Rows

Ids = NDArray[np.int64]
Features = NDArray[np.float32]

NONE = -1  # no neighbour in this place
_BLOCK_ROWS = 8192
_BLOCK_PAIRS = 4096
_BULK_LABELS = 64  # from here on, and from an eighth of the labels, a search of all rows beats adding columns
_SEARCH_SLACK = 8  # neighbours asked of FAISS beyond K, to prove that the K are the right ones


class NeighborTable:
    """The K nearest labelled rows of every row, the row itself excluded.

    neighbours   int32 [capacity, K]    rows, nearest first; NONE where fewer than K are labelled
    similarities float32 [capacity, K]  cosine, -inf where there is no neighbour
    ids          int64 [capacity]       task id of a row
    labelled, alive  bool [capacity]

    A row keeps its number while its task lives; rows of removed tasks are used again.
    """

    def __init__(self, dim: int, k: int, device: torch.device | None = None) -> None:
        """device: where the pool is kept and multiplied; default the CPU."""
        if dim < 1 or k < 1:
            raise ValueError(f"dim and k must be at least 1, got {dim} and {k}")
        self.dim, self.k = dim, k
        self.planes = FeaturePlanes(dim, device or torch.device("cpu"))
        self.ids: Ids = np.zeros(0, np.int64)
        self.alive = np.zeros(0, bool)
        self.labelled = np.zeros(0, bool)
        self.neighbours: Rows = np.zeros((0, k), np.int32)
        self.similarities: NDArray[np.float32] = np.zeros((0, k), np.float32)
        self._known: Ids = np.zeros(0, np.int64)  # the tasks that are here, ascending
        self._known_rows: Rows = np.zeros(0, np.int32)  # and their rows
        self._free: Rows = np.zeros(0, np.int32)  # unused rows
        self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
        # Rough similarity from which a new neighbour is possible; inf where no row is alive.
        self._bars = torch.zeros(0, dtype=torch.float16, device=self.planes.device)
        # FAISS sums in single precision: n·2^-24 off at most, and the float32 rounding of the exact value.
        self._error = dim * 2.0**-24 * 1.01 + 2.0**-24

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self._known)

    def __contains__(self, task: int) -> bool:
        return self.find([task])[0] != NONE

    def find(self, tasks: Sequence[int] | Ids) -> Rows:
        """Rows of tasks, NONE for those that are not here: int32 [n]."""
        wanted = np.asarray(tasks, np.int64)
        if not len(self._known):
            return np.full(len(wanted), NONE, np.int32)
        at = np.minimum(np.searchsorted(self._known, wanted), len(self._known) - 1)
        return np.where(self._known[at] == wanted, self._known_rows[at], np.int32(NONE))

    def rows(self, tasks: Sequence[int] | Ids) -> Rows:
        """Rows of tasks, all of which must be here (KeyError): int32 [n]."""
        rows = self.find(tasks)
        if (rows == NONE).any():
            raise KeyError(int(np.asarray(tasks)[rows == NONE][0]))
        return rows

    def reserve(self, n: int) -> None:
        """Make room for n tasks in all at once, instead of growing step by step."""
        self._grow(n)

    def add_tasks(self, tasks: Ids, features: Features) -> Rows:
        """Take in unlabelled tasks with their features [n, dim]; gives their rows.

        Raises ValueError for a task that is here already, or features of another shape or off the grid.
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
        self._search(rows)
        return rows

    def remove_tasks(self, tasks: Sequence[int] | Ids) -> Rows:
        """Forget tasks, labelled or not; gives the rows whose neighbours changed."""
        rows = self.rows(tasks)
        touched = self.unlabel(rows[self.labelled[rows]])
        self.alive[rows] = False
        self.ids[rows] = 0
        self.neighbours[rows] = NONE
        self.similarities[rows] = -np.inf
        self._set_bars(rows)
        stays = ~np.isin(self._known_rows, rows)
        self._known, self._known_rows = self._known[stays], self._known_rows[stays]
        self._free = np.concatenate([self._free, rows])
        return touched[self.alive[touched]]

    def label(self, rows: Rows) -> Rows:
        """Make rows neighbours for all others; gives the rows whose neighbours changed."""
        rows = np.unique(rows[~self.labelled[rows]]).astype(np.int32)
        if not len(rows):
            return rows
        before = self._index.ntotal
        self.labelled[rows] = True
        self._index.add_with_ids(self.planes.exact(rows), rows.astype(np.int64))
        filled = before > self.k  # every row has K neighbours besides itself
        if not filled or len(rows) >= max(_BULK_LABELS, before // 8):
            return self._search(np.flatnonzero(self.alive).astype(np.int32))
        self.planes.sketch(np.flatnonzero(self.alive).astype(np.int32))
        touched = [self._merge(found, label) for found, label in self.planes.near(rows, self._bars)]
        return np.concatenate(touched or [rows[:0]])

    def unlabel(self, rows: Rows) -> Rows:
        """Rows are nobody's neighbours any more; gives the rows whose neighbours changed."""
        rows = np.unique(rows[self.labelled[rows]]).astype(np.int32)
        if not len(rows):
            return rows
        touched = self.rows_near(rows)
        self.labelled[rows] = False
        self._index.remove_ids(faiss.IDSelectorBatch(rows.astype(np.int64)))
        self._search(touched)
        return touched

    def rows_near(self, rows: Rows) -> Rows:
        """The rows that have any of these rows among their neighbours."""
        wanted = np.zeros(len(self.ids) + 1, bool)
        wanted[rows] = True  # NONE = -1 looks at the extra last entry, which is False
        return np.flatnonzero(wanted[self.neighbours].any(axis=1)).astype(np.int32)

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
        for name, fill in (
            ("ids", 0), ("alive", False), ("labelled", False), ("neighbours", NONE), ("similarities", -np.inf),
        ):  # fmt: skip
            array = getattr(self, name)
            grown = np.full((size, *array.shape[1:]), fill, array.dtype)
            grown[:old] = array
            setattr(self, name, grown)
        self.planes.grow(size)
        bars = torch.full((size,), torch.inf, dtype=torch.float16, device=self.planes.device)
        bars[:old] = self._bars
        self._bars = bars
        self._free = np.concatenate([self._free, np.arange(old, size, dtype=np.int32)])

    def _set_bars(self, rows: Rows) -> None:
        """Bring the filter's bars in line with the K-th similarities: rounded down, so that nothing slips through."""
        kth = np.where(self.alive[rows], self.similarities[rows, -1], np.inf)
        bars = torch.from_numpy(np.nextafter((kth - self.planes.error).astype(np.float16), np.float16(-np.inf)))
        self._bars[torch.from_numpy(rows.astype(np.int64)).to(self._bars.device)] = bars.to(self._bars.device)

    def _exact(self, rows: Rows, labels: Rows) -> NDArray[np.float32]:
        """Similarity of each pair, exact in float64 and rounded once: float32 [n]."""
        result = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _BLOCK_PAIRS):
            part = slice(start, start + _BLOCK_PAIRS)
            left = self.planes.exact(rows[part]).astype(np.float64)
            distinct, inverse = np.unique(labels[part], return_inverse=True)
            right = self.planes.exact(distinct).astype(np.float64)
            result[part] = np.einsum("ij,ij->i", left, right[inverse]) if len(distinct) > 1 else left @ right[0]
        return result

    def _merge(self, rows: Rows, labels: Rows) -> Rows:
        """Offer each label to its row, other than itself; gives the rows that took one."""
        other = rows != labels
        rows, labels = rows[other], labels[other]
        touched = np.unique(rows)
        held_rows = np.repeat(touched, self.k)
        held = self.neighbours[touched].ravel()
        kept = held != NONE
        all_rows = np.concatenate([held_rows[kept], rows])
        all_labels = np.concatenate([held[kept], labels])
        all_similarities = np.concatenate([self.similarities[touched].ravel()[kept], self._exact(rows, labels)])
        before = self.neighbours[touched].copy()
        self._write(touched, all_rows, all_labels, all_similarities)
        return touched[(before != self.neighbours[touched]).any(axis=1)]

    def _write(self, touched: Rows, rows: Rows, labels: Rows, similarities: NDArray[np.float32]) -> None:
        """Set the neighbours of `touched` (ascending) to the best K of the pairs given for them."""
        order = np.lexsort((self.ids[labels], -similarities, rows))
        rows, labels, similarities = rows[order], labels[order], similarities[order]
        starts = np.searchsorted(rows, touched)
        place = np.arange(len(rows)) - starts[np.searchsorted(touched, rows)]
        best = place < self.k
        self.neighbours[touched] = NONE
        self.similarities[touched] = -np.inf
        self.neighbours[rows[best], place[best]] = labels[best]
        self.similarities[rows[best], place[best]] = similarities[best]
        self._set_bars(touched)

    def _search(self, rows: Rows) -> Rows:
        """Find the neighbours of rows from nothing; gives the rows (all taken as changed)."""
        count = self._index.ntotal
        index = self._search_index() if len(rows) * count > 1_000_000 else self._index
        for start in range(0, len(rows), _BLOCK_ROWS):
            part = np.sort(rows[start : start + _BLOCK_ROWS])
            asked = min(count, self.k + 1 + _SEARCH_SLACK)
            if not asked:
                self._write(part, part[:0], part[:0], np.zeros(0, np.float32))
                continue
            rough, found = index.search(self.planes.exact(part), asked)  # [n, asked]
            repeated = np.repeat(part, asked)
            labels = found.ravel().astype(np.int32)
            valid = (labels != NONE) & (labels != repeated)
            pair_rows, pair_labels = repeated[valid], labels[valid]
            self._write(part, pair_rows, pair_labels, self._exact(pair_rows, pair_labels))
            if asked < count:
                # Whatever FAISS left out is at most its last value plus the error of both computations.
                unproven = self.similarities[part, -1] <= rough[:, -1] + 2 * self._error
                self._search_all(part[unproven])
        return rows

    def _search_all(self, rows: Rows) -> None:
        """Neighbours of rows among all labelled rows, for those that a short list can't settle."""
        labels = np.flatnonzero(self.labelled).astype(np.int32)
        columns = self.planes.exact(labels).T  # [dim, L]
        step = max(1, 4_000_000 // max(len(labels), 1))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            rough = self.planes.exact(part) @ columns  # [n, L]
            rough[part[:, None] == labels[None, :]] = -np.inf
            if len(labels) > self.k:
                kth = np.partition(rough, len(labels) - self.k, axis=1)[:, len(labels) - self.k]
                near = rough >= (kth - 2 * self._error)[:, None]
            else:
                near = np.isfinite(rough)
            found, which = np.nonzero(near & np.isfinite(rough))
            pair_rows, pair_labels = part[found], labels[which]
            self._write(part, pair_rows, pair_labels, self._exact(pair_rows, pair_labels))

    def _search_index(self) -> faiss.Index:
        """The labelled index, copied to the GPUs when faiss sees any and the search is worth it."""
        if faiss.get_num_gpus() == 0:
            return self._index
        return faiss.index_cpu_to_all_gpus(self._index)
