"""A seeded hash of task ids, the same on every machine: for choices that must not depend on anything else."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mixed(ids: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """SplitMix64's two rounds (Steele, Lea and Flood, 2014) over ids [n]; the high bits are the well-mixed ones."""
    values = ids.astype(np.uint64) + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values = (values ^ (values >> np.uint64(shift))) * np.uint64(factor)
    return values
