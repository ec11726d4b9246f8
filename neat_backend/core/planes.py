"""Features of the whole pool in two halves: a float16 plane to filter by, an int16 plane for the rest.

A value x on the 2^-24 grid, |x| ≤ 1, is hi + lo·2^-24 with hi = float16(x) and an integer |lo| ≤ 2^12:
together as large as float32 and exact, and a product over the hi plane alone reads half the memory. The
hi plane lives on the GPU where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from neat_backend.core.features import GRID

Rows = NDArray[np.int32]

# Rows multiplied at a time; a block of scores stays in the cache, or fits beside the pool on a GPU.
_CPU_BLOCK_SCORES = 4_000_000
_GPU_BLOCK_SCORES = 200_000_000


class FeaturePlanes:
    """Rows of unit features on the grid, [n, dim], readable exactly and multipliable roughly.

    error: how far a rough similarity may be from the exact one.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self.dim, self.device = dim, device
        self._hi = torch.zeros((0, dim), dtype=torch.float16, device=device)
        self._lo: NDArray[np.int16] = np.zeros((0, dim), np.int16)
        # Rounding to float16 moves a value by at most 2^-12 of itself (those below 2^-14 are exact, being
        # multiples of 2^-24), so a unit vector by at most 2^-12, and the product of two by twice that. The sum
        # is kept in float32, n·2^-24 off at most (Higham, Accuracy and Stability, 3.1), and comes out as float16,
        # off by another 2^-12. The last term is the float32 rounding of the exact value.
        self.error = 2 * 2.0**-12 * (1 + 2.0**-11) + dim * 2.0**-24 + 2.0**-12 + 2.0**-24

    def __len__(self) -> int:
        return len(self._lo)

    def grow(self, n: int) -> None:
        """Make room for n rows."""
        hi = torch.zeros((n, self.dim), dtype=torch.float16, device=self.device)
        hi[: len(self)] = self._hi
        lo = np.zeros((n, self.dim), np.int16)
        lo[: len(self)] = self._lo
        self._hi, self._lo = hi, lo

    def set(self, rows: Rows, features: NDArray[np.float32]) -> None:
        """Write features [n, dim]. Raises ValueError when they are off the grid or longer than 1."""
        for start in range(0, len(rows), 65_536):
            part = slice(start, start + 65_536)
            hi = features[part].astype(np.float16)
            rest = (features[part] - hi.astype(np.float32)) / np.float32(GRID)  # exact: all three are on the grid
            if rest.size and not (np.abs(rest) <= 2**12).all():
                raise ValueError("features must have length 1")
            if not (rest == np.rint(rest)).all():
                raise ValueError("features must be on the 2^-24 grid: pass them through to_grid first")
            self._hi[torch.from_numpy(rows[part].astype(np.int64)).to(self.device)] = torch.from_numpy(hi).to(
                self.device
            )
            self._lo[rows[part]] = rest.astype(np.int16)

    def exact(self, rows: Rows) -> NDArray[np.float32]:
        """The features as they were given: float32 [n, dim]."""
        hi = self._hi[torch.from_numpy(rows.astype(np.int64)).to(self.device)].float().cpu().numpy()
        return hi + self._lo[rows] * np.float32(GRID)

    def near(self, columns: Rows, bars: torch.Tensor) -> Iterator[tuple[Rows, Rows]]:
        """Pairs (row, column's row) whose rough similarity reaches the row's bar, a block of rows at a time.

        bars: float16 [n] on the planes' device.
        """
        queries = self._hi[torch.from_numpy(columns.astype(np.int64)).to(self.device)]  # [m, dim]
        scores = _GPU_BLOCK_SCORES if self.device.type == "cuda" else _CPU_BLOCK_SCORES
        step = max(1024, scores // len(columns))
        single = len(columns) == 1
        for start in range(0, len(self), step):
            block = self._hi[start : start + step]
            if single:
                found = (torch.mv(block, queries[0]) >= bars[start : start + step]).nonzero()[:, 0]
                which = torch.zeros_like(found)
            else:
                found, which = ((block @ queries.T) >= bars[start : start + step, None]).nonzero(as_tuple=True)
            if len(found):
                yield (found + start).cpu().numpy().astype(np.int32), columns[which.cpu().numpy()]
