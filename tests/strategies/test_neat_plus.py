"""neat_plus: its formulas on numbers that can be checked by hand, and what it is for on a clustered pool."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.errors import SettingsError
from neat_backend.grid import to_grid
from neat_backend.ranking.pool import UNLABELLED, Past, Pool
from neat_backend.ranking.scores import INVALID
from neat_backend.strategies import neat_plus, plus_detector, strategy
from neat_backend.strategies.neat_plus import LEAST_UNCERTAIN, MOST_PURITY, gate, purity_weight, select, uncertainty
from neat_backend.strategies.plus_choice import cover
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


# --- the density ratio


def test_the_mean_of_the_nearest_leaves_the_sample_itself_out() -> None:
    pool = pool_on_a_circle([0, 60, 90], [0, 0, UNLABELLED])
    means = plus_detector.mean_of_nearest(pool, np.array([0, 1]), k=2)
    # Sample 0 has only sample 1 (60° away), and the other way round; sample 2 is 90° and 30° away from the two.
    np.testing.assert_allclose(means, [0.5, 0.5, (0 + np.sqrt(3) / 2) / 2], atol=1e-6)


def test_with_k_1_it_is_the_nearest_alone() -> None:
    pool = pool_on_a_circle([0, 60, 90], [0, 0, UNLABELLED])
    assert plus_detector.mean_of_nearest(pool, np.array([0, 1]), k=1)[2] == pytest.approx(np.sqrt(3) / 2, abs=1e-6)


def test_a_sample_with_nothing_to_compare_with_gets_the_least_cosine() -> None:
    pool = pool_on_a_circle([0, 60], [0, UNLABELLED])
    assert plus_detector.mean_of_nearest(pool, np.array([0]))[0] == -1
    assert (plus_detector.mean_of_nearest(pool, np.array([], np.int64)) == -1).all()


def test_the_ratio_is_known_less_background_and_with_invalid_ones_less_the_mean_of_both() -> None:
    pool = pool_on_a_circle([0, 60, 90, 180], [0, UNLABELLED, UNLABELLED, UNLABELLED])
    behind = np.array([2])
    # Sample 1: 60° from the known one, 30° from the background, 120° from the last.
    near, back = 0.5, np.sqrt(3) / 2
    assert plus_detector.density_ratio(pool, behind, pool.invalid)[1] == pytest.approx(near - back, abs=1e-6)
    told = replace(pool, labels=np.array([0, UNLABELLED, UNLABELLED, INVALID]))
    assert plus_detector.density_ratio(told, behind, told.invalid)[1] == pytest.approx(
        near - (back - 0.5) / 2, abs=1e-6
    )


def test_what_is_kept_of_the_background_is_of_the_same_features_and_samples_only() -> None:
    pool = pool_on_a_circle([0, 30, 60, 200], [0, UNLABELLED, UNLABELLED, INVALID])
    behind, fewer = np.array([1, 2]), np.array([2])
    first = plus_detector.of_background(pool, behind).copy()
    again = plus_detector.of_background(replace(pool, labels=np.array([0, 0, UNLABELLED, INVALID])), behind)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(plus_detector.of_background(pool, fewer), plus_detector.mean_of_nearest(pool, fewer))
    turned = pool_on_a_circle([0, 90, 60, 200], [0, UNLABELLED, UNLABELLED, INVALID])
    assert plus_detector.of_background(turned, behind)[0] == pytest.approx((0 + 0.5) / 2, abs=1e-6)


# --- the classifier with one more output


def test_the_softmax_of_equal_features_learns_the_weighted_shares() -> None:
    features = np.zeros((3, 1), np.float32)
    weights = plus_detector.fit_softmax(features, np.array([0, 0, 1]), np.array([1.0, 2.0, 1.0]), 2)
    assert weights[1, 0] - weights[1, 1] == pytest.approx(np.log(3), abs=1e-2)  # 3 : 1
    assert weights[0] == pytest.approx([0, 0])


def test_a_stronger_pull_to_one_side_gets_a_positive_weight() -> None:
    features = np.array([[1.0], [-1.0]], np.float32)
    weights = plus_detector.fit_softmax(features, np.array([0, 1]), np.ones(2), 2)
    w = weights[0, 0] - weights[0, 1]
    # Stationary: the slope 1/(1+e^w) of each of the two samples balances the penalty on half of w twice.
    assert 2 / (1 + np.exp(w)) == pytest.approx(plus_detector.PENALTY * w / 2, abs=1e-2)


def test_log_odds_are_high_for_known_clusters_and_low_for_others() -> None:
    pool = clustered()
    odds = plus_detector.log_odds(pool, plus_detector.background(pool), pool.invalid)
    assert odds[:200].mean() > odds[200:].mean() + 3


def test_a_labelled_sample_in_the_wrong_place_is_not_believed_because_it_was_trained_on() -> None:
    pool = clustered()
    labels = pool.labels.copy()
    labels[900] = 0  # of an unknown cluster
    labels[901:910] = INVALID
    wrong = replace(pool, labels=labels)
    odds = plus_detector.log_odds(wrong, plus_detector.background(wrong), wrong.invalid)
    assert odds[900] < odds[:8].min()


# --- p(known)


def test_the_share_of_known_samples_is_found_where_they_lie_apart() -> None:
    of_known = np.linspace(5, 6, 50)
    of_pool = np.concatenate([np.linspace(5, 6, 300), np.linspace(-1, 0, 700)])
    assert plus_detector.known_share(of_known, of_pool) == pytest.approx(0.3, abs=0.02)


def test_where_known_and_pool_score_alike_the_share_is_the_most_it_may_be() -> None:
    assert plus_detector.known_share(np.arange(100.0), np.arange(100.0)) == 0.9


def test_the_logistic_curve_has_the_shares_of_two_points() -> None:
    values = np.array([-1.0, -1.0, 1.0, 1.0])
    slope, shift = plus_detector.fit_logistic(values, np.array([1.0, 0, 1, 0]), np.array([1.0, 3, 3, 1]) * 1000)
    # 1 : 3 at -1 and 3 : 1 at +1, so β - α = β + α = ln 3.
    assert (slope, shift) == pytest.approx((np.log(3), 0), abs=1e-3)


def test_probabilities_follow_the_answers() -> None:
    score = np.concatenate([np.full(10, 2.0), np.full(10, -2.0), np.linspace(-3, 3, 100)])
    known, invalid, rest = np.arange(10), np.arange(10, 20), np.arange(20, 120)
    p = plus_detector.probability_known(score, known, invalid, rest)
    assert p[0] > 0.6 > 0.1 > p[10]
    assert (np.diff(p[20:]) >= 0).all()


def test_before_anything_is_invalid_its_mean_over_the_pool_is_the_share_found() -> None:
    score = np.concatenate([np.linspace(5, 6, 20), np.linspace(5, 6, 300), np.linspace(-1, 0, 700)])
    p = plus_detector.probability_known(score, np.arange(20), np.arange(0), np.arange(20, 1020))
    assert p[20:].mean() == pytest.approx(0.3, abs=0.02)
    assert p[20:320].min() > 0.9 > 0.1 > p[320:].max()


# --- gate and uncertainty


def test_the_gate_is_the_ten_percent_quantile_of_the_known() -> None:
    known = np.arange(11.0)  # 10 % quantile: 1
    np.testing.assert_array_equal(gate(np.array([0.5, 1.0, 3.0, 0.9]), known, 1), [1, 2])


def test_a_gate_too_narrow_lets_in_the_best_two_batches() -> None:
    np.testing.assert_array_equal(gate(np.array([0.5, 0.1, 0.7, 0.5, 0.2]), np.full(3, 9.0), 1), [0, 2])


def test_uncertainty_is_one_less_the_margin() -> None:
    values = uncertainty(np.array([[0.5, 0.3, 0.2], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]))
    np.testing.assert_allclose(values, np.array([0.8, 0, 1]) + LEAST_UNCERTAIN)


def test_one_class_leaves_nothing_to_be_uncertain_of() -> None:
    np.testing.assert_array_equal(uncertainty(np.ones((2, 1))), [LEAST_UNCERTAIN] * 2)


def query(known: int, invalid: int) -> Past:
    answers = np.array([0] * known + [INVALID] * invalid, np.int64)
    return Past(np.arange(len(answers)), answers)


def test_purity_weighs_more_after_a_query_below_the_precision_wanted_and_less_after_one_above() -> None:
    assert purity_weight(()) == 1
    assert purity_weight((query(6, 4),)) == 2
    assert purity_weight((query(75, 25),)) == 1
    assert purity_weight((query(9, 1), query(9, 1))) == 0.25
    assert purity_weight((query(6, 4), query(9, 1), query(0, 0))) == 1
    assert purity_weight((query(0, 9),) * 100) == MOST_PURITY


# --- the choice


def similarities(points: list[float]) -> np.ndarray:
    """Points on a line: 1 - distance."""
    at = np.array(points)
    return (1 - np.abs(at[:, None] - at[None, :])).astype(np.float32)


def test_the_first_choice_covers_most_and_the_second_what_it_left() -> None:
    # 0.1 covers 0, 0.1, 0.2 with .9 + 1 + .9 and 0.9 with .2 = 3.0, more than any other. What is left uncovered at
    # 0.9 is .8, at 0 and 0.2 only .1.
    chosen = cover(similarities([0, 0.1, 0.2, 0.9]), np.ones(4), np.ones(4), np.zeros(4, np.float32), 2)
    np.testing.assert_array_equal(chosen, [1, 3])


def test_weights_say_whom_it_matters_to_cover_and_worth_who_may_do_it() -> None:
    line = similarities([0, 0.1, 0.2, 0.9])
    nothing = np.zeros(4, np.float32)
    assert cover(line, np.array([0, 0, 0, 1.0]), np.ones(4), nothing, 1)[0] == 3
    assert cover(line, np.ones(4), np.array([1, 0.1, 0.1, 0.1]), nothing, 1)[0] == 0


def test_what_is_covered_already_is_not_covered_again() -> None:
    line = similarities([0, 0.1, 0.2, 0.9])
    assert cover(line, np.ones(4), np.ones(4), line[1], 1)[0] == 3


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_the_short_cut_chooses_what_the_plain_greedy_chooses(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(12, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    matrix = (rows @ rows.T).astype(np.float32)
    weight, worth = rng.random(12), rng.random(12)
    start = rng.random(12).astype(np.float32) - 0.5
    chosen = cover(matrix, weight, worth, start, size)
    assert len(set(chosen.tolist())) == size
    covered = start.copy()
    for c in chosen:  # each a best one at its turn, up to rounding
        gains = worth * (weight * np.maximum(matrix - covered, 0)).sum(axis=1)
        left = [other for other in range(12) if other not in chosen[: chosen.tolist().index(c)]]
        assert gains[c] >= gains[left].max() - 1e-5
        covered = np.maximum(covered, matrix[c])


# --- altogether


def test_the_first_query_is_no_longer_wasted() -> None:
    pool = clustered()  # two known clusters of ten: chance is 0.2
    chosen = select(pool, 40, np.random.default_rng(0))
    assert (chosen < 200).mean() > 0.9


def test_it_asks_all_over_the_known_clusters_and_not_next_to_what_is_labelled() -> None:
    pool = clustered()
    chosen = select(pool, 40, np.random.default_rng(0))
    nearest = np.sort(pool.offered)[np.argsort(-plus_detector.mean_of_nearest(pool, pool.known)[pool.offered])][:40]

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


def test_a_class_that_has_no_label_yet_is_looked_for_outside_the_gate() -> None:
    pool = clustered(n_known=3)
    labels = np.where(pool.labels == 2, UNLABELLED, pool.labels)
    lacking = replace(pool, labels=labels, offered=np.flatnonzero(labels == UNLABELLED))
    chosen = select(lacking, 60, np.random.default_rng(0))
    assert ((chosen >= 200) & (chosen < 300)).any()
    assert (chosen < 200).sum() >= 30  # two thirds of the batch go to the classes that are there


def test_a_class_with_one_label_gets_its_share_of_the_batch() -> None:
    pool = clustered(n_known=3)
    labels = pool.labels.copy()
    labels[201:300] = UNLABELLED
    lacking = replace(pool, labels=labels, offered=np.flatnonzero(labels == UNLABELLED))
    chosen = select(lacking, 60, np.random.default_rng(0))
    assert ((chosen >= 200) & (chosen < 300)).sum() >= 20


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


def test_without_invalid_samples_they_count_as_nothing() -> None:
    pool = clustered()
    rejected = pool.labels.copy()
    rejected[700:760] = INVALID
    told = replace(pool, labels=rejected)
    behind = plus_detector.background(pool)
    with_them = plus_detector.detection_score(told, behind)
    without_them = plus_detector.detection_score(told, behind, {"odds", "ratio", "background"})
    assert with_them[760:].mean() < without_them[760:].mean()


def test_without_cover_and_p_it_is_margin_sampling_of_the_gate() -> None:
    pool = make_pool()
    chosen = strategy("neat_plus-gate-p-cover-rare")(pool, 10, rng())
    margins = neat_plus.uncertainty(pool.probabilities(pool.offered))
    assert neat_plus.uncertainty(pool.probabilities(chosen)).min() >= np.sort(margins)[-10] - 1e-12


def test_a_part_it_does_not_have_is_named() -> None:
    with pytest.raises(SettingsError, match="no part 'luck'"):
        strategy("neat_plus-luck")
    with pytest.raises(SettingsError, match="only neat_plus"):
        strategy("random-gate")
