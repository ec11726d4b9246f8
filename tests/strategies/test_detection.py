"""Votes, candidates, the order in which a batch is filled, and hybrids, on pools that can be seen through."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from neat_backend.models.grid import to_grid
from neat_backend.ranking.pool import UNLABELLED, Pool
from neat_backend.ranking.scores import INVALID, MISSING
from neat_backend.strategies import detection, neat, neat_passive
from neat_backend.testing.pools import fixed_model, make_pool

# Labelled: two of class 0 and one of class 1 near the first axis, two invalid and one of class 0 near the second,
# three invalid near the third. Offered: two at the first axis, one at the second, one at the third.
POINTS = [
    [10, 1, 0],
    [10, 2, 0],
    [10, 0, 1],
    [1, 10, 0],
    [0, 10, 1],
    [2, 10, 0],
    [0, 0, 10],
    [1, 0, 10],
    [0, 1, 10],
    [20, 1, 1],
    [1, 0, 20],
    [2, 20, 1],
    [20, 2, 1],
]
LABELS = [0, 0, 1, INVALID, 0, INVALID, INVALID, INVALID, INVALID, *[UNLABELLED] * 4]
FIRST, THIRD, SECOND, ALSO_FIRST = 9, 10, 11, 12


@pytest.fixture
def pool() -> Pool:
    return Pool(to_grid(POINTS), np.array(LABELS), 2, np.arange(9, 13), k=3)


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_votes_are_the_labels_of_the_nearest_labelled(pool):
    codes = detection.votes(pool)
    assert np.sort(codes, axis=1).tolist() == [[0, 0, 1], [INVALID] * 3, [INVALID, INVALID, 0], [0, 0, 1]]
    # The cosines of (20, 1, 1) with (10, 1, 0), (10, 2, 0) and (10, 0, 1) are as 201/√101, 202/√104 and 201/√101,
    # 20.000, 19.808 and 20.000: samples 0 and 2, a tie, then 1.
    assert codes[0].tolist() == [0, 1, 0]


def test_votes_of_fewer_labelled_than_k_are_missing(pool):
    codes = detection.votes(replace(pool, labels=np.where(np.arange(13) < 2, pool.labels, UNLABELLED)))
    assert (codes == [0, 0, MISSING]).all()


def test_candidates_by_the_papers_rule_have_only_known_neighbours(pool):
    assert detection.candidates(pool, 4).tolist() == [FIRST, ALSO_FIRST]


def test_candidates_by_the_authors_rule_have_mostly_known_neighbours_and_the_most_come_first(pool):
    labels = pool.labels.copy()
    labels[3] = 1  # now two of three are known at the second axis
    pool = replace(pool, labels=labels, rule="majority")
    assert detection.candidates(pool, 4).tolist() == [FIRST, ALSO_FIRST, SECOND]
    assert detection.candidates(replace(pool, cut=2), 1).tolist() == [FIRST, ALSO_FIRST]
    assert detection.candidates(replace(pool, cut=2), 2).tolist() == [FIRST, ALSO_FIRST, SECOND]


def test_votes_that_have_been_taken_are_not_taken_again(pool):
    codes = np.full((4, 3), INVALID)
    codes[1] = 0
    assert detection.candidates(pool, 4, codes).tolist() == [THIRD]


def test_a_batch_is_filled_by_known_neighbours_then_by_inconsistency():
    model = fixed_model([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    pool = Pool(to_grid(np.eye(5)), np.full(5, UNLABELLED), 2, np.arange(5), model, k=2)
    codes = np.array([[0, INVALID], [0, INVALID], [INVALID, INVALID], [0, 0], [INVALID, INVALID]])
    # One vote for class 0: I = log(e + 1) - P[0], larger for the second. The last two are a tie.
    filled = detection.filled(pool, np.array([3]), 5, codes)
    assert filled.tolist() == [3, 1, 0, 2, 4]
    assert detection.filled(pool, np.array([3]), 2, codes).tolist() == [3, 1]
    assert detection.filled(pool, np.array([3]), 1, codes).tolist() == [3]
    assert detection.filled(pool, np.array([3]), 9, codes).tolist() == [3, 1, 0, 2, 4]


def test_the_same_votes_for_other_classes_are_a_tie():
    # Counts 3, 2 and 1 in all orders of the neighbours; before rounding the sums differ in their last bits.
    generator = rng()
    codes = np.array([generator.permutation(8)[generator.permutation([0, 0, 0, 1, 1, 2])] for _ in range(50)])
    pool = Pool(to_grid(np.ones((50, 2))), np.full(50, UNLABELLED), 8, np.arange(50))
    assert len(np.unique(detection.inconsistency(pool, pool.offered, codes))) == 1


def test_a_hybrid_lets_the_strategy_see_the_candidates_only_and_keeps_its_order(pool):
    seen = []

    def last_first(narrowed, batch_size, generator):
        seen.append((narrowed.offered.tolist(), batch_size))
        return narrowed.offered[::-1][:batch_size]

    hybrid = detection.after_detection(last_first)
    assert hybrid(pool, 2, rng()).tolist() == [ALSO_FIRST, FIRST]
    assert hybrid(pool, 1, rng()).tolist() == [ALSO_FIRST]
    assert hybrid(pool, 4, rng()).tolist() == [ALSO_FIRST, FIRST, SECOND, THIRD]  # filled
    assert seen == [([FIRST, ALSO_FIRST], 2), ([FIRST, ALSO_FIRST], 1), ([FIRST, ALSO_FIRST], 4)]


def test_without_candidates_a_hybrid_does_not_ask_the_strategy(pool):
    def never(narrowed, batch_size, generator):
        raise AssertionError("there is nothing to choose from")

    pool = pool.offering(np.array([THIRD, SECOND]))
    assert detection.after_detection(never)(pool, 2, rng()).tolist() == [SECOND, THIRD]


def test_a_hybrid_of_neat_is_neat():
    for made in (make_pool(), make_pool(model=False), replace(make_pool(n=400), rule="majority", cut=2)):
        hybrid = detection.after_detection(neat.select)
        np.testing.assert_array_equal(hybrid(made, 20, rng()), neat.select(made, 20, rng()))


def test_passive_draws_from_the_candidates_and_fills_as_neat_does(pool):
    drawn = {tuple(neat_passive.select(pool, 1, np.random.default_rng(seed)).tolist()) for seed in range(20)}
    assert drawn == {(FIRST,), (ALSO_FIRST,)}
    chosen = neat_passive.select(pool, 3, rng())
    assert set(chosen[:2].tolist()) == {FIRST, ALSO_FIRST}
    assert chosen[2] == SECOND
