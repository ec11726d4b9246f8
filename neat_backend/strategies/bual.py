"""BUAL: uncertainty from two sides, so that what is unknown does not look uncertain (Zong et al., ECCV 2024).

"Bidirectional Uncertainty-Based Active Learning for Open-Set Annotation", and the authors' code (chenchenzong/BUAL),
in its form B-LC (least confidence, the code's default). A query:

1.  Positive learning: a classifier of the known classes. Its confidence c_P is the largest probability.
2.  Random label negative learning: the network is trained on, by another head, on the known samples and on a sample of
    the pool. The loss is -log(1 - p_c) of a class c that a known sample is not, drawn at random, or of any class for a
    sample of the pool (Eq. 2). The confidence c_N is the largest sum of a class's probabilities over snapshots, one
    before and one after every five epochs.
3.  An auxiliary classifier with C + 1 outputs gives d, the probability of being unknown. Samples that it predicts
    unknown are not queried.
4.  The smallest d · c_N + r · (1 - d) · c_P are queried, each of the three scaled to [0, 1] over the rest, and r the
    precision of the last query. Before there is an invalid sample there is no d: c_N + r · c_P; r is 0 at first.

What is the same: 100 epochs of each training, weight decay 1e-4, snapshots, weights. Step 4 is that of the code; Eq. 4
has uncertainties, 1 - c, in place of confidences and takes the largest, which differs by d + r (1 - d).

What differs:
- Positive learning is the round's classifier, and the auxiliary one is trained by the round's learner, without which
  there is no d. Only the network of negative learning is trained here, a `feature_net` on the encoder's features,
  first by its positive head as the original is.
- The original draws 5,000 of the pool for negative learning, a ninth or tenth of its pools; here it is a tenth of what
  is offered, at least 1,000 and at most 5,000.
- The originals find that negative learning makes their ResNet confident of unknown images. That needs features that
  move: on frozen ones what is unknown stays less certain than what is known, and the first query, without d, asks for
  it. From the second query on d keeps most of it away.
- The original ends negative learning when the number of known samples among its choice stands still, which is read
  from the true labels. Here all epochs are done.
- The learning rate is halved after 60 epochs, as all networks' here.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from neat_backend.ranking.pool import Indices, Pool
from neat_backend.strategies.feature_net import at_random, new_net, scaled, train
from neat_backend.strategies.two_stage import precisions

EPOCHS = 100
WEIGHT_DECAY = 1e-4
SNAPSHOT_EVERY_EPOCHS = 5
SHARE_DRAWN = 0.1
LEAST_DRAWN, MOST_DRAWN = 1000, 5000
LEAST_PROBABILITY = 1e-5

Floats = NDArray[np.float64]


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """The offered samples of smallest score, best first; ties by smaller d, then by index.

    What the auxiliary classifier rejects comes last, by rising d. At random while there is no classifier or no sample
    of a known class.
    """
    size = min(batch_size, len(pool.offered))
    if not size or pool.model is None or not len(pool.known):
        return at_random(pool.offered, size, rng)
    unknown, rejected = unknown_probability(pool, rng)
    held = np.flatnonzero(~rejected)
    positive = pool.probabilities(pool.offered[held]).max(axis=1)
    negative = negative_confidence(pool, pool.offered[held], rng)
    last = list(precisions(pool.past))[-1:] or [0.0]
    score = bidirectional(positive, negative, unknown[held] if len(pool.invalid) else None, last[0])
    left = np.flatnonzero(rejected)
    order = [held[np.lexsort((unknown[held], score))], left[np.argsort(unknown[left], kind="stable")]]
    return pool.offered[np.concatenate(order)[:size]]


def bidirectional(positive: Floats, negative: Floats, unknown: Floats | None, ratio: float) -> Floats:
    """The score of step 4 from c_P, c_N, d and r: float64 [m]. unknown: None while there is no d."""
    positive, negative = unit_range(positive), unit_range(negative)
    if unknown is None:
        return negative + ratio * positive
    weight = unit_range(unknown)
    return weight * negative + ratio * (1 - weight) * positive


def unit_range(values: Floats) -> Floats:
    """Values [m] moved and scaled to [0, 1]; 0 where all are the same."""
    if not len(values):
        return values
    width = values.max() - values.min()
    return (values - values.min()) / width if width > 0 else np.zeros(len(values))


def unknown_probability(pool: Pool, rng: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    """d of the offered samples, and which are predicted unknown: [u] each; 0 and False without invalid samples."""
    none = np.zeros(len(pool.offered)), np.zeros(len(pool.offered), bool)
    if pool.learner is None or not len(pool.invalid):
        return none
    labels = pool.labels[pool.labelled]
    targets = np.where(labels < 0, pool.n_classes, labels)
    logits = pool.learner.fit(pool.labelled, targets, pool.n_classes + 1, rng).logits(pool.offered)
    probabilities = F.softmax(torch.from_numpy(logits).double(), dim=1).numpy()  # [u, C + 1]
    return probabilities[:, -1], probabilities.argmax(axis=1) == pool.n_classes


def negative_confidence(pool: Pool, indices: Indices, rng: np.random.Generator) -> Floats:
    """c_N of samples: float64 [m]. With one class there is no other to learn from: all the same."""
    if pool.n_classes < 2:
        return np.ones(len(indices))
    inputs = scaled(pool.features)
    net = new_net(inputs.shape[1], (pool.n_classes, pool.n_classes), rng)  # positive, negative
    known, labels = pool.known, torch.from_numpy(pool.labels[pool.known])
    mine = torch.from_numpy(inputs[known])

    def positive_loss(batch: Tensor) -> Tensor:
        return F.cross_entropy(net(mine[batch])[1], labels[batch])

    train(net, len(known), positive_loss, rng, EPOCHS, WEIGHT_DECAY)
    drawn = rng.permutation(pool.offered)[: int(np.clip(SHARE_DRAWN * len(pool.offered), LEAST_DRAWN, MOST_DRAWN))]
    both = torch.cat([mine, torch.from_numpy(inputs[drawn])])
    targets = torch.cat([labels, torch.full((len(drawn),), -1)])
    total = np.zeros((len(indices), pool.n_classes))

    def snapshot(epoch: int) -> None:
        if epoch % SNAPSHOT_EVERY_EPOCHS == 0:
            total[:] += F.softmax(torch.from_numpy(net.outputs(inputs[indices])[2]), dim=1).numpy()

    def negative_loss(batch: Tensor) -> Tensor:
        others = torch.from_numpy(complementary(targets[batch].numpy(), pool.n_classes, rng))
        return complementary_loss(net(both[batch])[2], others)

    train(net, len(both), negative_loss, rng, EPOCHS, WEIGHT_DECAY, before_epoch=snapshot)
    snapshot(EPOCHS)
    confidence: Floats = total.max(axis=1)
    return confidence


def complementary(labels: NDArray[np.int64], n_classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A class that each of the labels [b] is not, drawn evenly; any class for a label of -1: int64 [b] (Eq. 2)."""
    other = (labels + rng.integers(1, n_classes, size=len(labels))) % n_classes
    return np.where(labels < 0, rng.integers(n_classes, size=len(labels)), other)


def complementary_loss(logits: Tensor, others: Tensor) -> Tensor:
    """The mean of -log(1 - p) of the complementary classes [b] under logits [b, C]; 1 - p is at least 1e-5."""
    of_others = F.softmax(logits, dim=1).gather(1, others[:, None])
    return -(1 - of_others).clamp(min=LEAST_PROBABILITY).log().mean()
