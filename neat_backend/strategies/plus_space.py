"""What neat_plus computes of all samples and can keep while labels come: their components and their neighbours.

All products are of values on the grid (`models/grid.py`), summed in double precision, so they are exact: a space that
followed a pool label by label has the same numbers as one made anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from neat_backend.models.grid import to_grid
from neat_backend.ranking.pool import Indices, Pool

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]

COMPONENTS = 128  # longer features are cut to their principal components
BASIS_SAMPLES = 2000  # that the components are found from
NEIGHBOURS = 5
_BLOCK_ROWS = 2048
_BASIS_GRID = 2.0**-24  # products of a feature and a basis vector: multiples of 2**-46, sums of them below 2**4


class Nearest:
    """Each sample's k largest cosines to a set of samples, itself apart; the set may change."""

    def __init__(self, n: int, k: int = NEIGHBOURS) -> None:
        self._among: Keys = np.zeros(0, np.uint64)
        self._cosines = np.full((n, k), -np.inf, np.float32)  # descending
        self._which = np.zeros((n, k), np.uint64)  # keys of those samples; 0 where the cosine is -inf

    def moved(self, rows: Indices, n: int, places: Indices) -> Nearest:
        """That of n samples, of which those at `places` were here at `rows`; the others have no neighbours yet."""
        found = Nearest(n, self._cosines.shape[1])
        found._among = self._among
        found._cosines[places], found._which[places] = self._cosines[rows], self._which[rows]
        return found

    def follow(self, features: Floats, keys: Keys, among: Indices, fresh: Indices) -> None:
        """Compare with the samples `among` alone; features [n, d], keys [n]. fresh: rows without neighbours yet."""
        before, now = self._among, keys[among]
        gone = np.setdiff1d(before, now)
        held = np.isin(self._which, gone) & np.isfinite(self._cosines)
        lost = np.union1d(np.flatnonzero(held.any(axis=1)), fresh)
        self._cosines[lost], self._which[lost] = -np.inf, 0
        old = np.isin(now, before)
        self._offer(features, keys, lost, among[old])
        self._offer(features, keys, np.arange(len(keys)), among[~old])
        self._among = now

    def means(self) -> Floats:
        """Mean cosine to the k nearest: float64 [n]. Fewer count as they are; without any it is -1, the least."""
        there = np.isfinite(self._cosines)
        sums = np.where(there, self._cosines, 0).sum(axis=1, dtype=np.float64)
        count = there.sum(axis=1)
        return np.where(count > 0, sums / np.maximum(count, 1), -1.0)

    def _offer(self, features: Floats, keys: Keys, rows: Indices, columns: Indices) -> None:
        k = self._cosines.shape[1]
        if not len(columns):
            return
        offered = features[columns].T.copy()  # [d, m]
        for start in range(0, len(rows), _BLOCK_ROWS):
            part = rows[start : start + _BLOCK_ROWS]
            cosines = (features[part] @ offered).astype(np.float32)  # [r, m]
            cosines[part[:, None] == columns] = -np.inf
            nearer = np.flatnonzero((cosines > self._cosines[part, -1:]).any(axis=1))
            part, cosines = part[nearer], cosines[nearer]
            all_keys = np.concatenate([self._which[part], np.broadcast_to(keys[columns], cosines.shape)], axis=1)
            cosines = np.concatenate([self._cosines[part], cosines], axis=1)
            best = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
            best = np.take_along_axis(best, np.argsort(-np.take_along_axis(cosines, best, 1), axis=1, kind="stable"), 1)
            self._cosines[part] = np.take_along_axis(cosines, best, 1)
            self._which[part] = np.take_along_axis(all_keys, best, 1)


@dataclass(frozen=True)
class Basis:
    """The principal components of a fixed sample of the pool, the largest COMPONENTS."""

    keys: Keys  # of the sample [m], in its order
    centre: Floats  # [r] in components
    components: Floats  # [d, r]

    @classmethod
    def of(cls, features: NDArray[np.float32], keys: Keys) -> Basis:
        """That of sample features [m, d], d > COMPONENTS."""
        d = features.shape[1]
        middle = features.mean(axis=0, dtype=np.float64)
        moved = (features - middle).astype(np.float32)
        _, vectors = eigh(moved.T @ moved, subset_by_index=[d - COMPONENTS, d - 1], check_finite=False)
        components = np.rint(vectors[:, ::-1].astype(np.float64) / _BASIS_GRID) * _BASIS_GRID
        return cls(keys, middle @ components, components)

    def projected(self, features: NDArray[np.float32]) -> Floats:
        """Components of features [m, d] around the centre, as rows of length 1 on the grid: [m, r]."""
        found = np.empty((len(features), len(self.centre)))
        for start in range(0, len(found), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            found[part] = features[part].astype(np.float64) @ self.components - self.centre
        found[~found.any(axis=1), 0] = 1  # in the centre: any direction
        return to_grid(found).astype(np.float64)


class Space:
    """A pool's samples by their components, with their nearest known and invalid samples."""

    def __init__(self) -> None:
        self._keys: Keys = np.zeros(0, np.uint64)
        self._basis: Basis | None = None
        self._features: Floats = np.zeros((0, 0))
        self._known, self._invalid = Nearest(0), Nearest(0)

    def follow(self, pool: Pool) -> Pool:
        """The pool with components for features. Samples are told apart by their keys alone."""
        keys = pool.sample_keys
        self._settle(pool, keys)
        _, rows, places = np.intersect1d(self._keys, keys, assume_unique=True, return_indices=True)
        fresh = np.setdiff1d(np.arange(len(keys)), places)
        if len(fresh) or len(rows) < len(self._keys) or (rows != places).any():
            added = pool.features[fresh]
            projected = added.astype(np.float64) if self._basis is None else self._basis.projected(added)
            features = np.empty((len(keys), projected.shape[1]))
            features[fresh] = projected
            features[places] = self._features[rows]
            self._features, self._keys = features, keys.copy()
            self._known, self._invalid = (one.moved(rows, len(keys), places) for one in (self._known, self._invalid))
        self._known.follow(self._features, keys, pool.known, fresh)
        self._invalid.follow(self._features, keys, pool.invalid, fresh)
        return replace(pool, features=self._features.astype(np.float32))

    def nearness(self) -> Floats:
        """a - i of all samples: their mean cosines to the nearest known and to the nearest invalid ones; [n]."""
        return self._known.means() - self._invalid.means()

    def _settle(self, pool: Pool, keys: Keys) -> None:
        """Find the basis of this pool; a new one leaves nothing of what was kept."""
        width = pool.features.shape[1]
        if width <= COMPONENTS:
            if self._basis is not None or self._features.shape[1] != width:
                self._forget()
                self._features = np.zeros((0, width))
            return
        first = np.argsort(keys)[:BASIS_SAMPLES]
        if self._basis is None or not np.array_equal(self._basis.keys, keys[first]):
            self._forget()
            self._basis = Basis.of(pool.features[first], keys[first])
            self._features = np.zeros((0, len(self._basis.centre)))

    def _forget(self) -> None:
        self._keys, self._basis = np.zeros(0, np.uint64), None
        self._known, self._invalid = Nearest(0), Nearest(0)
