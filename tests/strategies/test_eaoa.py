from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from neat_backend.ranking.pool import Past
from neat_backend.ranking.scores import INVALID
from neat_backend.strategies import eaoa
from neat_backend.strategies.eaoa import aleatoric, candidate_factor, energies, margin_loss, reverse_counts
from neat_backend.testing.pools import make_pool


def with_precisions(*shares: float) -> tuple[Past, ...]:
    """Queries of 100 answers, so many of each known."""
    return tuple(
        Past(np.arange(100), np.where(np.arange(100) < round(100 * share), 0, INVALID).astype(np.int64))
        for share in shares
    )


def test_epistemic_uncertainty_is_low_for_a_large_known_logit_and_high_for_a_large_unknown_one() -> None:
    logits = np.array([[0.0, 0.0, 0.0], [math.log(7), 0.0, math.log(3)], [50.0, 0.0, 900.0]])
    # -ln 2 + ln 2, -ln 8 + ln 4, -50 + 900
    np.testing.assert_allclose(energies(logits, 2, True), [0, -math.log(2), 850])
    np.testing.assert_allclose(energies(logits, 2, False), [-math.log(2), -math.log(8), -50])


def test_aleatoric_uncertainty_is_how_little_the_likeliest_class_has() -> None:
    logits = np.array([[5.0, 5.0], [math.log(3), 0.0], [0.0, math.log(6), math.log(2)][:2], [900.0, 0.0]])
    # log of 1 - P: 1/2, 1/4, 1/7, e^-900
    np.testing.assert_allclose(aleatoric(logits), [math.log(1 / 2), math.log(1 / 4), math.log(1 / 7), -900])
    np.testing.assert_array_equal(aleatoric(np.array([[1.0], [3.0]])), [0, 0])


def test_aleatoric_uncertainty_is_the_originals() -> None:
    """-logsumexp of all + logsumexp with the predicted class's logit replaced by -1e5."""
    logits = np.random.default_rng(0).normal(0, 3, (20, 5))
    expected = []
    for row in logits:
        others = [math.exp(value) for i, value in enumerate(row) if i != row.argmax()]
        expected.append(math.log(sum(others) + math.exp(-1e5)) - math.log(sum(math.exp(value) for value in row)))
    np.testing.assert_allclose(aleatoric(logits), expected)


def test_reverse_counts_say_whose_nearest_a_sample_is(monkeypatch) -> None:
    monkeypatch.setattr(eaoa, "REVERSE_NEIGHBOURS", 2)
    unlabelled = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0], [-1.0, 0.1]])
    labelled = np.array([[2.0, 0.1], [0.5, 1.0], [0.1, 1.0], [-1.0, 0.0]])
    # Nearest two: {0, 1}, {1, 2}, {2, 1}, {3, 2}. Classes 0, 0, 1 and unknown; sizes 2, 1, 1 over their known mean 1.5.
    found = reverse_counts(labelled, np.array([0, 0, 1, 2]), unlabelled, 2)
    counts = np.array([[1, 0, 0], [2, 1, 0], [1, 1, 1], [0, 0, 1]])
    np.testing.assert_allclose(found, counts / np.array([2 / 1.5, 1 / 1.5, 1 / 1.5]))


def test_a_class_without_labels_has_no_counts() -> None:
    found = reverse_counts(np.eye(2), np.array([0, 0]), np.eye(2), 2)
    np.testing.assert_allclose(found, [[1, 0, 0], [1, 0, 0]])  # all are nearest: 2, divided by 2 / 1


def test_the_margin_loss_counts_what_lies_on_the_wrong_side() -> None:
    # E of the known logits is -20 - ln 2 and -30 - ln 2, of the invalid ones -7 - ln 2 and 0 - ln 2.
    logits = torch.tensor([[20.0, 20.0, 0.0], [30.0, 30.0, 0.0], [7.0, 7.0, 5.0], [0.0, 0.0, 5.0]], dtype=torch.float64)
    known = (5 - math.log(2)) ** 2 / 2  # the second is below -25
    invalid = math.log(2) ** 2 / 2  # the first is below -7, the second above
    assert margin_loss(logits, torch.tensor([0, 1, 2, 2])).item() == pytest.approx(known + invalid)
    assert margin_loss(logits[:1], torch.tensor([0])).item() == pytest.approx((5 - math.log(2)) ** 2)


@pytest.mark.parametrize(
    ("shares", "factor"),
    [
        ((), 5),
        ((0.9,), 6),
        ((0.64,), 5),
        ((0.56,), 5),
        ((0.5,), 4),
        ((0.9, 0.9, 0.1), 6),
        ((0.0,) * 9, 1),
        ((0.0,) * 9 + (1.0,), 2),
    ],
)
def test_candidates_become_more_after_a_precise_query_and_fewer_after_another(shares, factor) -> None:
    assert candidate_factor(with_precisions(*shares)) == factor


def test_it_finds_the_known_ones() -> None:
    pool = make_pool(n=1500, n_offered=1200)
    truth = make_pool(n=1500, n_offered=0)  # the same samples, all labelled
    chosen = eaoa.select(pool, 30, np.random.default_rng(0))  # of five times as many candidates
    assert (truth.labels[pool.offered] >= 0).mean() < 0.6
    assert (truth.labels[chosen] >= 0).mean() > 0.85


def test_fewer_candidates_are_purer_and_more_are_more_uncertain() -> None:
    pool = make_pool(n=900, n_offered=700)
    few, many = (
        eaoa.select(replace(pool, past=with_precisions(*shares)), 60, np.random.default_rng(0))
        for shares in ((0.0,) * 9, (1.0,) * 9)
    )
    doubt = [aleatoric(pool.model.logits(chosen).astype(np.float64)).mean() for chosen in (few, many)]
    assert doubt[0] < doubt[1]


def test_without_a_classifier_or_known_samples_it_is_chance() -> None:
    pool = make_pool()
    for bare in (replace(pool, model=None), replace(pool, labels=np.where(pool.labels >= 0, INVALID, pool.labels))):
        first, second = (eaoa.select(bare, 10, np.random.default_rng(seed)) for seed in (0, 1))
        assert set(first) != set(second)
