"""EOAL: few doubts about the known classes, many about which unknown one it might be (Safaei et al., AAAI 2024).

"Entropic Open-set Active Learning", and the authors' code (bardisafa/EOAL). One network with two heads is trained on
all that is labelled: C + 1 outputs (invalid = class C) and one binary classifier for each known class. A query:

1.  S_c(x), the mean entropy of the C binary classifiers, in bits: small where all of them are sure.
2.  S_u(x), the entropy of the softmax of minus the distances to the centres of clusters of invalid samples, over its
    largest value: small near one of the clusters. There is none before anything is invalid.
3.  What the first head holds to be known is clustered by FINCH, and each cluster gives as many of its samples of
    smallest S = S_c - S_u as the others; if these are too few, the smallest S of the rejected fill up.

What is the same: the losses with their weights (temperature 0.5, α = 0.8, regulariser 0.1), the hierarchy
of FINCH of which the finest partition with at most B clusters is taken, C clusters of invalid samples.

What differs:
- The network is `feature_net`, on the encoder's features, where the original is a ResNet-18 on images. It has 200
  epochs instead of 300.
- A binary classifier is one logit and its sigmoid. The original has two logits and their softmax, the same function.
- Invalid samples are clustered every tenth epoch, the original does so in each.
- FINCH (Sarfraz et al., CVPR 2019) always goes on to one cluster; its authors' code may stop earlier.
- Both heads have one optimiser, with momentum but not Nesterov's.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from neat_backend.ranking.pool import Indices, Pool
from neat_backend.strategies.feature_net import FeatureNet, at_random, mean_of, new_net, scaled, targets_of, train

EPOCHS = 200
TEMPERATURE = 0.5
ALPHA = 0.8  # share of the binary losses that invalid samples get, spread evenly over the classes
REGULARISER = 0.1
TO_OWN_CENTRE = 0.1
CLUSTERED_EVERY_EPOCHS = 10
_BLOCK_ROWS = 2048

Floats = NDArray[np.float64]


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """The choice of step 3, by rising S, the rejected last. At random while no sample is of a known class."""
    size = min(batch_size, len(pool.offered))
    if not size or not len(pool.known):
        return at_random(pool.offered, size, rng)
    inputs = scaled(pool.features)
    net, clusters = train_net(pool, inputs, rng)
    hidden, logits, binary = net.outputs(inputs[pool.offered])
    score = closed_set_entropy(binary)
    if len(clusters):
        centres = cluster_means(net.outputs(inputs[pool.invalid])[0], clusters)
        score = score - distance_entropy(hidden, centres)
    held = np.flatnonzero(logits.argmax(axis=1) < pool.n_classes)
    chosen = held[spread(score[held], hidden[held], size)]
    left = np.setdiff1d(np.arange(len(score)), chosen)
    more = left[np.argsort(score[left], kind="stable")[: size - len(chosen)]]
    return pool.offered[np.concatenate([chosen, more])]


def closed_set_entropy(binary: Floats) -> Floats:
    """S_c: the mean of the binary entropies, in bits, for the logits [m, C] of the binary classifiers: float64 [m]."""
    ones, others = np.exp(-np.logaddexp(0, -binary)), np.exp(-np.logaddexp(0, binary))
    nats = ones * np.logaddexp(0, -binary) + others * np.logaddexp(0, binary)
    mean: Floats = nats.mean(axis=1) / math.log(2)
    return mean


def distance_entropy(hidden: Floats, centres: Floats) -> Floats:
    """S_u in [0, 1], of points [m, h] and centres [c, h]: float64 [m]; 0 with one centre."""
    if len(centres) < 2:
        return np.zeros(len(hidden))
    distances = torch.cdist(torch.from_numpy(hidden), torch.from_numpy(centres))
    logs = F.log_softmax(-distances, dim=1)
    entropy: Floats = -(logs.exp() * logs).sum(dim=1).numpy() / math.log(len(centres))
    return entropy


def spread(score: Floats, hidden: Floats, size: int) -> Indices:
    """Places of min(size, m) of m samples by rising score [m]: as many as possible alike from each FINCH cluster.

    Each cluster in turn gives its ⌊size / clusters⌋ smallest, again and again until there are enough.
    """
    size = min(size, len(score))
    if not size:
        return np.zeros(0, np.int64)
    fitting = [labels for labels in partitions(hidden) if labels.max() < size]
    clusters = fitting[0] if fitting else np.zeros(len(score), np.int64)
    queues = [own[np.argsort(score[own], kind="stable")] for own in _members(clusters)]
    share = size // len(queues)
    found: list[int] = []
    for start in range(0, len(score), share):
        for queue in queues:
            found += queue[start : start + share][: size - len(found)].tolist()
    chosen = np.array(found, np.int64)
    return chosen[np.argsort(score[chosen], kind="stable")]


def partitions(points: Floats) -> list[Indices]:
    """FINCH's hierarchy, the finest first: cluster numbers [m] of points [m, h]; one cluster only if nothing else is.

    Points are joined with their nearest neighbour by cosine, ties by smaller place; what hangs together is a cluster,
    and the means of the clusters are the points of the next step.
    """
    labels, means = np.arange(len(points)), points
    found: list[Indices] = []
    while len(means) > 1:
        links = csr_array((np.ones(len(means)), (np.arange(len(means)), _nearest(means))), shape=(len(means),) * 2)
        count, merged = connected_components(links, directed=False)
        if count == 1 and found:
            break
        labels = merged[labels].astype(np.int64)
        means = cluster_means(points, labels)
        found.append(labels)
    return found or [np.zeros(len(points), np.int64)]


def cluster_exactly(points: Floats, count: int) -> Indices:
    """Cluster numbers [m] of `count` clusters, or fewer if FINCH's finest partition has fewer.

    From the coarsest partition that has enough, the two clusters whose means are most alike are joined again and again.
    """
    levels = partitions(points)
    labels = next((level for level in reversed(levels) if level.max() + 1 >= count), levels[0])
    while labels.max() + 1 > count:
        means = _directions(cluster_means(points, labels))
        alike = np.triu(means @ means.T + 2, 1)  # + 2: all above 0, which the lower triangle has
        kept, joined = np.unravel_index(alike.argmax(), alike.shape)
        labels = np.unique(np.where(labels == joined, kept, labels), return_inverse=True)[1]
    return labels.astype(np.int64)


def cluster_means(points: Floats, clusters: Indices) -> Floats:
    """Means [c, h] of points [m, h] with cluster numbers [m] in 0..c-1, all in use."""
    return np.stack([points[own].mean(axis=0) for own in _members(clusters)])


def train_net(pool: Pool, inputs: NDArray[np.float32], rng: np.random.Generator) -> tuple[FeatureNet, Indices]:
    """The network, and the cluster numbers of the invalid samples (none without any)."""
    labelled, invalid = pool.labelled, pool.invalid
    mine, targets = torch.from_numpy(inputs[labelled]), targets_of(pool.labels[labelled], pool.n_classes)
    net = new_net(inputs.shape[1], (pool.n_classes + 1, pool.n_classes), rng)
    of_invalid = torch.zeros(len(labelled), dtype=torch.int64)
    centres = torch.zeros(0)

    def cluster(epoch: int) -> None:
        nonlocal centres
        if len(invalid) and epoch % CLUSTERED_EVERY_EPOCHS == 0:
            points = net.outputs(inputs[invalid])[0]
            clusters = cluster_exactly(points, pool.n_classes)
            of_invalid[targets == pool.n_classes] = torch.from_numpy(clusters)
            centres = torch.from_numpy(cluster_means(points, clusters)).float()

    def loss(batch: Tensor) -> Tensor:
        hidden, logits, binary = net(mine[batch])
        value = F.cross_entropy(logits / TEMPERATURE, targets[batch])
        value = value + binary_loss(binary, targets[batch], ALPHA if len(invalid) else 0.0)
        unknown = targets[batch] == pool.n_classes
        return value + REGULARISER * cluster_loss(hidden[unknown], centres, of_invalid[batch][unknown])

    train(net, len(labelled), loss, rng, EPOCHS, before_epoch=cluster)
    cluster(0)
    return net, of_invalid[targets == pool.n_classes].numpy()


def binary_loss(logits: Tensor, targets: Tensor, alpha: float) -> Tensor:
    """The loss of the binary classifiers' logits [b, C] for targets [b] in 0..C.

    Known samples: 1 - α of the mean loss of their own classifier and of the other one that is most wrong, halved.
    Invalid ones: α / C of the mean loss of being of each class, and of not being, halved: no classifier is to be sure.
    """
    n_classes = logits.shape[1]
    is_one, is_other = -F.logsigmoid(logits), -F.logsigmoid(-logits)  # [b, C]
    known = targets < n_classes
    own = F.one_hot(targets[known], n_classes).bool()
    positive = mean_of(is_one[known][own])
    negative = mean_of(is_other[known].masked_fill(own, 0).amax(dim=1))
    unsure = mean_of((is_one + is_other)[~known].sum(dim=1))
    return 0.5 * (1 - alpha) * (positive + negative) + 0.5 * alpha / n_classes * unsure


def cluster_loss(hidden: Tensor, centres: Tensor, clusters: Tensor) -> Tensor:
    """The regulariser: invalid samples [b, h] near their own of the centres [c, h], far from the others.

    0.1 · the mean distance to the own centre + the mean of log(1 + Σ exp(own distance - other distance)).
    """
    if not len(hidden):
        return hidden.sum()
    distances = torch.cdist(hidden, centres)
    own = distances.gather(1, clusters[:, None])
    # log(1 + Σ over the others) is the log of the sum over all, where the own one gives exp(0) = 1.
    return TO_OWN_CENTRE * own.mean() + torch.logsumexp(own - distances, dim=1).mean()


def _members(clusters: Indices) -> list[Indices]:
    return np.split(np.argsort(clusters, kind="stable"), np.cumsum(np.bincount(clusters))[:-1])


def _directions(points: Floats) -> Floats:
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return points / np.where(lengths > 0, lengths, 1)


def _nearest(points: Floats) -> Indices:
    """The place of each point's nearest other one by cosine: int64 [m], m ≥ 2."""
    units = _directions(points).astype(np.float32)
    nearest = np.empty(len(units), np.int64)
    for start in range(0, len(units), _BLOCK_ROWS):
        cosines = units[start : start + _BLOCK_ROWS] @ units.T
        rows = np.arange(len(cosines))
        cosines[rows, start + rows] = -np.inf
        nearest[start : start + _BLOCK_ROWS] = cosines.argmax(axis=1)
    return nearest
