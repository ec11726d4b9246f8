from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from neat_backend.strategies import eoal
from neat_backend.strategies.eoal import (
    binary_loss,
    closed_set_entropy,
    cluster_exactly,
    cluster_loss,
    cluster_means,
    distance_entropy,
    partitions,
    spread,
)
from neat_backend.testing.pools import make_pool

OF_A_QUARTER = 0.25 * 2 + 0.75 * math.log2(4 / 3)  # bits of (1/4, 3/4): 0.811


def at_angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1)


def grouped(labels: np.ndarray) -> list[list[int]]:
    return sorted(np.flatnonzero(labels == label).tolist() for label in np.unique(labels))


def test_closed_set_entropy_is_the_mean_of_the_binary_entropies_in_bits() -> None:
    logits = np.array([[0.0, 0.0], [math.log(3), -math.log(3)], [0.0, math.log(3)], [800.0, -800.0]])
    np.testing.assert_allclose(closed_set_entropy(logits), [1, OF_A_QUARTER, (1 + OF_A_QUARTER) / 2, 0], atol=1e-12)


def test_one_logit_means_the_same_as_two_and_their_softmax() -> None:
    """The original: out [m, 2, C], softmax over the two, the entropy's mean over classes, divided by log 2."""
    out = np.random.default_rng(0).normal(0, 3, (20, 2, 5))
    p = np.exp(out) / np.exp(out).sum(axis=1, keepdims=True)
    original = (-p * np.log(p + 1e-8)).sum(axis=1).mean(axis=1) / math.log(2)
    np.testing.assert_allclose(closed_set_entropy(out[:, 1] - out[:, 0]), original, atol=1e-6)


def test_distance_entropy_is_largest_between_the_centres() -> None:
    centres = np.array([[0.0, 0.0], [0.0, math.log(3)]])
    points = np.array([[0.0, 0.0], [5.0, math.log(3) / 2]])  # at the first: 0 and ln 3 away, so 3/4 and 1/4
    np.testing.assert_allclose(distance_entropy(points, centres), [OF_A_QUARTER, 1.0])
    np.testing.assert_array_equal(distance_entropy(points, centres[:1]), [0, 0])


def test_distance_entropy_is_that_of_the_softmax_of_minus_distances() -> None:
    rng = np.random.default_rng(0)
    points, centres = rng.normal(size=(9, 4)), rng.normal(size=(3, 4))
    expected = []
    for point in points:
        weights = [math.exp(-math.dist(point, centre)) for centre in centres]
        shares = [weight / sum(weights) for weight in weights]
        expected.append(-sum(share * math.log(share) for share in shares) / math.log(3))
    np.testing.assert_allclose(distance_entropy(points, centres), expected)


def test_finch_joins_first_neighbours_and_then_the_means() -> None:
    points = at_angles(0, 1, 10, 11, 90, 91, 102, 103)
    first, second = partitions(points)
    assert grouped(first) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert grouped(second) == [[0, 1, 2, 3], [4, 5, 6, 7]]  # what comes next is one cluster: nothing


def test_finch_of_what_hangs_together_is_one_cluster() -> None:
    # 0 and 1 are each other's nearest, 2's is 1, 3's is 2.
    (only,) = partitions(at_angles(0, 1, 3, 6))
    assert grouped(only) == [[0, 1, 2, 3]]
    assert grouped(partitions(np.zeros((1, 2)))[0]) == [[0]]


def test_a_wanted_number_of_clusters_comes_from_joining_the_most_alike() -> None:
    points = at_angles(0, 1, 10, 11, 90, 91, 102, 103)
    assert grouped(cluster_exactly(points, 2)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert grouped(cluster_exactly(points, 3)) == [[0, 1, 2, 3], [4, 5], [6, 7]]  # 10° apart, not 12°
    assert grouped(cluster_exactly(points, 1)) == [list(range(8))]
    assert len(grouped(cluster_exactly(points, 7))) == 4  # the finest there is


def test_means_are_by_cluster_number() -> None:
    points = np.array([[0.0, 2.0], [4.0, 4.0], [2.0, 0.0]])
    np.testing.assert_array_equal(cluster_means(points, np.array([1, 0, 1])), [[4, 4], [1, 1]])


def test_each_cluster_gives_as_many_as_the_others_and_the_smallest_scores() -> None:
    points = at_angles(0, 1, 2, 3, 90, 91, 180, 181)
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.9, 0.8, 0.7, 0.6])
    assert spread(score, points, 3).tolist() == [0, 7, 5]
    assert spread(score, points, 6).tolist() == [0, 1, 7, 6, 5, 4]
    # The two of a cluster are used up, and the first gives more.
    assert spread(score, points, 7).tolist() == [0, 1, 2, 7, 6, 5, 4]
    assert spread(score, points, 99).tolist() == [0, 1, 2, 3, 7, 6, 5, 4]
    assert spread(score[:0], points[:0], 3).tolist() == []


def test_more_clusters_than_wanted_take_a_coarser_partition() -> None:
    points = at_angles(0, 1, 10, 11, 90, 91, 102, 103)  # four clusters, then two
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.8, 0.7, 0.6, 0.5])
    assert spread(score, points, 2).tolist() == [0, 7]
    assert spread(score, points, 1).tolist() == [0]  # even two are too many: all are one


def binary_loss_by_hand(logits: np.ndarray, targets: np.ndarray, alpha: float) -> float:
    n_classes = logits.shape[1]
    positive, negative, unsure_one, unsure_other = [], [], [], []
    for row, target in zip(logits, targets, strict=True):
        p = [1 / (1 + math.exp(-value)) for value in row]
        if target < n_classes:
            positive.append(-(1 - alpha) * math.log(p[target]))
            negative.append(max([0.0, *(-(1 - alpha) * math.log(1 - p[j]) for j in range(n_classes) if j != target)]))
        else:
            unsure_one.append(sum(-alpha / n_classes * math.log(value) for value in p))
            unsure_other.append(sum(-alpha / n_classes * math.log(1 - value) for value in p))
    return sum(0.5 * float(np.mean(part)) for part in (positive, negative, unsure_one, unsure_other) if part)


@pytest.mark.parametrize("targets", [[0, 3, 1, 3, 2], [0, 1, 2, 2, 1], [3, 3, 3, 3, 3]])
def test_the_binary_loss_is_the_originals(targets: list[int]) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (5, 3))
    for alpha in (0.8, 0.0):
        found = binary_loss(torch.from_numpy(logits), torch.tensor(targets), alpha)
        assert found.item() == pytest.approx(binary_loss_by_hand(logits, np.array(targets), alpha))


def test_the_regulariser_is_the_originals() -> None:
    rng = np.random.default_rng(0)
    hidden, centres, own = rng.normal(size=(4, 3)), rng.normal(size=(3, 3)), [0, 2, 2, 1]
    near, apart = [], []
    for point, mine in zip(hidden, own, strict=True):
        distances = [math.dist(point, centre) for centre in centres]
        near.append(distances[mine])
        apart.append(math.log(1 + sum(math.exp(distances[mine] - d) for j, d in enumerate(distances) if j != mine)))
    found = cluster_loss(torch.from_numpy(hidden), torch.from_numpy(centres), torch.tensor(own))
    assert found.item() == pytest.approx(0.1 * np.mean(near) + np.mean(apart))
    assert cluster_loss(torch.zeros(0, 3), torch.zeros(2, 3), torch.zeros(0, dtype=torch.int64)).item() == 0


def test_a_trained_network_finds_the_known_ones() -> None:
    pool = make_pool(n=600, n_offered=400)
    truth = make_pool(n=600, n_offered=0)  # the same samples, all labelled
    chosen = eoal.select(pool, 100, np.random.default_rng(0))
    assert (truth.labels[pool.offered] >= 0).mean() < 0.6
    assert (truth.labels[chosen] >= 0).mean() > 0.9


def test_what_the_first_head_rejects_comes_last_by_rising_score(monkeypatch) -> None:
    """A network whose outputs are a table: samples 0 to 3 held to be known, 4 and 5 rejected."""
    hidden = np.concatenate([at_angles(0, 1, 90, 91), at_angles(180, 181)])
    logits = np.array([[9.0, 0, 0]] * 4 + [[0, 0, 9.0]] * 2)
    binary = np.array([[0.0], [1.0], [2.0], [3.0], [0.5], [9.0]]) * [1, 1]  # entropy falls with the logit

    class Table:
        def outputs(self, inputs):
            return hidden[: len(inputs)], logits[: len(inputs)], binary[: len(inputs)]

    pool = replace(make_pool(n=12, n_classes=2, n_offered=6, invalid=False), learner=None)
    monkeypatch.setattr(eoal, "train_net", lambda *given: (Table(), np.zeros(0, np.int64)))
    chosen = eoal.select(pool, 6, np.random.default_rng(0))
    np.testing.assert_array_equal(chosen, pool.offered[[3, 2, 1, 0, 5, 4]])
    # Of two, one comes from each cluster of the known ones, though 2 is better than 1.
    np.testing.assert_array_equal(eoal.select(pool, 2, np.random.default_rng(0)), pool.offered[[3, 1]])
