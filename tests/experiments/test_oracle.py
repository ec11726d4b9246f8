from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.errors import NeatError
from neat_backend.experiments.oracle import Oracle
from neat_backend.ranking.pool import UNLABELLED
from neat_backend.ranking.scores import INVALID

CODES = np.array([0, 1, INVALID, INVALID, 1, 0])


def test_it_answers_with_the_class_or_invalid_and_keeps_the_labels():
    oracle = Oracle(CODES, np.array([0]))
    assert oracle.answer(np.array([4, 2])).tolist() == [1, INVALID]
    assert oracle.labels.tolist() == [0, UNLABELLED, INVALID, UNLABELLED, 1, UNLABELLED]
    assert oracle.unlabelled.tolist() == [1, 3, 5]
    assert (oracle.n_initial, oracle.n_known_in_pool) == (1, 3)


@pytest.mark.parametrize("queried", [[0], [1, 1], [2]])
def test_it_refuses_to_be_asked_about_a_sample_twice(queried):
    oracle = Oracle(CODES, np.array([0]))
    oracle.answer(np.array([2]))
    before = oracle.labels
    with pytest.raises(NeatError, match="twice"):
        oracle.answer(np.array(queried))
    assert (oracle.labels == before).all()


def test_it_knows_nothing_outside_the_pool():
    with pytest.raises(NeatError, match="not in the pool"):
        Oracle(CODES, np.array([0])).answer(np.array([6]))


def test_an_unknown_sample_can_not_be_labelled_from_the_start():
    with pytest.raises(ValueError, match="known classes"):
        Oracle(CODES, np.array([2]))


@given(st.permutations(range(1, 6)), st.integers(0, 5))
def test_known_invalid_and_unlabelled_are_disjoint_and_cover_the_pool(order, many):
    oracle = Oracle(CODES, np.array([0]))
    for one in order[:many]:
        oracle.answer(np.array([one]))
    labels = oracle.labels
    groups = [labels >= 0, labels == INVALID, labels == UNLABELLED]
    assert (np.sum(groups, axis=0) == 1).all()
    assert groups[2].sum() == len(oracle.unlabelled) == 5 - many
