from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.experiments import metrics


def rounds(found, size=10, accuracy=None, initial=20, in_pool=100):
    """Figures as the loop writes them; `found` of queries 1, 2, …"""
    first_accuracy, *others = accuracy or [0.5] * (len(found) + 1)
    common = {"initial": initial, "known_in_pool": in_pool, "seconds": {"training": 2.0, "query": 1.0}}
    first = {"found": 0, "asked": 0, "accuracy": first_accuracy, **common}
    return [first, *({"found": f, "asked": size, "accuracy": a, **common} for f, a in zip(found, others, strict=True))]


def test_precision_is_of_each_query_and_recall_adds_up_by_equation_6():
    one = rounds([2, 8, 10])
    assert metrics.precisions(one).tolist() == [0.2, 0.8, 1.0]
    assert metrics.cumulative_precisions(one).tolist() == pytest.approx([0.2, 0.5, 2 / 3])
    assert metrics.recalls(one).tolist() == [0, 0.02, 0.1, 0.2]


def test_minutes_count_both_kinds_of_answers_at_their_price():
    one = rounds([60, 10], size=100)
    # 60 · 3 + 40 · 1.5 = 240 s; then 10 · 3 + 90 · 1.5 = 165 s more.
    assert metrics.minutes(one, 3.0, 1.5).tolist() == pytest.approx([0, 4, 6.75])


def test_the_authors_recall_counts_the_initial_labels_on_both_sides():
    assert metrics.recalls_with_initial(rounds([2, 8])).tolist() == pytest.approx([20 / 120, 22 / 120, 30 / 120])


def test_the_area_is_the_mean_of_the_trapezoids():
    assert metrics.area([0.5, 0.7, 0.9]) == pytest.approx(0.7)
    assert metrics.area([0.0, 1.0, 1.0]) == pytest.approx(0.75)
    assert metrics.area([0.4]) == 0.4


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_the_area_lies_between_the_smallest_and_the_largest_value(values):
    assert min(values) - 1e-12 <= metrics.area(values) <= max(values) + 1e-12


def test_the_summary_is_of_the_last_query():
    one = metrics.summary(rounds([2, 8], accuracy=[0.5, 0.7, 0.9]))
    assert (one["accuracy"], one["first_accuracy"], one["found"]) == (0.9, 0.7, 10)
    assert one["area"] == pytest.approx(0.7)
    assert (one["seconds_training"], one["seconds_query"], one["seconds_total"]) == (2, 1, 9)


def test_without_a_query_or_a_test_set_what_can_not_be_known_is_nan():
    one = metrics.summary(rounds([], accuracy=[None]))
    assert math.isnan(one["accuracy"])
    assert math.isnan(one["precision"])
    assert one["recall"] == 0


def test_the_deviation_is_the_samples_own():
    assert metrics.mean_and_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert math.isnan(metrics.mean_and_std([1.0])[1])


def test_paired_differences_have_students_interval():
    """Differences 1, 2, 3: standard error 1/√3, t(0.975, 2) = 4.3027, t = 3.4641, p = 0.0742."""
    found = metrics.paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert found.p == pytest.approx(0.0742, abs=1e-4)


def test_one_pair_has_no_interval_and_equal_values_are_no_difference():
    assert math.isnan(metrics.paired([2.0], [1.0]).half)
    assert metrics.paired([2.0, 3.0], [2.0, 3.0]).p == 1.0
    with pytest.raises(ValueError, match="no pairs"):
        metrics.paired([1.0], [1.0, 2.0])


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=8))
def test_what_all_pairs_share_makes_no_difference(values):
    others = np.zeros(len(values))
    shift = np.linspace(0, 100, len(values))
    plain, shifted = metrics.paired(values, others), metrics.paired(values + shift, others + shift)
    assert shifted.mean == pytest.approx(plain.mean, abs=1e-9)
