from __future__ import annotations

import numpy as np
import pytest

from neat_backend.models.grid import GRID, to_grid


def test_the_worked_example_of_the_docstring():
    row = to_grid([[3.0, 4.0]])
    assert row.dtype == np.float32
    assert (row.astype(np.float64) / GRID).tolist() == [[2516582.0, 3355443.0]]


def test_values_lie_on_the_grid_and_rows_have_length_one():
    rng = np.random.default_rng(0)
    rows = to_grid(rng.standard_normal((50, 512)))
    steps = rows.astype(np.float64) / GRID
    assert np.array_equal(steps, np.rint(steps))
    assert np.abs(np.linalg.norm(rows.astype(np.float64), axis=1) - 1).max() < 512 * GRID


def test_similarities_are_the_same_in_any_order_of_summation():
    rng = np.random.default_rng(1)
    rows = to_grid(rng.standard_normal((20, 512))).astype(np.float64)
    straight = rows @ rows.T
    for _ in range(5):
        order = rng.permutation(512)
        one_by_one = sum(np.outer(rows[:, j], rows[:, j]) for j in order)
        assert np.array_equal(straight, one_by_one)


def test_a_row_does_not_depend_on_the_rows_beside_it():
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((33, 512)).astype(np.float32)
    assert np.array_equal(to_grid(rows)[7], to_grid(rows[7:8])[0])


@pytest.mark.parametrize("length", [1.0, -1e300, 5e-324])
def test_the_longest_and_the_shortest_rows_keep_their_direction(length):
    axes = np.eye(3)
    assert np.array_equal(to_grid(axes * length), axes * np.sign(length))


def test_no_rows_give_no_rows():
    assert to_grid(np.zeros((0, 5))).shape == (0, 5)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_rows_without_a_direction_are_refused_by_number(bad):
    rows = np.ones((4, 3))
    rows[2] = bad
    with pytest.raises(ValueError, match="1 of 4 feature rows are zero or not finite: row 2"):
        to_grid(rows)


def test_a_single_vector_is_refused():
    with pytest.raises(ValueError, match="two dimensions"):
        to_grid(np.ones(3))
