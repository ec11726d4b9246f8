from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import digamma, gammaln

from neat_backend.ranking.pool import Past
from neat_backend.ranking.scores import INVALID
from neat_backend.strategies import e2oal
from neat_backend.strategies.e2oal import (
    all_classes,
    best_count,
    candidates_wanted,
    evidential_loss,
    f1_product,
    information,
    invalid_clusters,
    purity,
    wanted_precision,
)
from neat_backend.testing.pools import make_pool


def query(share: float) -> Past:
    """100 answers, so many of them known."""
    return Past(np.arange(100), np.where(np.arange(100) < round(100 * share), 0, INVALID).astype(np.int64))


def test_the_f1_product_counts_all_clusters_without_a_known_class_as_invalid() -> None:
    targets = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])  # 2 = invalid
    clusters = np.array([0, 0, 3, 1, 1, 2, 2, 3, 3, 1])
    # 0 ↔ cluster 0: 2 right of 2 said and 3 true. 1 ↔ cluster 1: 2 of 3 and 2. Invalid = 2 and 3: 4 of 5 and 5.
    expected = (4 / 5 * 4 / 5 * 8 / 10) ** (1 / 3)
    found, of_known = f1_product(clusters, targets, 2)
    assert found == pytest.approx(expected)
    assert sorted(of_known) == [0, 1]


def test_a_faultless_clustering_has_a_product_of_1_and_a_class_that_is_missed_one_of_0() -> None:
    targets = np.array([0, 0, 1, 1, 2, 2])
    assert f1_product(np.array([3, 3, 0, 0, 1, 2]), targets, 2)[0] == pytest.approx(1)
    assert f1_product(np.array([0, 0, 1, 2, 0, 0]), np.array([0, 0, 0, 0, 1, 2]), 2)[0] == 0


@pytest.mark.parametrize("best", [3, 4, 17, 59, 60])
def test_the_search_finds_the_peak_of_what_rises_and_falls_once(best: int) -> None:
    tried = set()

    def quality(number: int) -> float:
        tried.add(number)
        return -abs(number - best)

    assert best_count(quality, 3, 60) == best
    assert len(tried) < 25


def test_of_equal_counts_the_smallest_is_taken() -> None:
    assert best_count(lambda number: 1.0, 3, 60) == 3


def test_invalid_samples_of_three_kinds_get_classes_of_their_own() -> None:
    rng = np.random.default_rng(0)
    kind = np.repeat(np.arange(5), 20)  # 0 and 1 are known
    features = np.eye(8)[kind] + 0.05 * rng.normal(size=(100, 8))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    found = invalid_clusters(features, np.minimum(kind, 2), 2, seed=0)
    assert set(found) == set(range(found.max() + 1))
    assert found.max() >= 2
    assert len(set(zip(kind[kind >= 2], found, strict=True))) == found.max() + 1  # no cluster has two kinds


def test_few_labels_have_one_invalid_class_and_known_codes_stay() -> None:
    pool = make_pool(n=66, n_offered=60)
    labels = pool.labels[pool.labelled]
    assert (labels < 0).any()
    expected = np.where(labels < 0, pool.n_classes, labels)
    np.testing.assert_array_equal(all_classes(pool, np.random.default_rng(0)), expected)


def test_classes_of_a_pool_keep_known_codes_and_number_the_invalid_ones_from_c() -> None:
    pool = make_pool(n=400, n_offered=100)
    labels = pool.labels[pool.labelled]
    found = all_classes(pool, np.random.default_rng(0))
    np.testing.assert_array_equal(found[labels >= 0], labels[labels >= 0])
    assert set(found[labels < 0]) == set(range(pool.n_classes, found.max() + 1))
    assert found.max() > pool.n_classes


def evidence_by_hand(logits: np.ndarray, classes: list[int], annealed: float) -> float:
    likelihoods, divergences = [], []
    for row, own in zip(logits, classes, strict=True):
        alpha = np.exp(np.clip(row, -10, 10)) + 1
        likelihoods.append(math.log(alpha.sum()) - math.log(alpha[own]))
        alpha[own] = 1
        total = alpha.sum()
        divergences.append(
            gammaln(total) - gammaln(len(row)) - gammaln(alpha).sum()
            + ((alpha - 1) * (digamma(alpha) - digamma(total))).sum()
        )  # fmt: skip
    return float(np.mean(likelihoods) + annealed * np.mean(divergences) / logits.shape[1])


@pytest.mark.parametrize("annealed", [0.0, 0.3, 1.0])
def test_the_evidential_loss_is_the_originals(annealed: float) -> None:
    logits = np.random.default_rng(0).normal(0, 4, (6, 5))
    logits[0, 0] = 30.0
    classes = [0, 1, 4, 2, 2, 0]
    found = evidential_loss(torch.from_numpy(logits), torch.tensor(classes), annealed)
    assert found.item() == pytest.approx(evidence_by_hand(logits, classes, annealed))


def test_without_evidence_every_class_is_as_likely() -> None:
    # exp(-10) + 1 each: the log of the number of classes, and no evidence against the label to speak of
    found = evidential_loss(torch.full((1, 4), -99.0, dtype=torch.float64), torch.tensor([2]), 1.0)
    assert found.item() == pytest.approx(math.log(4), abs=1e-4)


def test_purity_is_by_how_much_the_best_known_class_leads() -> None:
    logits = np.array([[1.0, 5.0, 2.0, -1.0], [0.0, 1.0, 2.0, 7.0]])
    np.testing.assert_array_equal(purity(logits, 2), [3, -6])
    np.testing.assert_array_equal(purity(logits, 4), [5, 7])


def test_information_is_largest_between_even_and_certain() -> None:
    found = information(np.array([[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]]))
    assert found[0] > 0.04
    np.testing.assert_allclose(found[1:], 0, atol=1e-6)


def test_information_is_the_product_of_two_jensen_shannon_divergences() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), 10)
    expected = [
        jensenshannon(row, np.full(4, 0.25)) ** 2 * jensenshannon(row, np.eye(4)[row.argmax()]) ** 2
        for row in probabilities
    ]
    np.testing.assert_allclose(information(probabilities), expected, atol=1e-6)


def candidates_by_hand(known: np.ndarray, informative: np.ndarray, size: int, target: float) -> int:
    order = np.argsort(-known)
    if target <= 0:
        return len(known)
    for length in range(size, len(known) + 1):
        first = order[:length]
        queried = first[np.argsort(-informative[first])[:size]]
        if int(known[queried].sum()) <= target:
            return length
    return len(known)


@pytest.mark.parametrize("target", [0.0, 1.0, 3.5, 6.0, 10.0])
@pytest.mark.parametrize("seed", range(4))
def test_as_many_are_candidates_as_bring_the_expected_precision_down_to_the_target(seed: int, target: float) -> None:
    rng = np.random.default_rng(seed)
    known, informative = rng.random(60), rng.random(60)
    assert candidates_wanted(known, informative, 10, target) == candidates_by_hand(known, informative, 10, target)


def test_candidates_of_a_small_case() -> None:
    known, informative = np.array([1.0, 1.0, 0.875, 0.125, 0.0]), np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    # Sums of the two most informative of the first 2, 3, 4, 5: 2.0, 1.875, 1.0, 0.125
    assert [candidates_wanted(known, informative, 2, target) for target in (2, 1, 0.5, 0)] == [2, 3, 5, 5]


@pytest.mark.parametrize(
    ("shares", "wanted"), [((), 0.6), ((0.9,), 0.3), ((0.5,), 0.7), ((0.0, 0.9), 0.7), ((1.0, 1.0, 0.4), 0.2)]
)
def test_the_wanted_precision_makes_up_for_what_queries_had(shares, wanted) -> None:
    assert wanted_precision(tuple(query(share) for share in shares)) == pytest.approx(wanted)


def test_it_prefers_known_samples_and_less_so_after_precise_queries() -> None:
    pool = make_pool(n=900, n_offered=700)
    truth = make_pool(n=900, n_offered=0)  # the same samples, all labelled
    after_poor, after_good = (
        e2oal.select(replace(pool, past=(query(share),)), 100, np.random.default_rng(0)) for share in (0.2, 1.0)
    )
    assert (truth.labels[after_poor] >= 0).mean() > 0.85
    information_of = [information(pool.probabilities(chosen)).mean() for chosen in (after_poor, after_good)]
    assert information_of[0] < information_of[1]


def test_without_a_classifier_or_known_samples_it_is_chance() -> None:
    pool = make_pool()
    for bare in (replace(pool, model=None), replace(pool, labels=np.where(pool.labels >= 0, INVALID, pool.labels))):
        first, second = (e2oal.select(bare, 10, np.random.default_rng(seed)) for seed in (0, 1))
        assert set(first) != set(second)
