"""neat_plus: its formulas on numbers that can be checked by hand, and what it is for on a clustered pool."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.errors import SettingsError
from neat_backend.models.grid import to_grid
from neat_backend.ranking.pool import UNLABELLED, Past, Pool
from neat_backend.ranking.scores import INVALID
from neat_backend.strategies import neat_plus, plus_detector, strategy
from neat_backend.strategies.neat_plus import (
    LEAST_UNCERTAIN,
    MOST_WANTED,
    Candidates,
    drawn,
    evened,
    mixed_in,
    select,
    steered,
    uncertainty,
    wanted_precision,
)
from neat_backend.testing.pools import LinearLearner, make_pool


def pool_on_a_circle(degrees: list[float], labels: list[int]) -> Pool:
    """Features at these angles: the cosine of two is the cosine of the angle between them."""
    angles = np.radians(degrees)
    codes = np.array(labels, np.int64)
    features = to_grid(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    return Pool(features, codes, max(1, int(codes.max()) + 1), np.flatnonzero(codes == UNLABELLED))


def clustered(n_known: int = 2, n_unknown: int = 8, each: int = 100, labelled: int = 8, spread: float = 0.5) -> Pool:
    """Clusters in 32 dimensions, the first ones known with a few labelled samples each, nothing invalid yet."""
    rng = np.random.default_rng(5)
    centres = rng.normal(size=(n_known + n_unknown, 32))
    cluster = np.repeat(np.arange(n_known + n_unknown), each)
    features = to_grid(centres[cluster] + spread * rng.normal(size=(len(cluster), 32)))
    labels = np.full(len(cluster), UNLABELLED, np.int64)
    for code in range(n_known):
        labels[code * each : code * each + labelled] = code
    known = np.flatnonzero(labels >= 0)
    model = LinearLearner(features).fit(known, labels[known], n_known, rng)
    return Pool(features, labels, n_known, np.flatnonzero(labels == UNLABELLED), model)


# --- the classifier with one more output


def test_the_background_is_unlabelled_and_mostly_the_same_after_a_query() -> None:
    pool = clustered()
    before = plus_detector.background(pool)
    assert (pool.labels[before] == UNLABELLED).all()
    labels = pool.labels.copy()
    labels[before[:10]] = INVALID
    after = plus_detector.background(replace(pool, labels=labels))
    np.testing.assert_array_equal(after, before[10:])


def test_the_softmax_of_equal_features_learns_the_weighted_shares() -> None:
    features = np.zeros((3, 1), np.float32)
    weights = plus_detector.fit_softmax(features, np.array([[1.0, 0], [2, 0], [0, 1]]))
    assert weights[1, 0] - weights[1, 1] == pytest.approx(np.log(3), abs=1e-2)  # 3 : 1
    assert weights[0] == pytest.approx([0, 0])


def test_a_sample_that_counts_as_both_is_two_samples_of_those_weights() -> None:
    one = plus_detector.fit_softmax(np.array([[1.0], [-1.0]], np.float32), np.array([[0.75, 0.25], [0, 1]]))
    two = plus_detector.fit_softmax(
        np.array([[1.0], [1.0], [-1.0]], np.float32), np.array([[0.75, 0], [0, 0.25], [0, 1]])
    )
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_stronger_pull_to_one_side_gets_a_positive_weight() -> None:
    features = np.array([[1.0], [-1.0]], np.float32)
    weights = plus_detector.fit_softmax(features, np.eye(2))
    w = weights[0, 0] - weights[0, 1]
    # Stationary: the slope 1/(1+e^w) of each of the two samples balances the penalty on half of w twice.
    assert 2 / (1 + np.exp(w)) == pytest.approx(plus_detector.PENALTY * w / 2, abs=1e-2)


def odds_of(pool: Pool) -> np.ndarray:
    behind = plus_detector.background(pool)
    return plus_detector.log_odds(
        pool, behind, np.tile(np.arange(pool.n_classes + 1) == pool.n_classes, (len(behind), 1))
    )[0]


def test_log_odds_are_high_for_known_clusters_and_low_for_others() -> None:
    odds = odds_of(clustered())
    assert odds[:200].mean() > odds[200:].mean() + 3


def test_a_labelled_sample_in_the_wrong_place_is_not_believed_because_it_was_trained_on() -> None:
    pool = clustered()
    labels = pool.labels.copy()
    labels[900] = 0  # of an unknown cluster
    labels[901:910] = INVALID
    odds = odds_of(replace(pool, labels=labels))
    assert odds[900] < odds[:8].min()


def test_soft_labels_tell_a_crowded_known_cluster_from_the_background() -> None:
    pool = clustered(n_known=2, n_unknown=2, spread=1.5)
    hard = plus_detector.probability_known(pool, ())
    soft = plus_detector.probability_known(pool)

    def apart(p: np.ndarray) -> float:
        return float(p[pool.offered[pool.offered < 200]].mean() - p[200:].mean())

    assert apart(soft) > apart(hard)


# --- p(known)


def test_the_share_of_known_samples_is_found_where_they_lie_apart() -> None:
    of_known = np.linspace(5, 6, 50)
    of_pool = np.concatenate([np.linspace(5, 6, 300), np.linspace(-1, 0, 700)])
    assert plus_detector.known_share(of_known, np.ones(50), of_pool) == pytest.approx(0.3, abs=0.02)


def test_where_known_and_pool_score_alike_the_share_is_the_most_it_may_be() -> None:
    assert plus_detector.known_share(np.arange(100.0), np.ones(100), np.arange(100.0)) == 0.9


def test_a_known_sample_of_weight_two_counts_as_two() -> None:
    of_pool = np.linspace(-3, 3, 100)
    once = plus_detector.known_share(np.array([0.0, 1, 1, 2]), np.ones(4), of_pool)
    assert plus_detector.known_share(np.array([0.0, 1, 2]), np.array([1.0, 2, 1]), of_pool) == pytest.approx(
        once, abs=0.05
    )


def test_each_class_weighs_the_same_however_many_labels_it_has() -> None:
    weights = plus_detector.class_weights(np.array([2, 0, 0, 0]))  # class 1 has none
    assert weights.tolist() == pytest.approx([2, 2 / 3, 2 / 3, 2 / 3])


def test_a_class_with_few_labels_is_as_likely_known_as_one_with_many() -> None:
    pool = clustered(n_known=2, spread=1.5)
    labels = pool.labels.copy()
    labels[8:60] = 0  # of class 0, beside the eight of class 1
    p = plus_detector.probability_known(replace(pool, labels=labels))
    assert p[108:200].mean() > 0.5 * p[60:100].mean()  # an eighth, where every label weighs the same


def test_the_logistic_curve_has_the_shares_of_two_points() -> None:
    values = np.array([-1.0, -1.0, 1.0, 1.0])
    slope, shift = plus_detector.fit_logistic(values, np.array([1.0, 0, 1, 0]), np.array([1.0, 3, 3, 1]) * 1000)
    # 1 : 3 at -1 and 3 : 1 at +1, so β - α = β + α = ln 3.
    assert (slope, shift) == pytest.approx((np.log(3), 0), abs=1e-3)


def test_probabilities_follow_the_answers() -> None:
    score = np.concatenate([np.full(10, 2.0), np.full(10, -2.0), np.linspace(-3, 3, 100)])
    known, invalid, rest = np.arange(10), np.arange(10, 20), np.arange(20, 120)
    p = plus_detector.calibrated(score, known, np.ones(10), invalid, rest)
    assert p[0] > 0.6 > 0.1 > p[10]
    assert (np.diff(p[20:]) >= 0).all()


def test_before_anything_is_invalid_its_mean_over_the_pool_is_the_share_found() -> None:
    score = np.concatenate([np.linspace(5, 6, 20), np.linspace(5, 6, 300), np.linspace(-1, 0, 700)])
    p = plus_detector.calibrated(score, np.arange(20), np.ones(20), np.arange(0), np.arange(20, 1020))
    assert p[20:].mean() == pytest.approx(0.3, abs=0.02)
    assert p[20:320].min() > 0.9 > 0.1 > p[320:].max()


# --- candidates, uncertainty, the precision wanted


def test_all_classes_have_the_same_sum_of_p_after_evening_out() -> None:
    sure = np.eye(2)[[0, 0, 0, 1]]
    assert evened(np.array([0.8, 0.6, 0.6, 0.4]), sure).tolist() == pytest.approx([0.48, 0.36, 0.36, 1.2])  # 1.2 each
    undecided = np.full((4, 2), 0.5)
    assert evened(np.array([0.8, 0.6, 0.6, 0.4]), undecided).tolist() == pytest.approx([0.8, 0.6, 0.6, 0.4])


def test_a_class_that_the_pool_has_hardly_any_of_does_not_fill_the_candidates() -> None:
    p = evened(np.full(100, 0.5), np.eye(2)[[0] * 99 + [1]])
    assert p[-1] == pytest.approx(0.5 * neat_plus.MOST_EVENED)


def test_candidates_are_drawn_by_their_weights_and_ascend() -> None:
    rng = np.random.default_rng(0)
    counts = np.zeros(3)
    for _ in range(2000):
        counts[drawn(np.array([0.6, 0.3, 0.1]), 1, rng.exponential(size=3))[0]] += 1
    np.testing.assert_allclose(counts / 2000, [0.6, 0.3, 0.1], atol=0.04)
    places, _ = drawn(np.ones(45), 20, rng.exponential(size=45))
    assert len(places) == 20
    assert (np.diff(places) > 0).all()


def test_what_the_drawn_stand_for_adds_up_to_the_known() -> None:
    p = np.linspace(0.01, 1, 500)
    rng = np.random.default_rng(0)
    sums = [drawn(p, 100, rng.exponential(size=500))[1].sum() for _ in range(200)]
    assert np.mean(sums) == pytest.approx(p.sum(), rel=0.02)


def test_few_are_all_candidates() -> None:
    places, share = drawn(np.array([0.2, 0.9, 0.4]), 3, np.ones(3))
    assert (places.tolist(), share.tolist()) == ([0, 1, 2], [0.2, 0.9, 0.4])


def test_uncertainty_is_one_less_the_margin() -> None:
    values = uncertainty(np.array([[0.5, 0.3, 0.2], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]))
    np.testing.assert_allclose(values, np.array([0.8, 0, 1]) + LEAST_UNCERTAIN)


def test_one_class_leaves_nothing_to_be_uncertain_of() -> None:
    np.testing.assert_array_equal(uncertainty(np.ones((2, 1))), [LEAST_UNCERTAIN] * 2)


def query(known: int, invalid: int) -> Past:
    answers = np.array([0] * known + [INVALID] * invalid, np.int64)
    return Past(np.arange(len(answers)), answers)


def test_what_queries_lacked_in_precision_is_wanted_from_the_next() -> None:
    assert wanted_precision((), 0.6) == 0.6
    assert wanted_precision((query(5, 5),), 0.6) == pytest.approx(0.8)
    assert wanted_precision((query(9, 1), query(5, 5)), 0.6) == pytest.approx(0.4)  # 14 of 20: 0.1 above
    assert wanted_precision((query(0, 0),), 0.6) == 0.6
    assert wanted_precision((query(0, 9),), 0.6) == MOST_WANTED
    assert wanted_precision((query(9, 0),), 0.3) == 0


def test_the_least_purity_is_found_that_gives_the_precision_wanted() -> None:
    p = np.array([0.5, 0.7, 0.9])
    asked: list[float] = []

    def batch(purity: float) -> np.ndarray:
        asked.append(purity)
        return np.array([0 if purity < 1 else 1 if purity < 3 else 2])

    assert steered(batch, p, 0.5).tolist() == [0]
    assert asked == [0]
    assert steered(batch, p, 0.6).tolist() == [1]
    assert steered(batch, p, 0.8).tolist() == [2]
    assert steered(batch, p, 0.95).tolist() == [2]  # the purest there is


# --- the choice


def similarities(points: list[float]) -> np.ndarray:
    """Points on a line: 1 - distance."""
    at = np.array(points)
    return (1 - np.abs(at[:, None] - at[None, :])).astype(np.float32)


def covering(matrix, mass, worth, covered, size, classes=None, counts=(), p=()):
    candidates = Candidates(
        matrix,
        np.array(mass, np.float32),
        np.array(covered, np.float32),
        np.array(p, np.float64),
        None if classes is None else np.array(classes),
        np.array(counts, np.float64),
    )
    return candidates.cover(np.array(worth, np.float64), size).tolist()


LINE = similarities([0, 0.1, 0.2, 0.9])
NOTHING = [0.0] * 4


def test_the_first_choice_covers_most_and_the_second_what_it_left() -> None:
    # 0.1 covers 0, 0.1, 0.2 with .9 + 1 + .9 and 0.9 with .2 = 3.0, more than any other. What is left uncovered at
    # 0.9 is .8, at 0 and 0.2 only .1.
    assert covering(LINE, [1] * 4, [1] * 4, NOTHING, 2) == [1, 3]


def test_mass_says_whom_it_matters_to_cover_and_worth_who_may_do_it() -> None:
    assert covering(LINE, [0, 0, 0, 1], [1] * 4, NOTHING, 1) == [3]
    assert covering(LINE, [1] * 4, [1, 0.1, 0.1, 0.1], NOTHING, 1) == [0]


def test_what_is_covered_already_is_not_covered_again() -> None:
    assert covering(LINE, [1] * 4, [1] * 4, LINE[1], 1) == [3]


def test_a_class_with_labels_waits_for_one_without() -> None:
    # Gains 2.8, 3.0, 2.8 of class 0, and of the last, which covers 1 + .3 + .2 + .1 = 1.6, of class 1.
    assert covering(LINE, [1] * 4, [1] * 4, NOTHING, 1, [0, 0, 0, 1], [0, 0], [1] * 4) == [1]
    assert covering(LINE, [1] * 4, [1] * 4, NOTHING, 1, [0, 0, 0, 1], [1, 0], [1] * 4) == [3]  # 3.0 / 4 < 1.6


def test_a_choice_counts_for_its_class_as_it_is_likely_known() -> None:
    apart = np.eye(4, dtype=np.float32)  # nobody covers another: gains are worth / (1 + counts)²
    assert covering(apart, [1] * 4, [1, 0.9, 0.8, 0.4], NOTHING, 4, [0, 0, 1, 1], [0, 0], [1] * 4) == [0, 2, 1, 3]
    # Class 0 counts .05 after the first choice: .9 / 1.05² = .82 is still more than .8.
    assert covering(apart, [1] * 4, [1, 0.9, 0.8, 0.4], NOTHING, 4, [0, 0, 1, 1], [0, 0], [0.05] * 4) == [0, 1, 2, 3]


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_the_short_cut_chooses_what_the_plain_greedy_chooses(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(12, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    matrix = (rows @ rows.T).astype(np.float32)
    mass, worth, p = rng.random((3, 12))
    classes, counts = rng.integers(3, size=12), rng.random(3)
    covered = rng.random(12).astype(np.float32) - 0.5
    candidates = Candidates(matrix, mass.astype(np.float32), covered, p, classes, counts)
    chosen = candidates.cover(worth, size).tolist()
    assert len(set(chosen)) == size
    for at, c in enumerate(chosen):  # each a best one at its turn, up to rounding
        gains = worth / (1 + counts[classes]) ** 2 * (mass * np.maximum(matrix - covered, 0)).sum(axis=1)
        assert gains[c] >= gains[[other for other in range(12) if other not in chosen[:at]]].max() - 1e-5
        covered = np.maximum(covered, matrix[c])
        counts[classes[c]] += p[c]


# --- altogether


def test_the_first_query_has_about_the_precision_wanted() -> None:
    pool = clustered()  # two known clusters of ten: chance is 0.2
    chosen = select(pool, 40, np.random.default_rng(0))
    assert (chosen < 200).mean() == pytest.approx(pool.target_precision, abs=0.1)


def test_more_precision_is_had_for_the_asking() -> None:
    pool = clustered(spread=1.5)
    shares = [
        (select(replace(pool, target_precision=wanted), 40, np.random.default_rng(0)) < 200).mean()
        for wanted in (0.3, 0.9)
    ]
    assert shares[0] < shares[1]


def test_it_asks_all_over_the_known_clusters_and_not_next_to_what_is_labelled() -> None:
    pool = replace(clustered(), target_precision=0.9)
    chosen = select(pool, 40, np.random.default_rng(0))
    likeness = (pool.features[pool.offered] @ pool.features[pool.known].T).max(axis=1)
    nearest = pool.offered[np.argsort(-likeness)][:40]

    def covered(by: np.ndarray) -> float:
        return float((pool.features[:200] @ pool.features[by].T).max(axis=1).mean())

    assert covered(chosen) > covered(nearest)


def test_of_two_clusters_alike_it_leaves_the_one_that_was_rejected() -> None:
    pool = clustered(n_known=1, n_unknown=3, spread=2.0)
    labels = pool.labels.copy()
    labels[100:130] = INVALID
    told = replace(pool, labels=labels, offered=np.flatnonzero(labels == UNLABELLED))
    share = [
        ((one >= 100) & (one < 200)).mean() for one in (select(x, 30, np.random.default_rng(0)) for x in (pool, told))
    ]
    assert share[1] <= share[0]


def test_a_class_that_has_no_label_yet_is_looked_for_at_random() -> None:
    pool = clustered(n_known=3)
    labels = np.where(pool.labels == 2, UNLABELLED, pool.labels)
    lacking = replace(pool, labels=labels, offered=np.flatnonzero(labels == UNLABELLED))
    chosen = select(lacking, 60, np.random.default_rng(0))
    assert ((chosen >= 200) & (chosen < 300)).any()
    assert len(np.unique(chosen // 100)) >= 7  # a third of the batch is at random


def test_of_the_first_labels_as_many_are_at_random_as_of_the_batch() -> None:
    chosen, at_random = np.arange(6), np.arange(10, 12)  # a quarter
    assert mixed_in(chosen, at_random, 0).tolist() == [0, 1, 2, 10, 3, 4, 5, 11]
    first = [int(mixed_in(chosen, at_random, labelled)[0]) for labelled in range(8)]
    assert [one >= 10 for one in first] == [False, False, False, True] * 2  # of a plan made anew after each label
    assert mixed_in(chosen, at_random[:0], 5).tolist() == chosen.tolist()


def test_a_class_with_one_label_catches_up() -> None:
    pool = clustered(n_known=3)
    labels = pool.labels.copy()
    labels[201:300] = UNLABELLED
    known = np.flatnonzero(labels >= 0)
    model = LinearLearner(pool.features).fit(known, labels[known], 3, np.random.default_rng(0))
    lacking = replace(pool, labels=labels, offered=np.flatnonzero(labels == UNLABELLED), model=model)
    chosen = select(lacking, 60, np.random.default_rng(0))
    assert ((chosen >= 200) & (chosen < 300)).sum() >= 15


def test_without_any_known_label_class_names_come_to_its_help() -> None:
    pool = clustered()
    bare = replace(pool, labels=np.full_like(pool.labels, UNLABELLED), offered=np.arange(len(pool.labels)), model=None)
    centres = np.stack([pool.features[:100].mean(axis=0), pool.features[100:200].mean(axis=0)])
    chosen = select(replace(bare, class_features=to_grid(centres)), 40, np.random.default_rng(0))
    assert (chosen < 200).all()
    unaided = select(bare, 40, np.random.default_rng(0))
    assert len(np.unique(unaided // 100)) >= 9  # spread over the clusters


def test_the_same_pool_and_generator_give_the_same_batch() -> None:
    pool = make_pool()
    batches = [select(pool, 20, np.random.default_rng(1)) for _ in range(2)]
    np.testing.assert_array_equal(*batches)


# --- parts left out


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_nothing_left_out_is_the_method_itself() -> None:
    pool = make_pool()
    assert neat_plus.without(())(pool, 20, rng()).tolist() == neat_plus.select(pool, 20, rng()).tolist()


@pytest.mark.parametrize("part", neat_plus.PARTS)
def test_without_any_of_its_parts_it_still_chooses_a_batch(part: str) -> None:
    pool = make_pool()
    chosen = strategy(f"neat_plus-{part}")(pool, 20, rng())
    assert len(set(chosen.tolist())) == 20
    assert np.isin(chosen, pool.offered).all()


def test_a_part_it_does_not_have_is_named() -> None:
    with pytest.raises(SettingsError, match="no part 'luck'"):
        strategy("neat_plus-luck")
    with pytest.raises(SettingsError, match="only neat_plus"):
        strategy("random-gate")
