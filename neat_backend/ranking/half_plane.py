"""The filter of a pool on a GPU: half precision in its memory. Only this part of the neighbour search uses PyTorch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

Rows = NDArray[np.int32]

_CHUNK_ROWS = 65_536  # converted at a time


class HalfPlane:
    """A half-precision copy of the features on a GPU, and each row's bar: the similarity a new neighbour needs."""

    def __init__(self, dim: int, device: str) -> None:
        self._device = device
        self._half = torch.zeros((0, dim), dtype=torch.float16, device=device)
        self._bars = torch.zeros(0, dtype=torch.float16, device=device)  # inf where no row is alive
        # Rounding to float16 moves a value by at most 2^-12 of itself (those below 2^-14 are exact, being
        # multiples of 2^-22), so a unit vector by at most 2^-12, and the product of two by twice that. The sum
        # is kept in float32, n·2^-24 off at most (Higham, Accuracy and Stability, 3.1), and comes out as float16,
        # off by another 2^-12. The last term is the float32 rounding of the exact value.
        self._error = 2 * 2.0**-12 * (1 + 2.0**-11) + dim * 2.0**-24 + 2.0**-12 + 2.0**-24
        self._block_scores = 200_000_000  # products kept at a time, beside the pool

    def grow(self, n: int) -> None:
        """Grow to n rows."""
        half = torch.zeros((n, self._half.shape[1]), dtype=torch.float16, device=self._device)
        bars = torch.full((n,), torch.inf, dtype=torch.float16, device=self._device)
        half[: len(self._half)], bars[: len(self._bars)] = self._half, self._bars
        self._half, self._bars = half, bars

    def set(self, rows: Rows, features: NDArray[np.float32]) -> None:
        """Write features [n, dim]."""
        for start in range(0, len(rows), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            at = torch.from_numpy(rows[part].astype(np.int64)).to(self._device)
            self._half[at] = torch.from_numpy(features[part].astype(np.float16)).to(self._device)

    def set_bars(self, rows: Rows, kth: NDArray[np.floating]) -> None:
        """Set the K-th similarities of rows, inf for removed ones; rounded down, so that no neighbour is missed."""
        lowered = np.nextafter((kth - self._error).astype(np.float16), np.float16(-np.inf))
        at = torch.from_numpy(rows.astype(np.int64)).to(self._device)
        self._bars[at] = torch.from_numpy(lowered).to(self._device)

    def near(self, labels: Rows) -> Iterator[tuple[Rows, NDArray[np.int64]]]:
        """Rows, ascending, and the places of the labels whose rough similarity reaches their bar, by blocks of rows."""
        queries = self._half[torch.from_numpy(labels.astype(np.int64)).to(self._device)]  # [m, d]
        step = max(1024, self._block_scores // len(labels))
        for start in range(0, len(self._half), step):
            block, bars = self._half[start : start + step], self._bars[start : start + step]
            found, which = ((block @ queries.T) >= bars[:, None]).nonzero(as_tuple=True)
            if len(found):
                yield (found + start).cpu().numpy().astype(np.int32), which.cpu().numpy()
