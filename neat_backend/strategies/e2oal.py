"""E²OAL: the invalid samples have classes of their own, found by clusters, and one classifier learns all (CVPR 2026).

Zong et al., "Revisiting Unknowns: Towards Effective and Efficient Open-Set Active Learning", and the authors' code
(chenchenzong/E2OAL). A query:

1.  How many classes are there? k-means on the frozen features of all that is labelled, with K clusters; the clusters
    are matched with the known classes and "invalid", most samples agreeing. Of K between C + 1 and 1,000 the one with
    the largest product of F1 scores, by ternary search: a cluster's score for each known class, and for "invalid" that
    of all clusters that no known class has. Each invalid sample is then of the nearest of these.
2.  A head with an output for each known and invalid class learns by evidence: α = exp(f) + 1 are the parameters of a
    Dirichlet distribution, the loss is the log of Σα over the label's α, plus the distribution's Kullback-Leibler
    divergence from the even one, without the label's evidence, over the number of outputs; that counts fully from the
    tenth epoch on.
3.  Purity is the largest logit of a known class less the largest of an invalid one; p(x) is its posterior of the
    component of largest mean, of three fitted to all that is labelled or offered.
4.  Information is the Jensen-Shannon divergence of the classifier's probabilities from the even ones, times that from
    the certain ones: largest where some classes are ruled out and some are not.
5.  There are as many candidates, by p, as lower Σp of the B most informative of them to t·B. Of each predicted class
    the purest of these, in equal shares, are candidates, and the most informative are queried.
6.  t is 0.6, plus what each query's precision was below 0.6 or minus what it was above, within [0, 1] after each.

What is the same: all numbers above, 200 epochs, the mixture's settings. The encoder's features stand in for CLIP's.

What differs:
- The head is a `feature_net`'s on the encoder's features. The original's second head, trained with it, is the target
  classifier on the known classes; here that is the classifier of the round.
- K is at most half the number of labelled samples, and k-means starts once for each K.
- The divergence is Jensen and Shannon's, the mean of those of the two from their middle. Their code has the arguments
  of each the other way round, which makes it depend on the 1e-8 that is added to the zeros.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from neat_backend.ranking.pool import Indices, Past, Pool
from neat_backend.strategies import two_stage
from neat_backend.strategies.feature_net import FeatureNet, at_random, new_net, scaled, train
from neat_backend.strategies.lfosa import larger_component

EPOCHS = 200
FULL_FROM_EPOCH = 10
LARGEST_LOGIT = 10.0
MOST_CLUSTERS = 1000
COMPONENTS = 3
PRECISION_WANTED = 0.6
LEAST_SHARE = 1e-8

Floats = NDArray[np.float64]


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """The choice of step 5, by falling information; what it lacks is filled up by purity.

    At random while there is no classifier or no sample of a known class.
    """
    size = min(batch_size, len(pool.offered))
    if not size or pool.model is None or not len(pool.known):
        return at_random(pool.offered, size, rng)
    inputs = scaled(pool.features)
    net = train_net(inputs[pool.labelled], all_classes(pool, rng), pool.n_classes, rng)
    logits = net.outputs(inputs[np.concatenate([pool.offered, pool.labelled])])[1]
    pure = purity(logits, pool.n_classes)
    offered = slice(0, len(pool.offered))
    known = larger_component(pure, int(rng.integers(2**31)), COMPONENTS)[offered]
    informative = information(pool.probabilities(pool.offered))
    length = candidates_wanted(known, informative, size, wanted_precision(pool.past) * size)
    chosen = two_stage.choose(
        logits[offered].argmax(axis=1),
        pure[offered],
        informative,
        pool.n_classes,
        -(-length // pool.n_classes),
        size,
        rng,
    )
    return pool.offered[chosen]


def all_classes(pool: Pool, rng: np.random.Generator) -> NDArray[np.int64]:
    """Classes of the labelled samples: the known ones' codes, and C, C+1, … for clusters of invalid ones: int64 [l]."""
    labels = pool.labels[pool.labelled]
    classes = labels.copy()
    if len(pool.invalid):
        _, present = np.unique(labels[labels >= 0], return_inverse=True)
        n_present = int(present.max()) + 1
        targets = np.full(len(labels), n_present)
        targets[labels >= 0] = present
        found = invalid_clusters(pool.features[pool.labelled], targets, n_present, int(rng.integers(2**31)))
        classes[labels < 0] = pool.n_classes + found
    return classes


def invalid_clusters(features: NDArray[np.float32], targets: Indices, n_classes: int, seed: int) -> Indices:
    """Cluster numbers of the samples of target C, from 0 on, by step 1: int64 [number of these].

    features: unit rows [l, d]; targets: [l] in 0..C, each at least once. Too few samples are one cluster.
    """
    from sklearn.cluster import KMeans

    unknown = targets == n_classes
    tried: dict[int, tuple[float, Indices, Floats]] = {}

    def quality(clusters: int) -> float:
        if clusters not in tried:
            fitted = KMeans(clusters, n_init=1, random_state=seed).fit(features)
            product, of_known = f1_product(fitted.labels_.astype(np.int64), targets, n_classes)
            tried[clusters] = product, of_known, fitted.cluster_centers_
        return tried[clusters][0]

    most = min(MOST_CLUSTERS, len(np.unique(features, axis=0)) // 2)
    if most <= n_classes + 1:
        return np.zeros(np.count_nonzero(unknown), np.int64)
    _, of_known, centres = tried[best_count(quality, n_classes + 1, most)]
    others = np.delete(centres, of_known, axis=0)
    distances = torch.cdist(torch.from_numpy(features[unknown]), torch.from_numpy(others).float())
    return np.unique(distances.argmin(dim=1).numpy(), return_inverse=True)[1].astype(np.int64)


def best_count(quality: Callable[[int], float], least: int, most: int) -> int:
    """The number of clusters of largest quality, the smaller of two, by ternary search in least..most."""
    while most - least > 2:
        third = (most - least) // 3
        if quality(least + third) < quality(most - third):
            least += third
        else:
            most -= third
    return max(range(least, most + 1), key=lambda number: (quality(number), -number))


def f1_product(clusters: Indices, targets: Indices, n_classes: int) -> tuple[float, Indices]:
    """The geometric mean of the F1 scores of step 1, and the clusters that are matched with a known class.

    clusters: [l]; targets: [l] in 0..C. The clusters without a known class count as invalid together.
    """
    agreeing = np.zeros((max(int(clusters.max()), n_classes) + 1, n_classes + 1))
    np.add.at(agreeing, (clusters, targets), 1)
    rows, columns = linear_sum_assignment(agreeing, maximize=True)
    of_known = rows[columns < n_classes]
    right = np.append(
        agreeing[of_known, columns[columns < n_classes]], np.delete(agreeing, of_known, axis=0)[:, -1].sum()
    )
    said = np.append(agreeing[of_known].sum(axis=1), np.delete(agreeing, of_known, axis=0).sum())
    true = agreeing.sum(axis=0)[np.append(columns[columns < n_classes], n_classes)]
    scores = 2 * right / np.maximum(said + true, 1)  # F1 = 2 · right / (said + true)
    return float(np.prod(scores) ** (1 / (n_classes + 1))), of_known


def train_net(
    inputs: NDArray[np.float32], classes: NDArray[np.int64], n_classes: int, rng: np.random.Generator
) -> FeatureNet:
    """The head of step 2 on inputs [l, d] of classes [l]; it has at least C outputs."""
    outputs = max(int(classes.max()) + 1, n_classes)
    net = new_net(inputs.shape[1], (outputs,), rng)
    mine, targets = torch.from_numpy(inputs), torch.from_numpy(classes)
    annealed = 0.0

    def anneal(epoch: int) -> None:
        nonlocal annealed
        annealed = min(1.0, epoch / FULL_FROM_EPOCH)

    def loss(batch: Tensor) -> Tensor:
        return evidential_loss(net(mine[batch])[1], targets[batch], annealed)

    train(net, len(inputs), loss, rng, EPOCHS, before_epoch=anneal)
    return net


def evidential_loss(logits: Tensor, classes: Tensor, annealed: float) -> Tensor:
    """The loss of step 2 for logits [b, K], read as within ±10, and classes [b]; `annealed` weighs the divergence."""
    alpha = logits.clamp(-LARGEST_LOGIT, LARGEST_LOGIT).exp() + 1
    own = alpha.gather(1, classes[:, None])[:, 0]
    wrong = alpha.scatter(1, classes[:, None], 1.0)
    even = torch.ones_like(wrong)
    divergence = kl_divergence(Dirichlet(wrong, validate_args=False), Dirichlet(even, validate_args=False))
    return (alpha.sum(dim=1).log() - own.log()).mean() + annealed * divergence.mean() / logits.shape[1]


def purity(logits: Floats, n_classes: int) -> Floats:
    """The largest logit of a known class less the largest of the others, if there are any: float64 [m]."""
    largest: Floats = logits[:, :n_classes].max(axis=1)
    return largest - logits[:, n_classes:].max(axis=1) if logits.shape[1] > n_classes else largest


def information(probabilities: Floats) -> Floats:
    """The Jensen-Shannon divergences from even and from certain probabilities, multiplied: float64 [m] of [m, C]."""
    certain = np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)]
    even = np.full(probabilities.shape, 1 / probabilities.shape[1])
    return _jensen_shannon(probabilities, certain) * _jensen_shannon(probabilities, even)


def candidates_wanted(known: Floats, informative: Floats, size: int, target: float) -> int:
    """How many samples, by falling p(x) = known [m], are candidates: size ≤ the result ≤ m.

    The fewest among which the `size` most informative have a sum of p, rounded down, of at most `target`; all if none
    is. A heap holds those `size`, so that each further candidate costs one exchange.
    """
    order = np.argsort(-known, kind="stable")
    if target <= 0:
        return len(order)
    heap = [(informative[i], known[i]) for i in order[:size]]
    heapq.heapify(heap)
    total = float(sum(p for _, p in heap))
    for length in range(size, len(order)):
        if math.floor(total) <= target:
            return length
        added = informative[order[length]], known[order[length]]
        total += added[1] - heapq.heappushpop(heap, added)[1]
    return len(order)


def wanted_precision(past: tuple[Past, ...]) -> float:
    """t, in [0, 1], after the earlier queries."""
    wanted = PRECISION_WANTED
    for precision in two_stage.precisions(past):
        wanted = min(max(wanted + PRECISION_WANTED - precision, 0.0), 1.0)
    return wanted


def _jensen_shannon(p: Floats, q: Floats) -> Floats:
    p, q = (p + LEAST_SHARE) / (1 + LEAST_SHARE * p.shape[1]), (q + LEAST_SHARE) / (1 + LEAST_SHARE * q.shape[1])
    middle = (p + q) / 2
    divergence: Floats = 0.5 * (p * np.log(p / middle) + q * np.log(q / middle)).sum(axis=1)
    return divergence
