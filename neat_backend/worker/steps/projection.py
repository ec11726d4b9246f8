"""Features seen along their principal axes: two for a map, some more for a quick model."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import IncrementalPCA

Floats = NDArray[np.float32]

AXES = 32
MAP_STEPS = 65535  # places along each side of the map


class Axes:
    """Principal axes of features, in units of the deviation along the first: found once, used for what comes later."""

    def __init__(self, blocks: Iterable[Floats], axes: int = AXES) -> None:
        """blocks: features [n, d] in pieces of at least `axes` rows each; smaller ones are passed over."""
        self._pca: IncrementalPCA | None = None
        for block in blocks:
            wanted = min(axes, *block.shape) if self._pca is None else self._pca.n_components
            if len(block) >= wanted >= 2:
                self._pca = self._pca or IncrementalPCA(n_components=wanted)
                self._pca.partial_fit(block)
        if self._pca is not None:  # the sign of an axis is arbitrary: its largest part points up
            parts = self._pca.components_
            largest = np.take_along_axis(parts, np.abs(parts).argmax(axis=1)[:, None], 1)
            self._pca.components_ = parts * np.where(largest < 0, -1.0, 1.0)

    def __bool__(self) -> bool:
        """Whether there was enough to find any."""
        return self._pca is not None

    def project(self, features: Floats) -> Floats:
        """[n, d] → [n, axes]. Raises ValueError where no axes were found."""
        if self._pca is None:
            raise ValueError("no axes were found")
        unit = max(float(np.sqrt(self._pca.explained_variance_[0])), 1e-12)
        return (self._pca.transform(features) / unit).astype(np.float32)


def map_places(projected: Floats) -> NDArray[np.uint16]:
    """The first two axes as places on a square map: uint16 [n, 2], its middle 99 % filling it, the rest at the edge.

    One scale for both axes, so that distances mean the same in both directions.
    """
    if not len(projected):
        return np.zeros((0, 2), np.uint16)
    flat = projected[:, :2].astype(np.float64)
    low, high = np.quantile(flat, [0.005, 0.995], axis=0)
    span = max(float((high - low).max()), 1e-12)
    inside = np.clip((flat - (low + high) / 2) / (1.06 * span) + 0.5, 0, 1)
    return np.rint(inside * MAP_STEPS).astype(np.uint16)
