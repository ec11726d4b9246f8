"""Scores, checked by hand and against the literal text of Eq. 5."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.ranking import formulas, scores
from neat_backend.ranking.scores import INVALID, MISSING


def literal_inconsistency(codes, probabilities, n_classes):
    """Eq. 5 as it is printed, one task at a time."""
    result = []
    for row, p in zip(codes, probabilities, strict=True):
        votes = np.array([np.count_nonzero(row == c) for c in range(n_classes)], float)
        softmax = np.exp(votes) / np.exp(votes).sum()
        result.append(-(p * np.log(softmax)).sum())
    return np.array(result)


def test_inconsistency_of_one_task_worked_by_hand():
    # V = (2, 1), P = (0.25, 0.75): log(e^2 + e^1) - (0.5 + 0.75) = 2.313262 - 1.25
    codes = np.array([[0, 1, 0]])
    value = scores.inconsistency(codes, np.array([[0.25, 0.75]]), 2)
    assert value == pytest.approx([1.0632616875])


def test_invalid_and_missing_neighbours_vote_for_no_class():
    codes = np.array([[0, INVALID, MISSING]])
    # V = (1, 0), uniform P: log(e + 1) - 0.5
    assert scores.inconsistency(codes, None, 2) == pytest.approx([np.log(np.e + 1) - 0.5])


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_the_closed_form_equals_eq_5(k, n_classes, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(MISSING, n_classes, (7, k))
    probabilities = rng.dirichlet(np.ones(n_classes), 7)
    value = scores.inconsistency(codes, probabilities, n_classes)
    np.testing.assert_allclose(value, literal_inconsistency(codes, probabilities, n_classes), atol=1e-9)
    assert (value <= scores.max_inconsistency(k, n_classes) + 1e-9).all()
    assert (value >= 0).all()


def test_the_bound_is_reached_when_all_votes_go_to_a_class_of_probability_zero():
    codes = np.zeros((1, 10), int)
    value = scores.inconsistency(codes, np.array([[0.0, 1.0, 0.0]]), 3)
    assert value == pytest.approx([scores.max_inconsistency(10, 3)])


@given(st.integers(1, 12), st.integers(1, 12), st.booleans(), st.integers(0, 2**32 - 1))
def test_the_compiled_loop_equals_the_formula(k, n_classes, uniform, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(MISSING, n_classes, (7, k))
    probabilities = None if uniform else rng.dirichlet(np.ones(n_classes), 7)
    votes = np.array([[np.count_nonzero(row == c) for c in range(n_classes)] for row in codes])
    value = scores.inconsistency(codes, probabilities, n_classes)
    np.testing.assert_allclose(value, formulas.inconsistency(votes, probabilities), atol=1e-9)


@pytest.mark.parametrize("k", [709, 710, 1000])
def test_as_many_votes_as_e_to_their_power_overflows_are_scored(k):
    """log(e^k + 1) - P·V, where e^710 is more than the largest number."""
    codes = np.array([[0] * k, [0] * (k - 1) + [1]])
    shares = np.array([[0.25, 0.75], [0.25, 0.75]])
    assert scores.inconsistency(codes, shares, 2) == pytest.approx([0.75 * k, (k - 1) - 0.25 * (k - 1) - 0.75])
    assert scores.max_inconsistency(k, 2) == pytest.approx(k)
    value = scores.priority(scores.inconsistency(codes, shares, 2), np.array([k, k]), np.array([True, True]), k, 2)
    assert 0.5 < value[1] < value[0] < 1


def test_a_value_is_the_same_alone_and_in_a_crowd():
    rng = np.random.default_rng(0)
    codes = rng.integers(MISSING, 5, (1001, 10))
    probabilities = rng.dirichlet(np.ones(5), 1001).astype(np.float32)
    crowd = scores.inconsistency(codes, probabilities, 5)
    alone = [scores.inconsistency(codes[i : i + 1], probabilities[i : i + 1], 5)[0] for i in range(1001)]
    assert np.abs(crowd - alone).max() < 1e-12


def test_known_rules():
    codes = np.array([[0, 1, 0], [0, 1, INVALID], [0, INVALID, INVALID], [0, MISSING, MISSING], [MISSING] * 3])
    assert scores.candidates(codes, "all").tolist() == [True, False, False, True, False]
    assert scores.candidates(codes, "majority").tolist() == [True, True, False, True, False]
    with pytest.raises(ValueError, match="known rule"):
        scores.candidates(codes, "most")


def test_candidates_come_before_all_others_and_others_by_known_neighbours():
    k, n_classes = 10, 3
    top = scores.max_inconsistency(k, n_classes)
    inconsistency = np.array([0.0, top, top, 0.0, top])
    known = np.array([10, 10, 9, 9, 8])
    candidate = np.array([True, True, False, False, False])
    value = scores.priority(inconsistency, known, candidate, k, n_classes)
    assert value[0] == 0.5
    assert value[1] == 1.0
    assert value[2] == pytest.approx(0.5 * 10 / 11)
    assert value[1] > value[0] > value[2] > value[3] >= value[4]


def test_priority_stays_in_the_unit_interval_for_one_class_and_many_neighbours():
    codes = np.zeros((1, 1000), int)
    value = scores.inconsistency(codes[:, :500], np.ones((1, 1)), 1)
    assert 0 <= scores.priority(value, np.array([500]), np.array([True]), 500, 1)[0] <= 1


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match="probabilities are"):
        scores.inconsistency(np.zeros((2, 3), int), np.ones((2, 5)), 4)
    with pytest.raises(ValueError, match="class code 4"):
        scores.inconsistency(np.full((2, 3), 4), None, 4)
