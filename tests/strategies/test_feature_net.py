from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from neat_backend.strategies.feature_net import HIDDEN, at_random, mean_of, new_net, scaled, targets_of, train


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_scaled_features_have_mean_0_and_mean_square_1_and_keep_their_shape() -> None:
    features = (rng().normal(size=(50, 8)) * [1, 2, 3, 4, 5, 6, 7, 8] + 3).astype(np.float32)
    found = scaled(features)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    assert np.square(found).mean() == pytest.approx(1, abs=1e-5)
    ratio = (features[0] - features[1]) / (found[0] - found[1])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)


def test_equal_features_are_moved_to_0() -> None:
    np.testing.assert_array_equal(scaled(np.full((3, 2), 0.5, np.float32)), np.zeros((3, 2)))


def test_invalid_samples_are_class_c() -> None:
    assert targets_of(np.array([1, -1, 0, -1]), 5).tolist() == [1, 5, 0, 5]


def test_it_gives_the_hidden_layer_and_each_heads_logits() -> None:
    inputs = rng().normal(size=(7, 4)).astype(np.float32)
    net = new_net(4, (3, 2), rng())
    hidden, first, second = net.outputs(inputs)
    assert (hidden.shape, first.shape, second.shape) == ((7, HIDDEN), (7, 3), (7, 2))
    weights, bias = (part.detach().numpy() for part in net.body[0].parameters())
    np.testing.assert_allclose(hidden, np.maximum(inputs @ weights.T + bias, 0), atol=1e-5)
    weights, bias = (part.detach().numpy() for part in net.heads[1].parameters())
    np.testing.assert_allclose(second, hidden @ weights.T + bias, atol=1e-5)


def test_the_same_generator_gives_the_same_network_and_another_one_another() -> None:
    inputs = rng().normal(size=(3, 4)).astype(np.float32)
    (first, *_), (again, *_), (other, *_) = (new_net(4, (2,), rng(seed)).outputs(inputs) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_training_separates_two_classes_and_visits_each_row_once_an_epoch() -> None:
    inputs = scaled(np.concatenate([rng().normal(2, 1, (150, 4)), rng(1).normal(-2, 1, (150, 4))]).astype(np.float32))
    targets = torch.tensor([0] * 150 + [1] * 150)
    net, seen, epochs = new_net(4, (2,), rng()), [], []

    def loss(batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return F.cross_entropy(net(torch.from_numpy(inputs)[batch])[1], targets[batch])

    train(net, 300, loss, rng(), 20, before_epoch=epochs.append)
    assert epochs == list(range(20))
    assert [len(batch) for batch in seen[:3]] == [100, 100, 100]
    assert sorted(torch.cat(seen[:3]).tolist()) == list(range(300))
    assert (net.outputs(inputs)[1].argmax(axis=1) == targets.numpy()).mean() > 0.98


def test_no_rows_leave_the_network_as_it_was() -> None:
    net = new_net(4, (2,), rng())
    train(net, 0, lambda batch: pytest.fail("there is nothing to train on"), rng(), 5)


def test_the_mean_of_nothing_is_0() -> None:
    assert mean_of(torch.tensor([1.0, 4.0])).item() == 2.5
    assert mean_of(torch.zeros(0)).item() == 0


def test_a_random_choice_is_of_what_is_offered() -> None:
    assert sorted(at_random(np.array([3, 5, 8]), 3, rng())) == [3, 5, 8]
    assert len({int(at_random(np.arange(9), 1, rng(seed))[0]) for seed in range(30)}) > 3
