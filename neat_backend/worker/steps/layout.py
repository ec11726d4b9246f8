"""Positions of images on the map: images that look alike to the encoder lie together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from neat_backend.store.arrays import ProjectArrays

Floats = NDArray[np.float32]

LANDMARKS = 2000
FEWEST = 4  # images, below which there is no map
AXES = 50  # principal axes that t-SNE works on
PERPLEXITY, ITERATIONS = 30.0, 500
NEAREST = 5  # landmarks that decide on the position of an image
SPACING = 3  # the image stays nearer to its landmark than that landmark's third nearest one
MAP_STEPS = 65535  # positions along each side of the map
BLOCK = 4096


class Layout:
    """t-SNE (van der Maaten and Hinton, JMLR 2008) of a sample of the pool, its landmarks.

    Every image lies beside the landmark that it is most similar to, drawn towards the next four. So a new image gets
    its position by one product of matrices, and the others stay where they are.
    """

    def __init__(self, features: Floats, positions: NDArray[np.float64]) -> None:
        """features [m, d], of unit length; positions [m, 2]."""
        self.features, self.positions = features, positions
        near = min(SPACING + 1, len(positions))
        self._reach = KDTree(positions).query(positions, k=[near])[0][:, 0]

    @classmethod
    def find(cls, features: Floats, seed: int, before: Layout | None = None) -> Layout:
        """Lay out landmarks, from FEWEST on: features [m, d], of unit length. before: the layout to start from."""
        from sklearn.decomposition import PCA  # here, as both take 90 MB
        from sklearn.manifold import TSNE

        rng = np.random.default_rng(seed)
        axes = PCA(min(AXES, *features.shape), random_state=seed) if np.ptp(features, axis=0).any() else None
        if axes is None:  # all the same
            return cls(features, np.full((len(features), 2), 0.5))
        reduced = axes.fit_transform(features)
        start = before.place(features).astype(np.float64) if before is not None else _two(reduced)
        start = (start - start.mean(0)) / max(float(start.std()), 1e-12) + rng.normal(0, 1e-3, start.shape)
        perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
        embed = TSNE(
            init=(1e-4 * start).astype(np.float32), perplexity=perplexity, max_iter=ITERATIONS, random_state=seed
        )
        return cls(features, embed.fit_transform(reduced).astype(np.float64))

    def place(self, features: Floats) -> NDArray[np.uint16]:
        """Positions of images [n, d] on a square map: uint16 [n, 2].

        The landmarks' middle 99 % fill it, in one scale for both axes; what lies outside is at the edge.
        """
        low, high = np.quantile(self.positions, [0.005, 0.995], axis=0)
        span = max(float((high - low).max()), 1e-12)
        found = [np.zeros((0, 2))] + [self._beside(features[at : at + BLOCK]) for at in range(0, len(features), BLOCK)]
        inside = np.clip((np.concatenate(found) - (low + high) / 2) / (1.06 * span) + 0.5, 0, 1)
        return np.rint(inside * MAP_STEPS).astype(np.uint16)

    def _beside(self, features: Floats) -> NDArray[np.float64]:
        similar = features.astype(np.float32) @ self.features.T
        near = np.argpartition(-similar, range(min(NEAREST, similar.shape[1] - 1)), axis=1)[:, :NEAREST]
        own = self.positions[near[:, 0]]
        pull = self.positions[near[:, 1:]].mean(axis=1) - own
        longest = self._reach[near[:, 0]] / np.maximum(np.linalg.norm(pull, axis=1), 1e-12)
        return own + pull * np.minimum(1, longest)[:, None]


def _two(reduced: Floats) -> NDArray[np.float64]:
    found = np.zeros((len(reduced), 2))
    found[:, : reduced.shape[1]] = reduced[:, :2]
    return found


def write_layout(arrays: ProjectArrays, layout: Layout, kind: str, tasks: int) -> None:
    """Keep the layout of the features of a kind, found when there were so many tasks, for the next start."""
    arrays.write_snapshot(
        "layout",
        {
            "kind": np.array(kind),
            "tasks": np.array(tasks),
            "features": layout.features.astype(np.float16),
            "positions": layout.positions,
        },
    )


def read_layout(arrays: ProjectArrays, kind: str) -> tuple[Layout | None, int]:
    """What was written last, if it was of features of this kind."""
    found = arrays.read_snapshot("layout")
    if found is None or str(found["kind"]) != kind:
        return None, 0
    return Layout(found["features"].astype(np.float32), found["positions"]), int(found["tasks"])
