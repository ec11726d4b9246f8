from __future__ import annotations

import numpy as np
import pytest

from neat_backend.experiments.clusterability import measure
from neat_backend.models.grid import to_grid


def blobs(spread: float, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    return to_grid(np.eye(3)[labels] + spread * rng.normal(size=(n, 3))), labels


def test_classes_that_lie_apart_are_clusterable():
    found = measure(*blobs(0.05), known=(0,), k=5, rng=np.random.default_rng(0))
    assert found.sigma.tolist() == [0] * 5
    assert (found.purity, found.pure_precision, found.pure_recall) == (1, 1, 1)
    assert found.chance == pytest.approx(1 / 3, abs=0.02)


def test_noise_is_not():
    features, labels = blobs(5.0)
    found = measure(features, labels, known=(0, 1), k=5, rng=np.random.default_rng(0))
    assert found.sigma[-1] > 0.8
    assert (found.open_sigma <= found.sigma).all()  # two unknown classes that are mixed up do no harm
    assert found.bound > measure(*blobs(0.2), known=(0, 1), k=5, rng=np.random.default_rng(0)).bound


def test_more_neighbours_than_samples_are_refused():
    with pytest.raises(ValueError, match="K must be in"):
        measure(*blobs(0.1, 10), known=(0,), k=10, rng=np.random.default_rng(0))
