"""Feature vectors on a grid, so that similarities do not depend on how they are summed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GRID = 2.0**-22


def to_grid(features: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Rows of `features` [n, d] scaled to length 1, every value rounded to a multiple of 2**-22.

    A value of magnitude <= 1 on that grid is exact in float32. The product of two is a multiple of 2**-44,
    and the products of two unit rows add up, in any order, to partial sums below 2**4: they fit the 53 bits
    of a float64. So cosine similarities summed in float64 are exact, and equal whatever the index, the batch
    or the number of threads. Worked example: [3, 4] -> [0.6, 0.8] -> [2516582, 3355443] * 2**-22.

    Raises ValueError for anything but two dimensions, and for rows that are zero or not finite.
    """
    rows = np.asarray(features, dtype=np.float64)  # [n, d]
    if rows.ndim != 2:
        raise ValueError(f"features must have two dimensions, these have {rows.ndim}")
    if not rows.size:
        return np.zeros(rows.shape, dtype=np.float32)
    largest = np.abs(rows).max(axis=1, keepdims=True)  # [n, 1]; NaN and inf survive the maximum
    bad = np.flatnonzero(~np.isfinite(largest[:, 0]) | (largest[:, 0] == 0))
    if bad.size:
        shown = ", ".join(map(str, bad[:5])) + (", …" if bad.size > 5 else "")
        raise ValueError(f"{bad.size} of {len(rows)} feature rows are zero or not finite: row {shown}")
    rows = rows / largest  # squares of what remains neither overflow nor vanish
    unit = rows / np.sqrt(np.square(rows).sum(axis=1, keepdims=True))  # [n, d]
    return (np.rint(unit / GRID) * GRID).astype(np.float32)
