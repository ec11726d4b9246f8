from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from neat_backend.ranking.pool import UNLABELLED, Past, Pool
from neat_backend.ranking.scores import INVALID
from neat_backend.strategies import bual
from neat_backend.strategies.bual import (
    bidirectional,
    complementary,
    complementary_loss,
    negative_confidence,
    unit_range,
    unknown_probability,
)
from neat_backend.testing.pools import fixed_model, make_pool


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


class TableLearner:
    """Returns a model of fixed probabilities for any training data, which it records."""

    def __init__(self, probabilities) -> None:
        self.model, self.calls = fixed_model(probabilities), []

    def fit(self, indices, targets, n_outputs, rng, *, temperature=1.0, generated=None):
        self.calls.append((indices.tolist(), targets.tolist(), n_outputs, temperature))
        return self.model


def test_a_complementary_class_is_any_but_the_label() -> None:
    found = complementary(np.repeat([0, 1, 2], 2000), 3, rng()).reshape(3, 2000)
    counts = np.stack([np.bincount(row, minlength=3) for row in found])
    np.testing.assert_array_equal(np.diag(counts), 0)
    assert (np.abs(counts[~np.eye(3, dtype=bool)] - 1000) < 120).all()


def test_without_a_label_any_class_is_complementary() -> None:
    counts = np.bincount(complementary(np.full(3000, -1), 3, rng()), minlength=3)
    assert (np.abs(counts - 1000) < 120).all()


def test_the_complementary_loss_is_that_of_not_being_of_the_class() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.25, 0.25, 0.5]]))
    expected = (-math.log(0.7) - math.log(0.5)) / 2
    assert complementary_loss(logits, torch.tensor([1, 2])).item() == pytest.approx(expected)
    assert complementary_loss(torch.tensor([[90.0, 0.0]]), torch.tensor([0])).item() == pytest.approx(5 * math.log(10))


def test_values_are_brought_to_the_unit_range() -> None:
    np.testing.assert_allclose(unit_range(np.array([2.0, 6.0, 3.0])), [0, 1, 0.25])
    np.testing.assert_array_equal(unit_range(np.full(3, 0.7)), [0, 0, 0])
    assert unit_range(np.zeros(0)).shape == (0,)


def test_the_score_weighs_both_confidences_by_how_unknown_a_sample_looks() -> None:
    positive, negative = np.array([0.5, 1.0, 0.75]), np.array([2.0, 4.0, 4.0])  # scaled: 0, 1, 0.5 and 0, 1, 1
    unknown = np.array([0.1, 0.3, 0.2])  # scaled: 0, 1, 0.5
    # 0·0 + 0.8·1·0, 1·1 + 0.8·0·1, 0.5·1 + 0.8·0.5·0.5
    np.testing.assert_allclose(bidirectional(positive, negative, unknown, 0.8), [0, 1, 0.7])
    np.testing.assert_allclose(bidirectional(positive, negative, None, 0.8), [0, 1.8, 1.4])
    np.testing.assert_allclose(bidirectional(positive, negative, None, 0), [0, 1, 1])


def test_the_auxiliary_classifier_has_one_output_more_and_its_last_is_the_unknown() -> None:
    labels = np.array([1, INVALID, 0, UNLABELLED, UNLABELLED])
    learner = TableLearner([[1, 0, 0]] * 3 + [[0.2, 0.2, 0.6], [0.5, 0.3, 0.2]])
    pool = Pool(np.eye(5, dtype=np.float32), labels, 2, np.array([3, 4]), learner=learner)
    unknown, rejected = unknown_probability(pool, rng())
    assert learner.calls == [([0, 1, 2], [1, 2, 0], 3, 1.0)]
    np.testing.assert_allclose(unknown, [0.6, 0.2])
    assert rejected.tolist() == [True, False]


def test_without_a_learner_or_anything_invalid_nothing_is_rejected() -> None:
    for pool in (make_pool(learner=False), make_pool(invalid=False)):
        unknown, rejected = unknown_probability(pool, rng())
        assert not unknown.any()
        assert not rejected.any()


def test_the_smallest_scores_are_chosen_and_the_rejected_come_last(monkeypatch) -> None:
    positive = [[0.5, 0.5], [1.0, 0], [0.75, 0.25], [0.9, 0.1], [0.6, 0.4]]
    auxiliary = [[0.9, 0, 0.1], [0.7, 0, 0.3], [0.8, 0, 0.2], [0.1, 0, 0.9], [0.2, 0, 0.8]]
    negative = {0: 2.0, 1: 4.0, 2: 4.0}
    labels = np.array([UNLABELLED] * 5 + [0, INVALID])
    pool = Pool(
        np.eye(7, dtype=np.float32),
        labels,
        2,
        np.arange(5),
        fixed_model([*positive, [1, 0], [1, 0]]),
        TableLearner([*auxiliary, [1, 0, 0], [0, 0, 1]]),
        past=(Past(np.array([5, 6]), np.array([0, INVALID])),),  # precision 1/2
    )
    monkeypatch.setattr(bual, "negative_confidence", lambda pool, rows, rng: np.array([negative[i] for i in rows]))
    # Scores as above with 0.5 for 0.8: 0, 1, 0.5·1 + 0.5·0.5·0.5 = 0.625. Then the rejected 4 and 3 by rising d.
    assert bual.select(pool, 5, rng()).tolist() == [0, 2, 1, 4, 3]
    assert bual.select(pool, 2, rng()).tolist() == [0, 2]


def test_what_is_labelled_keeps_its_class_and_random_labels_make_unsure() -> None:
    pool = make_pool(n=900, n_offered=700, seed=1)
    rows = np.concatenate([pool.known, pool.offered])
    found = negative_confidence(pool, rows, rng()) / 21  # snapshots of 100 epochs
    assert found.shape == rows.shape
    assert found.min() >= 1 / pool.n_classes
    assert found.max() <= 1
    assert found[: len(pool.known)].mean() > found[len(pool.known) :].mean() + 0.03


def test_one_class_has_no_other_to_learn_from() -> None:
    pool = make_pool(n_classes=1)
    np.testing.assert_array_equal(negative_confidence(pool, pool.offered, rng()), np.ones(len(pool.offered)))


def test_without_a_classifier_or_known_samples_it_is_chance() -> None:
    pool = make_pool()
    for bare in (replace(pool, model=None), replace(pool, labels=np.where(pool.labels >= 0, INVALID, pool.labels))):
        first, second = (bual.select(bare, 10, rng(seed)) for seed in (0, 1))
        assert set(first) != set(second)
