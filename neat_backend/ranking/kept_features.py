"""The features that the last plan looked at, so that the next one reads only those of other tasks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class KeptFeatures:
    """Features of ascending tasks; each call keeps its own for the next."""

    def __init__(self) -> None:
        self._ids: Ids = np.zeros(0, np.int64)
        self._features: Floats = np.zeros((0, 0), np.float32)
        self._version = -1

    def of(self, ids: Ids, version: int, read: Callable[[Ids], Floats]) -> Floats:
        """Features [n, dim] of ids [n], not to be written to. version: another one means other features."""
        if version != self._version:
            features = read(ids)
        elif np.array_equal(ids, self._ids):
            return self._features
        else:
            _, old, new = np.intersect1d(self._ids, ids, assume_unique=True, return_indices=True)
            others = np.setdiff1d(np.arange(len(ids)), new)
            read_now = read(ids[others])
            features = np.empty((len(ids), read_now.shape[1]), np.float32)
            features[others] = read_now
            features[new] = self._features[old]
        features.setflags(write=False)
        self._ids, self._features, self._version = ids, features, version
        return features
