"""A small network on the encoder's features, trained by SGD, for strategies whose papers train a network of their own.

The originals train a ResNet on images and read its last hidden layer. Here the encoder is frozen, and one hidden layer
of the same width stands in for what they learn on top:

    features [m, d] → hidden [m, HIDDEN], ReLU → one linear head or several, [m, outputs] each

Batch, learning rate and momentum are those of the four authors' codes (EOAL, BUAL, EAOA, E2OAL). It computes on the
CPU: at this size the same seed gives the same weights, and a step takes about a millisecond.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neat_backend.ranking.pool import Floats, Indices

HIDDEN = 128
BATCH_SIZE = 128
LEARNING_RATE = 0.01
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
HALVED_EVERY_EPOCHS = 60
LEAST_SPREAD = 1e-6


class FeatureNet(nn.Module):
    """One hidden layer and a linear head for each number of `outputs`."""

    def __init__(self, width: int, outputs: Sequence[int]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU())
        self.heads = nn.ModuleList(nn.Linear(HIDDEN, number) for number in outputs)

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """hidden [m, HIDDEN], then the logits of each head, for inputs [m, d]."""
        hidden = self.body(inputs)
        return hidden, *(head(hidden) for head in self.heads)

    @torch.no_grad()
    def outputs(self, inputs: Floats) -> tuple[NDArray[np.float64], ...]:
        """The same from and to arrays, float64."""
        return tuple(part.double().numpy() for part in self(torch.from_numpy(inputs)))


def new_net(width: int, outputs: Sequence[int], rng: np.random.Generator) -> FeatureNet:
    """An untrained network; its weights come from `rng`, and torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        return FeatureNet(width, outputs)


def scaled(features: Floats) -> Floats:
    """Features [n, d] moved to mean 0 and scaled as a whole to a mean square of 1: what a network is given."""
    centred = features - features.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = np.sqrt(np.square(centred).mean(dtype=np.float64))
    return centred / np.float32(spread) if spread > LEAST_SPREAD else centred


def targets_of(labels: NDArray[np.int64], n_classes: int) -> Tensor:
    """Class codes of labelled samples [l] as targets: the known ones as they are, INVALID as class C."""
    return torch.from_numpy(np.where(labels < 0, n_classes, labels))


def train(
    net: FeatureNet,
    rows: int,
    loss: Callable[[Tensor], Tensor],
    rng: np.random.Generator,
    epochs: int,
    weight_decay: float = WEIGHT_DECAY,
    before_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Minimise `loss` by SGD: of places [b] among `rows` samples, a scalar. The rate is halved every 60 epochs.

    before_epoch(epoch) is called before each, counted from 0. Nothing is done for no rows.
    """
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, HALVED_EVERY_EPOCHS, 0.5)
    for epoch in range(epochs if rows else 0):
        before_epoch(epoch)
        order = torch.from_numpy(rng.permutation(rows))
        for batch in order.chunk(math.ceil(rows / BATCH_SIZE)):
            optimizer.zero_grad(set_to_none=True)
            loss(batch).backward()
            optimizer.step()
        schedule.step()


def mean_of(values: Tensor) -> Tensor:
    """The mean of [m], 0 for none: a batch may hold no sample of a kind."""
    return values.sum() / max(len(values), 1)


def at_random(offered: Indices, size: int, rng: np.random.Generator) -> Indices:
    """Any `size` of the offered samples."""
    return offered[rng.permutation(len(offered))[:size]]
