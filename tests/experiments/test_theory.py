from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.experiments.theory import clusterability, detection_error_bound, holder_constant

SHARE = st.floats(0, 1)


def test_with_one_neighbour_the_bound_is_the_chance_that_the_two_labels_differ():
    """K = 1: the sums have k = 1 and k = 0, e q + (1 - e) q."""
    assert detection_error_bound(1, 0.3, 0.5, 0.5, 0.25) == pytest.approx(0.5 * 0.5)


def test_with_two_neighbours_both_must_mislead():
    """K = 2: k = 2 and k = 0. q = 2 · 0.01^0.5 = 0.2, e = 0.1: 0.01 · 0.04 + 0.81 · 0.04."""
    assert detection_error_bound(2, 0.1, 2.0, 0.5, 0.01) == pytest.approx(0.0328)


def test_with_three_neighbours_two_labels_decide():
    """K = 3, e = 0.2, q = 0.5: k = 2, 3 give 3·0.04·0.8·0.25 + 0.008·0.125, k = 0, 1 give 0.512·0.125 + 0.384·0.25."""
    expected = 0.096 * 0.25 + 0.008 * 0.125 + 0.512 * 0.125 + 0.384 * 0.25
    assert detection_error_bound(3, 0.2, 0.5, 0.5, 1.0) == pytest.approx(expected)


def test_the_sums_of_ten_neighbours_leave_out_the_even_split():
    """K = 10: k = 6..10 and 0..4. With e = 1/2 and q = 1 that is 1 - binom(10, 5) / 2^10."""
    assert detection_error_bound(10, 0.5, 1.0, 0.5, 1.0) == pytest.approx(1 - 252 / 1024)


@given(st.integers(1, 30), SHARE, st.floats(0.01, 5), st.floats(0.01, 0.99), st.lists(st.floats(0, 2), min_size=2))
def test_better_features_never_raise_the_bound(k, e, constant, exponent, radii):
    bounds = detection_error_bound(k, e, constant, exponent, np.sort(radii))
    assert bounds.shape == (len(radii),)
    assert (np.diff(bounds) >= -1e-12 * bounds[1:]).all()
    assert detection_error_bound(k, e, constant, exponent, 0.0) == 0


@pytest.mark.parametrize(
    "values", [(0, 0.1, 1, 0.5, 1), (3, 1.1, 1, 0.5, 1), (3, 0.1, 0, 0.5, 1), (3, 0.1, 1, 1.0, 1), (3, 0.1, 1, 0.5, -1)]
)
def test_values_outside_the_assumptions_are_refused(values):
    with pytest.raises(ValueError, match=r"must|can't"):
        detection_error_bound(*values)


def test_clusterability_is_the_share_of_samples_at_odds_with_a_neighbour():
    labels = np.array([0, 0, 1])
    neighbours = np.array([[0, 1], [0, 0], [1, 0]])
    assert clusterability(labels, neighbours).tolist() == pytest.approx([0, 2 / 3])


@given(st.integers(0, 2**32))
def test_more_neighbours_never_agree_better(seed):
    rng = np.random.default_rng(seed)
    sigma = clusterability(rng.integers(0, 3, 20), rng.integers(0, 3, (20, 6)))
    assert (np.diff(sigma) >= 0).all()
    assert sigma.min() >= 0
    assert sigma.max() <= 1


def test_neighbours_of_other_samples_are_refused():
    with pytest.raises(ValueError, match="don't go together"):
        clusterability(np.zeros(3, int), np.zeros((2, 4), int))


def test_the_constant_is_the_worst_groups():
    distances = np.array([4.0, 4.0, 9.0, 9.0])
    differ = np.array([True, False, True, True])
    assert holder_constant(distances, differ, 0.5, bins=1) == pytest.approx(0.75 / 6.5**0.5)
    assert holder_constant(distances, differ, 0.5, bins=2) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="too few"):
        holder_constant(distances, differ, 0.5, bins=5)
