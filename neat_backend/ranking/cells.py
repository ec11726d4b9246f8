"""Which rows of a large pool each new label is offered to: an inverted file (IVF) over the rows.

The pool is cut into cells around centres (k-means, as in FAISS's IVF indices). Each cell lists the labels nearest to
its centre, so many for each neighbour that a row has; a row's neighbours are sought among those that its cell lists.
A new label is offered only to the rows of the cells that list it: with L labels, about `listed`/L of the
pool. With no more labels than are listed, every label is offered to every row, and the table is exact.

What this leaves out is measured by `python -m benchmarks approximate`. Product quantisation is not needed: the
planes' sketch (`ranking.planes`) is as short as its codes would be, and its bounds hold.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neat_backend.models.grid import to_grid

Rows = NDArray[np.int32]
Features = NDArray[np.float32]

ROWS_PER_CELL = 64
MOST_CELLS = 1024
SAMPLE_PER_CELL = 64  # sampled rows for each centre
GROWN = 4  # the cells are rebuilt when the pool has grown by this factor
_ROUNDS = 8  # of k-means


class Cells:
    """Centres on the grid [c, dim], the cell of each row, and the labels that each cell lists."""

    def __init__(self, sample: Features, n: int, listed: int) -> None:
        """sample: features to find the centres from; n: number of rows; listed: labels that a cell lists."""
        import faiss  # takes 190 MB, which pools that fit into memory do without

        count = int(np.clip(n // ROWS_PER_CELL, 1, min(MOST_CELLS, max(1, len(sample) // 8))))
        dim = sample.shape[1]
        kmeans = faiss.Kmeans(
            dim, count, niter=_ROUNDS, seed=1, spherical=True, max_points_per_centroid=SAMPLE_PER_CELL
        )
        kmeans.train(np.ascontiguousarray(sample))
        self.made_for, self.listed = n, listed
        assert kmeans.centroids is not None
        self.centres = to_grid(kmeans.centroids)
        self._exact = self.centres.astype(np.float64)  # products of grid values are exact in it, in any order
        self._labels: list[Rows] = [np.zeros(0, np.int32)] * count  # nearest first
        self._similarities = [np.zeros(0)] * count

    def __len__(self) -> int:
        return len(self.centres)

    def of(self, features: Features) -> Rows:
        """The cells of features [n, dim]: int32 [n]."""
        return (features @ self.centres.T).argmax(axis=1).astype(np.int32)

    def labels(self, cell: int) -> Rows:
        """The labels that a cell lists, nearest first."""
        return self._labels[cell]

    def listing(self, labels: Rows) -> NDArray[np.int64]:
        """The cells that list any of these labels."""
        return np.flatnonzero([np.isin(listed, labels).any() for listed in self._labels])

    def add(self, labels: Rows, features: Features, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Add labels [m] with features [m, dim] and ids to the lists. Returns which cells list them: bool [m, c]."""
        near = features.astype(np.float64) @ self._exact.T  # [m, c]
        entered = np.zeros(near.shape, bool)
        full = np.array([len(s) >= self.listed for s in self._similarities])
        bars = np.array([s[-1] if len(s) else -np.inf for s in self._similarities])
        for cell in np.flatnonzero(~full | (near >= bars).any(axis=0)):
            self._merge(int(cell), labels, near[:, cell], ids)
            entered[:, cell] = np.isin(labels, self._labels[cell])
        return entered

    def relist(self, cells: NDArray[np.int64], labels: Rows, features: Features, ids: NDArray[np.int64]) -> None:
        """Rebuild the lists of some cells from all labels [m]; ids: task of each row."""
        near = features.astype(np.float64) @ self._exact[cells].T  # [m, some]
        for at, cell in enumerate(cells.tolist()):
            self._labels[cell], self._similarities[cell] = labels[:0], np.zeros(0)
            self._merge(cell, labels, near[:, at], ids)

    def _merge(self, cell: int, labels: Rows, near: NDArray[np.float64], ids: NDArray[np.int64]) -> None:
        rows = np.concatenate([self._labels[cell], labels])
        similarities = np.concatenate([self._similarities[cell], near])
        if len(rows) > 4 * self.listed:  # sort only the rows that can be listed
            least = np.partition(similarities, -self.listed)[-self.listed]
            rows, similarities = rows[similarities >= least], similarities[similarities >= least]
        order = np.lexsort((ids[rows], -similarities))[: self.listed]
        self._labels[cell], self._similarities[cell] = rows[order], similarities[order]
