from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.strategies.query_net import HIDDEN, MARGIN, QueryNet, train_query_net


def ranking_loss(scores: np.ndarray, targets: np.ndarray) -> float:
    """The loss whose gradient `QueryNet.gradient` is, pair by pair."""
    half = len(scores) // 2
    pairs = [(i, len(scores) - 1 - i) for i in range(half)]
    losses = [
        max(0.0, MARGIN - (1 if targets[i] > targets[j] else -1) * float(scores[i] - scores[j])) for i, j in pairs
    ]
    return sum(losses) / half


def random_net(seed: int) -> QueryNet:
    """Some weights below 0, which do not act."""
    rng = np.random.default_rng(seed)
    return QueryNet(rng.normal(size=(2, HIDDEN)), rng.normal(size=HIDDEN), rng.normal(size=HIDDEN), 0.3)


def test_the_score_of_one_hidden_unit_by_hand() -> None:
    net = QueryNet(np.array([[2.0], [-5.0]]), np.array([-2.0]), np.array([4.0]), 1.0)
    # sigmoid(2·1 + 0·7 - 2) · 4 + 1 = 3: the weight below 0 does not act
    np.testing.assert_allclose(net.scores(np.array([[1.0, 7.0]])), [3.0])


def test_pairs_are_the_first_with_the_last_and_so_inwards() -> None:
    scores, targets = np.array([1.0, 0.5, 9.0, 0.2, 3.0]), np.array([2.0, 0.0, 7.0, 0.0, 1.0])
    # (1, 3): wanted higher, 1 - (1 - 3) = 3; (0.5, 0.2): equal targets count as lower, 1 + 0.3; 9 has no partner
    assert ranking_loss(scores, targets) == pytest.approx((3 + 1.3) / 2)


def test_a_pair_in_the_right_order_by_the_margin_costs_nothing() -> None:
    assert ranking_loss(np.array([2.0, 1.0]), np.array([5.0, 0.0])) == 0
    assert ranking_loss(np.array([1.0, 2.5]), np.array([0.0, 5.0])) == 0


@pytest.mark.parametrize("size", [2, 7, 32])
def test_the_gradient_written_out_is_that_of_automatic_differentiation(size: int) -> None:
    rng = np.random.default_rng(size)
    net, x, t = random_net(size), rng.exponential(size=(size, 2)), rng.exponential(size=size) * (rng.random(size) < 0.6)
    w1, b1, w2 = (torch.tensor(a, requires_grad=True) for a in (net.w1, net.b1, net.w2))
    s = torch.sigmoid(torch.tensor(x) @ w1.relu() + b1) @ w2.relu() + net.b2
    np.testing.assert_allclose(s.detach(), net.scores(x))
    difference, target = (s - s.flip(0))[: size // 2], (torch.tensor(t) - torch.tensor(t).flip(0))[: size // 2]
    sign = torch.where(target > 0, 1.0, -1.0)
    loss = (1 - sign * difference).clamp(min=0).mean()
    loss.backward()
    assert loss.item() == pytest.approx(ranking_loss(net.scores(x), t))
    for ours, theirs in zip(net.gradient(x, t), (w1, b1, w2), strict=True):
        np.testing.assert_allclose(ours, theirs.grad, atol=1e-12)


@given(st.integers(0, 50), st.floats(0, 60), st.floats(0, 60), st.floats(0, 60), st.floats(0, 60))
def test_the_score_never_falls_when_an_input_rises(seed: int, a: float, b: float, more: float, still: float) -> None:
    low, high = random_net(seed).scores(np.array([[a, b], [a + more, b + still]]))
    assert high >= low - 1e-12


@pytest.mark.parametrize("which", [0, 1])
def test_it_learns_which_of_the_two_inputs_ranks(which: int) -> None:
    rng = np.random.default_rng(0)
    inputs = np.exp(rng.normal(size=(200, 2)))
    before = QueryNet(*_start(np.random.default_rng(1)))
    net = train_query_net(inputs, inputs[:, which], np.random.default_rng(1))
    assert ranking_loss(net.scores(inputs), inputs[:, which]) < ranking_loss(before.scores(inputs), inputs[:, which])
    grid = np.array([[2.0, 0.5], [0.5, 2.0]])
    scores = net.scores(grid)
    assert scores[which] > scores[1 - which]


def test_the_same_generator_state_gives_the_same_network() -> None:
    rng = np.random.default_rng(0)
    inputs, targets = rng.random((33, 2)), rng.random(33)
    first, second = (train_query_net(inputs, targets, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first.w1, second.w1)
    np.testing.assert_array_equal(first.w2, second.w2)


def _start(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    return rng.random((2, HIDDEN)), rng.random(HIDDEN), rng.random(HIDDEN), float(rng.random())
