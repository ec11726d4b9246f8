"""Neighbours against the definition: every similarity exactly, sorted, ties by smaller index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.models.grid import to_grid
from neat_backend.ranking.neighbors import NeighborTable
from neat_backend.strategies.nearest import NONE, nearest


def literal_nearest(features, queries, among, k):
    """Dot products of whole numbers of 2^-24, one pair at a time."""
    whole = (features.astype(np.float64) * 2**24).astype(np.int64)
    indices, similarities = [], []
    for query in queries:
        others = among[among != query]
        pairs = sorted((-np.float32(float(whole[query] @ whole[other]) / 2**48), other) for other in others)[:k]
        missing = k - len(pairs)
        indices.append([other for _, other in pairs] + [NONE] * missing)
        similarities.append([-value for value, _ in pairs] + [-np.inf] * missing)
    return np.reshape(indices, (-1, k)), np.reshape(similarities, (-1, k))


def test_neighbours_of_one_query_worked_by_hand():
    features = to_grid([[1, 0], [0, 1], [3, 4], [1, 0], [4, 3]])
    indices, similarities = nearest(features, np.array([0]), np.array([1, 2, 3, 4]), 3)
    assert indices.tolist() == [[3, 4, 2]]
    assert similarities[0].tolist() == pytest.approx([1, 0.8, 0.6])
    assert (indices.dtype, similarities.dtype) == (np.int64, np.float32)


def test_ties_go_to_the_smaller_index_and_a_query_is_not_its_own_neighbour():
    features = to_grid([[1, 0]] * 6)
    indices, _ = nearest(features, np.array([2, 5]), np.array([4, 2, 0, 3]), 3)
    assert indices.tolist() == [[0, 3, 4], [0, 2, 3]]


def test_places_without_a_neighbour_are_marked():
    features = to_grid(np.eye(3))
    indices, similarities = nearest(features, np.array([0, 1]), np.array([1]), 2)
    assert indices.tolist() == [[1, NONE], [NONE, NONE]]
    assert similarities.tolist() == [[0, -np.inf], [-np.inf, -np.inf]]
    indices, _ = nearest(features, np.array([0]), np.array([], int), 2)
    assert indices.tolist() == [[NONE, NONE]]
    indices, _ = nearest(features, np.array([], int), np.array([1]), 2)
    assert indices.shape == (0, 2)


def test_no_neighbours_at_all_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        nearest(to_grid(np.eye(2)), np.array([0]), np.array([1]), 0)


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_they_are_those_of_the_definition(k, dim, n_among, seed):
    rng = np.random.default_rng(seed)
    # Few values, so that ties are common and many are about as near.
    features = to_grid(rng.integers(1, 4, (40, dim)))
    among, queries = rng.permutation(40)[:n_among], rng.permutation(40)[:10]
    indices, similarities = nearest(features, queries, among, k)
    expected_indices, expected_similarities = literal_nearest(features, queries, among, k)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(similarities, expected_similarities)


@pytest.mark.parametrize("n_among", [15, 290])
def test_many_that_single_precision_cannot_tell_apart_are_still_in_order(n_among):
    rng = np.random.default_rng(0)
    centre = rng.normal(size=64)
    features = to_grid(centre + 1e-6 * rng.normal(size=(300, 64)))
    queries, among = np.arange(20), np.arange(10, 10 + n_among)
    indices, similarities = nearest(features, queries, among, 10)
    expected_indices, expected_similarities = literal_nearest(features, queries, among, 10)
    np.testing.assert_array_equal(indices, expected_indices)
    np.testing.assert_array_equal(similarities, expected_similarities)


def test_they_are_those_of_the_products_neighbour_table_and_no_block_changes_them(monkeypatch):
    rng = np.random.default_rng(1)
    features = to_grid(rng.normal(size=(1500, 48)) + 2 * rng.normal(size=(5, 48))[rng.integers(0, 5, 1500)])
    among = rng.permutation(1500)[:400]
    table = NeighborTable(48, 10)
    table.add_tasks(np.arange(1500), features)
    table.label(table.rows(among))
    rows = table.rows(np.arange(1500))
    monkeypatch.setattr("neat_backend.strategies.nearest._SEARCH_ROWS", 333)
    indices, similarities = nearest(features, np.arange(1500), among, 10)
    np.testing.assert_array_equal(indices, table.ids[table.neighbours[rows]])
    np.testing.assert_array_equal(similarities, table.similarities[rows])
