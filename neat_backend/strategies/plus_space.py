"""What neat_plus computes of all samples and can keep while labels come: their components.

All products are of values on the grid (`models/grid.py`), summed in double precision, so they are exact: a space that
followed a pool label by label has the same numbers as one made anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from neat_backend.models.grid import to_grid
from neat_backend.ranking.pool import Pool

Floats = NDArray[np.float64]
Keys = NDArray[np.uint64]

COMPONENTS = 128  # longer features are cut to their principal components
BASIS_SAMPLES = 2000  # that the components are found from
_BLOCK_ROWS = 2048
_BASIS_GRID = 2.0**-24  # products of a feature and a basis vector: multiples of 2**-46, sums of them below 2**4


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

    def projected(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Components of features [m, d] around the centre, as rows of length 1 on the grid: [m, r]."""
        found = np.empty((len(features), len(self.centre)))
        for start in range(0, len(found), _BLOCK_ROWS):
            part = slice(start, start + _BLOCK_ROWS)
            found[part] = features[part].astype(np.float64) @ self.components - self.centre
        found[~found.any(axis=1), 0] = 1  # in the centre: any direction
        return to_grid(found)


class Space:
    """A pool's samples by their components."""

    def __init__(self) -> None:
        self._keys: Keys = np.zeros(0, np.uint64)
        self._basis: Basis | None = None
        self._features: NDArray[np.float32] = np.zeros((0, 0), np.float32)

    def follow(self, pool: Pool) -> Pool:
        """The pool with components for features. Samples are told apart by their keys alone."""
        keys = pool.sample_keys
        self._settle(pool, keys)
        _, rows, places = np.intersect1d(self._keys, keys, assume_unique=True, return_indices=True)
        fresh = np.setdiff1d(np.arange(len(keys)), places)
        if len(fresh) or len(rows) < len(self._keys) or (rows != places).any():
            added = pool.features[fresh]
            projected = added if self._basis is None else self._basis.projected(added)
            features = np.empty((len(keys), projected.shape[1]), np.float32)
            features[fresh] = projected
            features[places] = self._features[rows]
            self._features, self._keys = features, keys.copy()
        return replace(pool, features=self._features)

    def _settle(self, pool: Pool, keys: Keys) -> None:
        """Find the basis of this pool; a new one leaves nothing of what was kept."""
        width = pool.features.shape[1]
        if width <= COMPONENTS:
            if self._basis is not None or self._features.shape[1] != width:
                self._forget()
                self._features = np.zeros((0, width), np.float32)
            return
        first = np.argsort(keys)[:BASIS_SAMPLES]
        if self._basis is None or not np.array_equal(self._basis.keys, keys[first]):
            self._forget()
            self._basis = Basis.of(pool.features[first], keys[first])
            self._features = np.zeros((0, len(self._basis.centre)), np.float32)

    def _forget(self) -> None:
        self._keys, self._basis = np.zeros(0, np.uint64), None
