"""The simulated annotator, the only object with the true labels of the pool."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import NeatError
from neat_backend.ranking.pool import UNLABELLED
from neat_backend.ranking.scores import INVALID


class Oracle:
    """Answers with a class code or INVALID, once for each sample, and keeps the labels given so far.

    labelled-known, invalid and unlabelled are disjoint and cover the pool, because each sample has one entry.
    """

    def __init__(self, codes: NDArray[np.int64], initial: NDArray[np.int64]) -> None:
        """codes [n]: the truth; initial: samples of known classes, labelled from the start."""
        if (codes[initial] == INVALID).any():
            raise ValueError("the initial labels must be of known classes")
        self._codes = codes
        self._labels = np.full(len(codes), UNLABELLED, np.int64)
        self._labels[initial] = codes[initial]
        self.n_initial = len(initial)
        self.n_known_in_pool = int((codes >= 0).sum()) - self.n_initial  # N_known^total of Eq. 6

    def answer(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """The labels of samples [b]. Raises NeatError for one that is queried twice or is not in the pool."""
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self._codes):
            raise NeatError("a sample that is not in the pool was queried")
        repeated = indices[self._labels[indices] != UNLABELLED]
        if repeated.size or len(np.unique(indices)) != len(indices):
            raise NeatError(f"a sample was queried twice: {(repeated if repeated.size else indices)[:5].tolist()}")
        self._labels[indices] = self._codes[indices]
        return self._codes[indices].copy()

    @property
    def labels(self) -> NDArray[np.int64]:
        """int64 [n]: class code, INVALID or UNLABELLED; a copy."""
        return self._labels.copy()

    @property
    def unlabelled(self) -> NDArray[np.int64]:
        """Samples that may be queried, ascending."""
        return np.flatnonzero(self._labels == UNLABELLED)
