"""Features of the whole pool in two halves: a float16 plane to filter by, an int16 plane for the rest.

A value x on the 2^-24 grid, |x| ≤ 1, is hi + lo·2^-24 with hi = float16(x) and an integer |lo| ≤ 2^12:
together as large as float32 and exact, and a product over the hi plane alone reads half the memory. The
hi plane lives on the GPU where there is one.

Beyond one pass over the hi plane there is a *sketch*: each row's coordinates along the pool's first
principal directions, an eighth of its dimensions, and the length of what they leave out. For an orthogonal
projection P, x·y ≤ Px·Py + |x-Px|·|y-Py| (Cauchy-Schwarz), so rows whose bound stays below their bar need
not be read. On 6,000 Fashion-MNIST images with EfficientNet-Lite0 features (1280), K = 10 and 2,000
labels, 128 directions leave 5 % of the rows to read (64: 11 %; with 500 labels 11 % and 20 %); balls around
1,000 k-means clusters would leave 86 %, around 300 98 %. On features without structure the sketch excludes
little; then it is left alone for a while.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from neat_backend.core.features import GRID

Rows = NDArray[np.int32]

# Rows multiplied at a time; a block of scores stays in the cache, or fits beside the pool on a GPU.
_SKETCH_SHARE = 8  # one principal direction for so many dimensions
_SKETCH_FROM = 4096  # rows; fewer are multiplied faster than sketched
_SKETCH_SAMPLE = 8192  # rows that the directions are found from
_SKETCH_PAYS = 0.25  # share of the rows left to read above which a whole pass is as fast
_SKETCH_REST = 50  # calls before it is tried again when it didn't pay
_FEW_COLUMNS = 4  # so many are looked for one by one

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
        self._directions: torch.Tensor | None = None  # float32 [dim, p], orthonormal
        self._sketch = torch.zeros((0, 0), dtype=torch.float16, device=device)  # [n, p]
        self._left_out = torch.zeros(0, dtype=torch.float16, device=device)  # [n], rounded up
        self._resting = 0
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
        if self._directions is not None:
            sketch, left_out = self._sketch, self._left_out
            self._sketch = torch.zeros((n, sketch.shape[1]), dtype=torch.float16, device=self.device)
            self._left_out = torch.zeros(n, dtype=torch.float16, device=self.device)
            self._sketch[: len(sketch)], self._left_out[: len(sketch)] = sketch, left_out

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
            if self._directions is not None:
                self._draw(rows[part])

    def sketch(self, rows: Rows) -> None:
        """Find the principal directions of these rows, once there are enough, and sketch them all."""
        if self._directions is not None or len(rows) < _SKETCH_FROM or self.dim < 2 * _SKETCH_SHARE:
            return
        sample = torch.from_numpy(self.exact(rows[:: max(1, len(rows) // _SKETCH_SAMPLE)])).to(self.device)
        moments = (sample.T @ sample).double()
        directions = torch.linalg.eigh(moments).eigenvectors[:, -(self.dim // _SKETCH_SHARE) :]  # ascending
        self._directions = directions.float().contiguous()
        self._sketch = torch.zeros((len(self), self._directions.shape[1]), dtype=torch.float16, device=self.device)
        self._left_out = torch.zeros(len(self), dtype=torch.float16, device=self.device)
        for start in range(0, len(rows), 65_536):
            self._draw(rows[start : start + 65_536])

    def _draw(self, rows: Rows) -> None:
        """Sketch rows that have been set."""
        assert self._directions is not None
        features = torch.from_numpy(self.exact(rows)).to(self.device)
        along = features @ self._directions  # [n, p]
        left_out = (features.square().sum(dim=1) - along.square().sum(dim=1)).clamp(min=0).sqrt()
        at = torch.from_numpy(rows.astype(np.int64)).to(self.device)
        self._sketch[at] = along.half()
        self._left_out[at] = (left_out + 1e-3).half()  # more than both roundings take away

    def exact(self, rows: Rows) -> NDArray[np.float32]:
        """The features as they were given: float32 [n, dim]."""
        hi = self._hi[torch.from_numpy(rows.astype(np.int64)).to(self.device)].float().cpu().numpy()
        return hi + self._lo[rows] * np.float32(GRID)

    def near(self, columns: Rows, bars: torch.Tensor) -> Iterator[tuple[Rows, Rows]]:
        """Pairs (row, column's row) whose rough similarity reaches the row's bar, a block of rows at a time.

        bars: float16 [n] on the planes' device.
        """
        at = torch.from_numpy(columns.astype(np.int64)).to(self.device)
        if self._directions is not None and len(columns) <= _FEW_COLUMNS and self._sketch_is_worth_it():
            for column, row in zip(columns, at, strict=True):
                yield from self._near_by_sketch(column, row, bars)
            return
        queries = self._hi[at]  # [m, dim]
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

    def _sketch_is_worth_it(self) -> bool:
        self._resting = max(self._resting - 1, 0)
        return self._resting == 0

    def _near_by_sketch(self, column: np.int32, row: torch.Tensor, bars: torch.Tensor) -> Iterator[tuple[Rows, Rows]]:
        """The same for one column, reading only the rows that the sketch can't exclude."""
        bound = torch.mv(self._sketch, self._sketch[row])
        bound.add_(self._left_out, alpha=float(self._left_out[row]))
        # Up to four float16 roundings of values below 1, 2^-12 each, and those of the two sketches.
        possible = (bound.add_(8 * 2.0**-12) >= bars).nonzero()[:, 0]
        if len(possible) > _SKETCH_PAYS * len(self):
            self._resting = _SKETCH_REST
        found = possible[torch.mv(self._hi[possible], self._hi[row]) >= bars[possible]]
        if len(found):
            yield found.cpu().numpy().astype(np.int32), np.full(len(found), column, np.int32)
