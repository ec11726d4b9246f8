from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from neat_backend.ranking.pool import UNLABELLED, Pool
from neat_backend.ranking.scores import INVALID
from neat_backend.strategies import lfosa
from neat_backend.strategies.lfosa import known_probability, larger_component, train_detector
from neat_backend.testing.pools import make_pool


class RecordingLearner:
    """Notes how it is called and gives a model whose logits are a table."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.calls: list[dict] = []

    def fit(self, indices, targets, n_outputs, rng, *, temperature=1.0, generated=None):
        self.calls.append({"indices": indices, "targets": targets, "n_outputs": n_outputs, "temperature": temperature})
        self.n_outputs = n_outputs
        return self

    def logits(self, indices: np.ndarray) -> np.ndarray:
        return self.table[indices].astype(np.float32)


def k_means_splits(x: np.ndarray) -> list[float]:
    """Largest values of the lower part, for each split into two in which all lie nearer to their own part's mean.

    These are where 2-means can end, from whatever start.
    """
    ordered = np.sort(x)
    middles = [(ordered[:i].mean() + ordered[i:].mean()) / 2 for i in range(1, len(x))]
    return [ordered[i - 1] for i, m in enumerate(middles, start=1) if ordered[i - 1] < m < ordered[i]]


def mixture_by_hand(x: np.ndarray, split: float) -> np.ndarray:
    """Posterior of the larger of two Gaussians: expectation maximisation from the parts up to `split` and above it.

    Ten rounds at most, stopped when the mean log-likelihood rises by less than 1e-2; 5e-4 added to each variance.
    """
    share = np.stack([x <= split, x > split], axis=1).astype(float)

    def maximise(share: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        total = share.sum(axis=0)
        mean = (share * x[:, None]).sum(axis=0) / total
        variance = (share * (x[:, None] - mean) ** 2).sum(axis=0) / total + 5e-4
        return total / len(x), mean, variance

    def joint(parameters: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
        weight, mean, variance = parameters
        return weight * np.exp(-((x[:, None] - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)

    parameters, before = maximise(share), -np.inf
    for _ in range(10):
        density = joint(parameters)
        likelihood = np.log(density.sum(axis=1)).mean()
        parameters = maximise(density / density.sum(axis=1, keepdims=True))
        if abs(likelihood - before) < 1e-2:
            break
        before = likelihood
    density = joint(parameters)
    return (density / density.sum(axis=1, keepdims=True))[:, parameters[1].argmax()]


@pytest.mark.parametrize("seed", range(8))
def test_the_posterior_is_that_of_a_mixture_fitted_by_hand(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(2, 0.7, 40), rng.normal(7, 1.2, 60)])
    found = larger_component(x, seed)
    assert any(np.allclose(found, mixture_by_hand(x, split), atol=1e-9) for split in k_means_splits(x))


def test_two_far_groups_are_told_apart_with_certainty() -> None:
    np.testing.assert_allclose(larger_component(np.array([1.0, 9.0, 1.1, 9.1]), 0), [0, 1, 0, 1], atol=1e-9)


def test_fewer_than_two_activations_have_no_mixture() -> None:
    np.testing.assert_array_equal(larger_component(np.array([5.0]), 0), [0.0])
    assert larger_component(np.zeros(0), 0).shape == (0,)


def test_activations_that_are_all_the_same_have_a_posterior() -> None:
    values = larger_component(np.full(6, 3.0), 0)
    assert np.isfinite(values).all()
    assert len(np.unique(values)) == 1


def test_each_predicted_class_has_its_own_mixture_and_the_unknown_has_none() -> None:
    logits = np.array(
        [
            *[[9.0, 0, 0], [1.0, 0, 0], [9.1, 0, 0], [1.1, 0, 0]],
            *[[0, 90.0, 0], [0, 20.0, 0], [0, 91.0, 0], [0, 21.0, 0]],  # 20 is much in class 0, little here
            *[[0, 0, 99.0], [0, 0, 1.0]],
        ]
    )
    values = known_probability(logits, 2, np.random.default_rng(0))
    np.testing.assert_allclose(values, [1, 0, 1, 0, 1, 0, 1, 0, 0, 0], atol=1e-6)


def test_the_detector_learns_known_and_invalid_with_one_output_more() -> None:
    labels = np.array([1, INVALID, 0, UNLABELLED, INVALID, UNLABELLED])
    learner = RecordingLearner(np.zeros((6, 3)))
    pool = Pool(np.eye(6, dtype=np.float32), labels, 2, np.array([3, 5]), learner=learner)
    train_detector(pool, np.random.default_rng(0))
    (call,) = learner.calls
    np.testing.assert_array_equal(call["indices"], [0, 1, 2, 4])
    np.testing.assert_array_equal(call["targets"], [1, 2, 0, 2])
    assert (call["n_outputs"], call["temperature"]) == (3, 0.5)


def test_ties_go_to_the_larger_activation_and_what_looks_unknown_comes_last_the_least_sure_first() -> None:
    table = np.zeros((10, 3))
    table[:4, 0] = [1.0, 50.0, 51.0, 1.1]  # posteriors 0, 1, 1, 0
    table[4, 1] = 7.0  # alone in its class
    table[5:8, 2] = [30.0, 10.0, 20.0]  # predicted unknown
    labels = np.array([UNLABELLED] * 8 + [0, INVALID])
    pool = Pool(np.eye(10, dtype=np.float32), labels, 2, np.arange(8), learner=RecordingLearner(table))
    chosen = list(lfosa.select(pool, 8, np.random.default_rng(0)))
    assert chosen[:2] == [2, 1]
    assert set(chosen[2:5]) == {0, 3, 4}
    assert chosen[5:] == [6, 7, 5]


def test_the_raw_logit_counts_whatever_the_temperature_of_training() -> None:
    table = np.zeros((6, 2))
    table[:4, 0] = [2.0, 8.0, 2.1, 8.1]
    pool = Pool(
        np.eye(6, dtype=np.float32),
        np.array([UNLABELLED] * 4 + [0, INVALID]),
        1,
        np.arange(4),
        learner=RecordingLearner(table),
    )
    chosen = lfosa.select(pool, 4, np.random.default_rng(0))
    expected = mixture_by_hand(np.array([2.0, 8.0, 2.1, 8.1]), 2.1)
    np.testing.assert_allclose(np.sort(expected)[::-1], expected[[3, 1, 2, 0]], atol=1e-9)
    np.testing.assert_array_equal(chosen[:2], [3, 1])


def test_a_trained_detector_finds_the_known_ones() -> None:
    pool = make_pool(n=600, n_offered=400)
    truth = make_pool(n=600, n_offered=0)  # the same samples, all labelled
    np.testing.assert_array_equal(pool.features, truth.features)
    chosen = lfosa.select(pool, 100, np.random.default_rng(0))
    assert (truth.labels[pool.offered] >= 0).mean() < 0.6
    assert (truth.labels[chosen] >= 0).mean() > 0.9


def test_without_a_learner_the_rounds_classifier_stands_in_and_without_both_chance() -> None:
    pool = replace(make_pool(), learner=None)
    assert train_detector(pool, np.random.default_rng(0)) is pool.model
    first, second = (lfosa.select(replace(pool, model=None), 10, np.random.default_rng(seed)) for seed in (0, 1))
    assert set(first) != set(second)
