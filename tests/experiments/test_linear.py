from __future__ import annotations

import numpy as np
import pytest

from neat_backend.experiments.linear_classifier import LinearLearner, fit_weights
from neat_backend.experiments.models import dropout_logits
from neat_backend.models.grid import to_grid
from neat_backend.ranking.pool import Generated

RNG = np.random.default_rng(0)


@pytest.fixture
def blobs():
    """Three classes of 40 unit vectors each in 16 dimensions."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16))
    labels = np.repeat(np.arange(3), 40)
    return to_grid(2 + centres[labels] + 0.5 * rng.normal(size=(120, 16))), labels.astype(np.int64)


def test_it_learns_and_nothing_about_it_is_random(blobs):
    features, labels = blobs
    learner = LinearLearner(features, 120)
    train = np.arange(0, 120, 2)
    model, again = (learner.fit(train, labels[train], 3, np.random.default_rng(seed)) for seed in (0, 1))
    every = np.arange(120)
    assert (model.logits(every).argmax(axis=1) == labels).mean() > 0.95
    assert np.array_equal(model.logits(every), again.logits(every))
    assert model.logits(every).dtype == np.float32
    assert np.array_equal(model.embeddings(every), features)


def test_the_slope_is_zero_where_it_ends(blobs):
    """Of mean cross-entropy + penalty/2 ‖w‖²: X^T (p - y) / n + penalty w = 0, and the biases' mean p - y = 0."""
    features, labels = blobs
    weights, biases = fit_weights(features, labels, 3, penalty=0.01)
    logits = features @ weights + biases
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    off = (p - np.eye(3)[labels]) / len(labels)
    assert np.abs(features.T @ off + 0.01 * weights).max() < 2e-4
    assert np.abs(off.sum(axis=0)).max() < 2e-4


def test_a_class_without_a_sample_is_never_predicted(blobs):
    features, labels = blobs
    some = np.flatnonzero(labels < 2)
    model = LinearLearner(features, 120).fit(some, labels[some], 3, RNG)
    assert model.n_outputs == 3
    assert set(model.logits(np.arange(120)).argmax(axis=1)) <= {0, 1}


def test_one_class_and_one_sample_will_do(blobs):
    model = LinearLearner(blobs[0], 120).fit(np.array([4]), np.array([0]), 1, RNG)
    assert np.isfinite(model.logits(np.arange(3))).all()
    with pytest.raises(ValueError, match="no labelled samples"):
        LinearLearner(blobs[0], 120).fit(np.array([], int), np.array([], int), 2, RNG)


def test_a_low_temperature_makes_smaller_logits(blobs):
    features, labels = blobs
    sharp, plain = (fit_weights(features, labels, 3, temperature=t, penalty=0.01)[0] for t in (0.5, 1.0))
    assert np.linalg.norm(sharp) < np.linalg.norm(plain)


def test_generated_samples_are_trained_on(blobs):
    features, labels = blobs
    learner = LinearLearner(features, 120)
    two, third = np.flatnonzero(labels < 2), np.flatnonzero(labels == 2)
    made = Generated(features[third], labels[third])
    model = learner.fit(two, labels[two], 3, RNG, generated=made)
    assert (model.logits(third).argmax(axis=1) == 2).mean() > 0.9


def test_the_classifier_sees_features(blobs):
    assert np.array_equal(LinearLearner(blobs[0], 120).inputs(np.array([3, 1])), blobs[0][[3, 1]])


def test_dropout_passes_differ_and_their_mean_is_the_logits():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(5, 8)).astype(np.float32)
    weights, biases = rng.normal(size=(8, 2)).astype(np.float32), np.array([1, -1], np.float32)
    passes = dropout_logits(embeddings, weights, biases, 4000, rng)
    assert passes.shape == (4000, 5, 2)
    assert not np.array_equal(passes[0], passes[1])
    assert np.abs(passes.mean(axis=0) - (embeddings @ weights + biases)).max() < 0.3
    one = np.ones((1, 1), np.float32)
    assert set(dropout_logits(one, one, np.zeros(1, np.float32), 50, rng).ravel()) == {0.0, 2.0}
