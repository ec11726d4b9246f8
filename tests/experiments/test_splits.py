from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.errors import SettingsError
from neat_backend.experiments.splits import codes_of, initial_labels, known_choices, stream
from neat_backend.ranking.scores import INVALID


def test_the_first_classes_are_the_authors_choice():
    assert known_choices("first", 2, 10, seed=5) == [(0, 1)]


@given(st.integers(0, 1000), st.integers(1, 10))
def test_each_seed_draws_its_own_classes_and_the_same_ones_again(seed, known):
    (one,) = known_choices("seed", known, 10, seed)
    assert len(set(one)) == known
    assert list(one) == sorted(one)
    assert known_choices("seed", known, 10, seed) == [one]


def test_five_draws_of_two_classes_use_each_of_ten_once():
    draws = known_choices("draw:5", 2, 10, seed=0)
    assert sorted(code for one in draws for code in one) == list(range(10))
    assert known_choices("draw:5", 2, 10, seed=1) == draws


def test_more_draws_are_all_different():
    draws = known_choices("draw:9", 3, 10, seed=0)
    assert len(set(draws)) == 9


def test_classes_may_be_named():
    assert known_choices("1,0;8,9", 2, 10, seed=0) == [(0, 1), (8, 9)]


@pytest.mark.parametrize("choice", ["second", "draw:x", "draw:0", "draw:46", "0,1,2", "0,0", "0,10", "-1,0"])
def test_a_choice_that_makes_no_sense_is_refused(choice):
    with pytest.raises(SettingsError, match="--choice"):
        known_choices(choice, 2, 10, seed=0)


def test_more_known_classes_than_there_are_is_refused():
    with pytest.raises(SettingsError, match="has 10 classes"):
        known_choices("first", 11, 10, seed=0)


def test_codes_follow_the_order_of_the_known_classes():
    assert codes_of(np.array([3, 1, 7, 0]), (1, 7)).tolist() == [INVALID, 0, 1, INVALID]
    assert codes_of(np.array([0, 1]), (1, 9)).tolist() == [INVALID, 0]


def test_initial_labels_are_a_share_of_the_known_samples_or_a_number_of_them():
    codes = np.array([0, 1, INVALID] * 50)
    share = initial_labels(codes, 0.08, np.random.default_rng(0))
    assert len(share) == 8
    assert (codes[share] >= 0).all()
    assert len(initial_labels(codes, 30.0, np.random.default_rng(0))) == 30
    assert len(initial_labels(codes, 0.001, np.random.default_rng(0))) == 1
    with pytest.raises(SettingsError, match="have 100 training images"):
        initial_labels(codes, 101, np.random.default_rng(0))


def test_streams_of_other_names_are_others_and_of_the_same_name_the_same():
    draws = {stream(*parts).integers(2**60) for parts in [("a", 1), ("a", 2), ("b", 1), (1, "a"), ("a", (1,))]}
    assert len(draws) == 5
    assert stream("a", 1, (2, 3)).integers(2**60) == stream("a", 1, (2, 3)).integers(2**60)
