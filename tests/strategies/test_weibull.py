from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import weibull_min

from neat_backend.strategies.weibull import Tail, fit_tail


def log_likelihood(values: np.ndarray, shape: float, scale: float) -> float:
    """Of the Weibull density (k/s) (x/s)^(k-1) exp(-(x/s)^k)."""
    z = values / scale
    return float((math.log(shape / scale) + (shape - 1) * np.log(z) - z**shape).sum())


def test_the_distribution_is_its_formula() -> None:
    tail = Tail(location=2.0, scale=0.5, shape=3.0)
    expected = [0.0, 0.0, 1 - math.exp(-1), 1 - math.exp(-8)]  # x/scale: below 0, 0, 1 and 2
    np.testing.assert_allclose(tail.cdf(np.array([1.0, 2.0, 2.5, 3.0])), expected)


def test_the_location_is_one_below_the_smallest_of_the_twenty_largest() -> None:
    distances = np.arange(100) / 10
    assert fit_tail(distances).location == pytest.approx(8.0 - 1)
    assert fit_tail(distances[:5]).location == pytest.approx(-1.0)


@pytest.mark.parametrize("spread", [1e-6, 0.01, 0.3, 5.0])
def test_no_shape_and_scale_on_a_fine_grid_are_likelier(spread: float) -> None:
    rng = np.random.default_rng(0)
    distances = 0.2 + spread * rng.random(20)
    tail = fit_tail(distances)
    values = distances - tail.location
    best = log_likelihood(values, tail.shape, tail.scale)
    for shape in tail.shape * np.exp(np.linspace(-1, 1, 41)):
        for scale in tail.scale * np.exp(np.linspace(-1, 1, 41) / tail.shape):
            assert log_likelihood(values, shape, scale) <= best + 1e-6


def test_a_wide_tail_is_fitted_as_scipy_fits_it() -> None:
    values = np.random.default_rng(0).weibull(1.5, 20) * 3
    tail = fit_tail(values)
    shape, _, scale = weibull_min.fit(values, floc=tail.location)
    assert (tail.shape, tail.scale) == pytest.approx((shape, scale), rel=1e-3)


def test_it_finds_the_parameters_of_a_large_sample() -> None:
    drawn = np.random.default_rng(0).weibull(4.0, 50_000)
    tail = fit_tail(drawn / drawn.min(), size=len(drawn))  # the smallest is 1, so that the location is 0
    assert tail.location == 0
    assert tail.shape == pytest.approx(4.0, rel=0.02)
    assert tail.scale == pytest.approx(1 / drawn.min(), rel=0.02)


@pytest.mark.parametrize("n", [1, 2, 20])
def test_distances_that_are_all_the_same_leave_a_step(n: int) -> None:
    tail = fit_tail(np.full(n, 0.4))
    np.testing.assert_array_equal(tail.cdf(np.array([0.0, 0.39, 0.41, 7.0])), [0, 0, 1, 1])


def test_a_tail_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one distance"):
        fit_tail(np.zeros(0))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40))
def test_the_distribution_stays_in_its_range_and_never_falls(distances: list[float]) -> None:
    tail = fit_tail(np.array(distances))
    values = tail.cdf(np.linspace(-1, 150, 500))
    assert np.isfinite(values).all()
    assert values.min() >= 0
    assert values.max() <= 1
    assert (np.diff(values) >= 0).all()
