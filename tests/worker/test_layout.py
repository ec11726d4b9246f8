"""Positions on the map: what looks alike lies together, and stays where it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from neat_backend.models.grid import to_grid
from neat_backend.store.arrays import ProjectArrays
from neat_backend.worker.steps.layout import FEWEST, MAP_STEPS, Layout, read_layout, write_layout


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    found = load_digits()
    return to_grid(found.data), found.target


@pytest.fixture(scope="module")
def layout(digits: tuple[np.ndarray, np.ndarray]) -> Layout:
    return Layout.find(digits[0][:600], 0)


def alike(positions: np.ndarray, classes: np.ndarray) -> float:
    """The share of the 10 nearest points that are of a point's own class."""
    near = NearestNeighbors(n_neighbors=10).fit(positions.astype(float)).kneighbors(return_distance=False)
    return float((classes[near] == classes[:, None]).mean())


def test_images_of_a_class_lie_together_those_that_came_later_too(
    digits: tuple[np.ndarray, np.ndarray], layout: Layout
) -> None:
    features, classes = digits
    flat = PCA(2).fit_transform(features)
    assert alike(layout.place(features), classes) > alike(flat, classes) + 0.2


def test_the_map_is_filled_and_later_images_move_no_other(
    digits: tuple[np.ndarray, np.ndarray], layout: Layout
) -> None:
    features, _ = digits
    placed = layout.place(features)
    assert (np.ptp(placed.astype(int), axis=0) > 0.7 * MAP_STEPS).all()
    assert np.array_equal(placed[:700], layout.place(features[:700]))
    assert layout.place(features[:0]).shape == (0, 2)


def test_a_start_continues_with_the_layout_of_its_encoder(
    tmp_path: Path, digits: tuple[np.ndarray, np.ndarray], layout: Layout
) -> None:
    arrays = ProjectArrays(tmp_path, 7)
    assert read_layout(arrays, "features/a") == (None, 0)
    write_layout(arrays, layout, "features/a", 600)
    again, tasks = read_layout(arrays, "features/a")
    assert again is not None
    assert tasks == 600
    moved = np.abs(again.place(digits[0]).astype(int) - layout.place(digits[0]))
    assert np.quantile(moved, 0.99) <= 0.01 * MAP_STEPS
    assert read_layout(arrays, "features/b") == (None, 0)


def test_a_layout_of_more_images_resembles_the_one_before(
    digits: tuple[np.ndarray, np.ndarray], layout: Layout
) -> None:
    features, _ = digits
    larger = Layout.find(features[:1300], 0, layout)
    before, after = layout.place(features[:600]).astype(float), larger.place(features[:600]).astype(float)
    assert min(np.corrcoef(before[:, axis], after[:, axis])[0, 1] for axis in (0, 1)) > 0.8


@pytest.mark.parametrize("rows", [range(FEWEST), [0] * 30, [0] * 9 + [1]], ids=["few", "copies", "copies and one"])
def test_few_images_and_copies_are_on_the_map(rows: Sequence[int]) -> None:
    features = to_grid(np.eye(8)[list(rows)])
    layout = Layout.find(features, 0)
    assert np.isfinite(layout.positions).all()
    assert layout.place(features).shape == (len(features), 2)
