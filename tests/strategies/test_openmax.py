from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neat_backend.ranking.pool import UNLABELLED, Pool
from neat_backend.strategies import openmax
from neat_backend.strategies.openmax import ClassModel, class_models, distance, knownness, revise
from neat_backend.strategies.weibull import Tail


class TableModel:
    """A classifier whose logits are a table."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table.astype(np.float32)
        self.n_outputs = table.shape[1]

    def logits(self, indices: np.ndarray) -> np.ndarray:
        return self.table[indices]


def original(training: np.ndarray, labels: np.ndarray, query: np.ndarray) -> tuple[list[float], float]:
    """Revised logits and the unknown's for one query, by the paper's Algorithms 1 and 2, one scalar at a time.

    The Weibull fit is a search on ever finer grids of shapes; for each the best scale is (mean of x^shape)^(1/shape).
    """

    def apart(a: list[float], b: list[float]) -> float:
        dot = sum(p * q for p, q in zip(a, b, strict=True))
        lengths = math.sqrt(sum(p * p for p in a)) * math.sqrt(sum(q * q for q in b))
        return math.dist(a, b) / 200 + 1 - dot / lengths

    n_classes = training.shape[1]
    beyond = []
    for label in range(n_classes):
        right = [list(row) for row, own in zip(training, labels, strict=True) if own == label == np.argmax(row)]
        mean = [sum(row[j] for row in right) / len(right) for j in range(n_classes)]
        tail = sorted(apart(row, mean) for row in right)[-20:]
        shifted = [d + 1 - tail[0] for d in tail]
        best = (-math.inf, 1.0, 0.0)
        for width in (9.0, 0.1, 0.001):  # of the grid around the best so far, in logarithms of the shape
            for shape in best[1] * np.exp(np.linspace(-width, width, 201)):
                log_scale = math.log(sum((x / max(shifted)) ** shape for x in shifted) / len(shifted)) / shape
                log_scale += math.log(max(shifted))
                terms = [math.log(x) - log_scale for x in shifted]
                likelihood = sum(math.log(shape) - log_scale + (shape - 1) * t - math.exp(shape * t) for t in terms)
                best = max(best, (likelihood, float(shape), log_scale))
        x = apart(list(query), mean) + 1 - tail[0]
        beyond.append(1 - math.exp(-((x / math.exp(best[2])) ** best[1])) if x > 0 else 0.0)
    alpha = min(10, n_classes)
    revised, unknown = list(query), 0.0
    for rank, label in enumerate(sorted(range(n_classes), key=lambda c: -query[c]), start=1):
        if rank <= alpha:
            revised[label] = query[label] * (1 - beyond[label] * (alpha + 1 - rank) / alpha)
            unknown += query[label] - revised[label]
    return revised, unknown


def test_distance_is_a_two_hundredth_of_the_euclidean_and_the_cosine_distance() -> None:
    activations = np.array([[3.0, 4.0], [4.0, -3.0], [6.0, 8.0], [0.0, 0.0]])
    # 0 and 0; √50/200 and 1; 5/200 and 0; 5/200 and 1 as zeros have no direction
    expected = [0.0, math.sqrt(50) / 200 + 1, 0.025, 1.025]
    np.testing.assert_allclose(distance(activations, np.array([3.0, 4.0])), expected, atol=1e-12)


def test_the_first_rank_loses_all_of_its_share_and_the_second_half_of_it() -> None:
    step = Tail(location=-1.0, scale=1.0, shape=math.inf)  # 1 for any distance above 0
    models: list[ClassModel | None] = [ClassModel(np.array([1.0, 0.0]), step), ClassModel(np.array([0.0, 1.0]), step)]
    revised, unknown = revise(np.array([[2.0, 6.0]]), models)
    # class 1 is rank 1: 6 · (1 - 2/2) = 0; class 0 is rank 2: 2 · (1 - 1/2) = 1; taken 6 + 1
    np.testing.assert_allclose(revised, [[1.0, 0.0]])
    np.testing.assert_allclose(unknown, [7.0])
    np.testing.assert_allclose(knownness(revised, unknown), [math.log(math.e + 1) - 7])


def test_a_sample_within_every_tail_keeps_its_logits() -> None:
    step = Tail(location=10.0, scale=1.0, shape=math.inf)
    activations = np.array([[2.0, 6.0, -1.0]])
    revised, unknown = revise(activations, [ClassModel(np.ones(3), step)] * 3)
    np.testing.assert_array_equal(revised, activations)
    np.testing.assert_array_equal(unknown, [0.0])


def test_only_ten_ranks_are_revised() -> None:
    step = Tail(location=-1.0, scale=1.0, shape=math.inf)
    activations = np.arange(12.0, 0, -1)[None, :] @ np.eye(12)
    revised, _ = revise(activations, [ClassModel(np.ones(12), step)] * 12)
    np.testing.assert_allclose(revised[0, :3], [0.0, 11 * 0.1, 10 * 0.2])
    np.testing.assert_array_equal(revised[0, 10:], activations[0, 10:])


def test_means_come_from_the_samples_that_the_classifier_gets_right() -> None:
    activations = np.array([[4.0, 0], [6.0, 0], [5.0, 3], [0.0, 9], [1.0, 7], [0.0, 5], [1.0, 6], [2.0, 4]])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])  # the fourth is taken for class 1
    models = class_models(activations, labels, 2)
    np.testing.assert_allclose(models[0].mean, [5.0, 1.0])
    np.testing.assert_allclose(models[1].mean, [1.0, 5.5])


def test_a_class_with_fewer_than_three_right_ones_takes_all_of_its_samples() -> None:
    activations = np.array([[4.0, 0], [0.0, 2], [2.0, 4], [0.0, 5], [1.0, 6], [2.0, 4]])
    models = class_models(activations, np.array([0, 0, 0, 1, 1, 1]), 2)
    np.testing.assert_allclose(models[0].mean, [2.0, 2.0])


def test_a_class_with_one_sample_has_the_tail_of_all_and_one_without_any_no_model() -> None:
    rng = np.random.default_rng(0)
    activations = np.concatenate([rng.normal([5, 0, 0], 1, (30, 3)), [[0.0, 4, 0]]])
    labels = np.array([0] * 30 + [1])
    models = class_models(activations, labels, 3)
    np.testing.assert_array_equal(models[1].mean, [0.0, 4, 0])
    assert models[1].tail == models[0].tail  # its own distance is 0 and not among the twenty largest
    assert models[2] is None
    revised, _ = revise(np.array([[0.0, 0.0, 50.0]]), models)
    assert revised[0, 2] == 50.0


@pytest.mark.parametrize("seed", range(2))
def test_it_agrees_with_the_papers_algorithm_done_slowly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), 30)
    training = 6 * np.eye(3)[labels] + rng.normal(0, 1.5, (90, 3))
    queries = np.array([[7.0, 0.5, -0.5], [2.0, 2.2, 1.9], [-1.0, 0.2, 3.0], [9.0, 8.0, 0.0]])
    revised, unknown = revise(queries, class_models(training, labels, 3))
    for i, query in enumerate(queries):
        slow, slow_unknown = original(training, labels, query)
        np.testing.assert_allclose(revised[i], slow, atol=1e-4)
        np.testing.assert_allclose(unknown[i], slow_unknown, atol=1e-4)


@given(arrays(np.float64, (5, 4), elements=st.floats(-20, 20)), st.integers(0, 100))
def test_what_the_classes_lose_the_unknown_gets(activations: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), 8)
    models = class_models(5 * np.eye(4)[labels] + rng.normal(size=(32, 4)), labels, 4)
    revised, unknown = revise(activations, models)
    np.testing.assert_allclose(revised.sum(axis=1) + unknown, activations.sum(axis=1), atol=1e-9)
    assert (np.abs(revised) <= np.abs(activations) + 1e-9).all()


def test_knownness_orders_as_the_probability_of_the_unknown_falls() -> None:
    revised, unknown = np.array([[1.0, 2.0], [0.0, 3.0], [-1.0, 0.0]]), np.array([0.5, 4.0, -2.0])
    logits = np.column_stack([revised, unknown])
    p_unknown = np.exp(logits[:, 2]) / np.exp(logits).sum(axis=1)
    np.testing.assert_allclose(knownness(revised, unknown), np.log((1 - p_unknown) / p_unknown))


def test_the_most_surely_known_are_asked_about_first() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 25)
    training = 8 * np.eye(2)[labels] + rng.normal(0, 0.5, (50, 2))
    offered = np.array([[1.0, 1.0], [8.0, 0.1], [20.0, 19.0], [0.2, 7.9]])  # between, class 0, far out, class 1
    table = np.concatenate([training, offered])
    features = np.eye(54, dtype=np.float32)
    all_labels = np.concatenate([labels, np.full(4, UNLABELLED)])
    pool = Pool(features, all_labels, 2, np.arange(50, 54), TableModel(table))
    chosen = openmax.select(pool, 4, rng)
    assert set(chosen[:2]) == {51, 53}
    np.testing.assert_array_equal(openmax.select(pool, 2, rng), chosen[:2])


def test_without_a_classifier_the_choice_is_at_random() -> None:
    pool = Pool(np.eye(30, dtype=np.float32), np.full(30, UNLABELLED), 2, np.arange(30))
    first, second = (openmax.select(pool, 10, np.random.default_rng(seed)) for seed in (0, 1))
    assert set(first) != set(second)
    assert len(openmax.select(replace(pool, offered=np.arange(0)), 10, np.random.default_rng(0))) == 0
