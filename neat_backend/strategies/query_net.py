"""The network of MQ-Net: from purity and informativeness to one score that never falls when either rises.

Park et al., "Meta-Query-Net", NeurIPS 2022, and the authors' code (kaist-dmlab/MQNet), whose sizes these are. A few
hundred weights and ten thousand steps: in numpy, with the gradient written out, a step takes a tenth of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HIDDEN = 64
EPOCHS = 100
STEPS_PER_EPOCH = 100  # at least: an epoch ends with a whole pass
BATCH_SIZE = 32
LEARNING_RATE = 0.001
LOWERED_AFTER_EPOCHS = 50  # to a tenth
MARGIN = 1.0

Floats = NDArray[np.float64]


@dataclass
class QueryNet:
    """score(x) = sigmoid(x relu(W1) + b1) relu(W2) + b2: by the relu no weight that acts is negative."""

    w1: Floats  # [2, h]
    b1: Floats  # [h]
    w2: Floats  # [h]
    b2: float

    def scores(self, inputs: Floats) -> Floats:
        """float64 [m] for inputs [m, 2]."""
        hidden: Floats = _sigmoid(inputs @ np.maximum(self.w1, 0) + self.b1) @ np.maximum(self.w2, 0) + self.b2
        return hidden

    def gradient(self, inputs: Floats, targets: Floats) -> tuple[Floats, Floats, Floats]:
        """Gradient of a batch's ranking loss by w1, b1 and w2; that by b2 is 0, as only differences count.

        The loss is the mean of max(0, 1 - y (s_i - s_j)) over the pairs of the batch: its first with its last, and so
        inwards. y is 1 where target i is above target j, else -1. Equal targets have -1 too, as in the authors' code:
        the order of a batch is random, so they pull neither way. The middle one of an odd number has no partner.
        """
        w1, w2 = np.maximum(self.w1, 0), np.maximum(self.w2, 0)
        hidden = _sigmoid(inputs @ w1 + self.b1)  # [m, h]
        by_score = _loss_by_score(hidden @ w2, targets)  # [m]
        before = by_score[:, None] * w2 * hidden * (1 - hidden)  # [m, h]
        return inputs.T @ before * (self.w1 > 0), before.sum(axis=0), hidden.T @ by_score * (self.w2 > 0)


def train_query_net(inputs: Floats, targets: Floats, rng: np.random.Generator) -> QueryNet:
    """A network trained by plain SGD on inputs [n, 2] and targets [n], from weights drawn from [0, 1). n ≥ 2."""
    net = QueryNet(rng.random((2, HIDDEN)), rng.random(HIDDEN), rng.random(HIDDEN), float(rng.random()))
    for epoch in range(EPOCHS):
        rate = LEARNING_RATE if epoch < LOWERED_AFTER_EPOCHS else LEARNING_RATE / 10
        steps = 0
        while steps < STEPS_PER_EPOCH:
            order = rng.permutation(len(inputs))
            for start in range(0, len(order) - 1, BATCH_SIZE):  # a last one alone has no partner
                batch = order[start : start + BATCH_SIZE]
                by_w1, by_b1, by_w2 = net.gradient(inputs[batch], targets[batch])
                net.w1 -= rate * by_w1
                net.b1 -= rate * by_b1
                net.w2 -= rate * by_w2
                steps += 1
    return net


def _pairs(scores: Floats, targets: Floats) -> tuple[Floats, Floats]:
    half = len(scores) // 2
    first, last = slice(0, half), slice(None, None, -1)
    signs = np.where(targets[first] > targets[last][:half], 1.0, -1.0)
    return scores[first] - scores[last][:half], signs


def _loss_by_score(scores: Floats, targets: Floats) -> Floats:
    differences, signs = _pairs(scores, targets)
    half = len(differences)
    by_difference = np.where(MARGIN - signs * differences > 0, -signs, 0.0) / half
    gradient = np.zeros(len(scores))
    gradient[:half] = by_difference
    gradient[::-1][:half] = -by_difference
    return gradient


def _sigmoid(x: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp of a large number is inf, and its share 0
        values: Floats = 1 / (1 + np.exp(-x))
    return values
