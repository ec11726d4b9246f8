"""EAOA: energies for both kinds of uncertainty, and candidates as many as the last precision allows.

Zong and Huang, "Rethinking Epistemic and Aleatoric Uncertainty for Active Open-Set Annotation: An Energy-Based
Approach", CVPR 2025, and the authors' code (chenchenzong/EAOA). A query:

1.  A detector with C + 1 outputs (invalid = class C) learns by cross-entropy and 0.01 times a margin loss on
    E(x) = -log Σ_c exp(f_c(x)) over the known classes: below -25 for known samples, above -7 for invalid ones.
2.  Epistemic uncertainty is the energy E(x) + log(1 + exp(f_C(x))), twice: of the detector's outputs f, and of counts.
    The counts say how many labelled samples of each class have x among their 250 nearest unlabelled ones (cosine in
    the detector's hidden layer), divided by the size of the class over the mean size of the known ones.
3.  p(x) is the product of the posteriors of the component of smaller mean, of a two-component mixture fitted to each
    of the two energies.
4.  Aleatoric uncertainty is log Σ exp of all but the largest logit of the target classifier, less that of all: 0 where
    two classes are as likely, far below where one is certain. a(x) is its posterior of the component of larger mean.
5.  Of each predicted class (target classifier) the k·⌈B/C⌉ with the largest p are candidates, and the ⌈B/C⌉ with the
    largest a of these are queried.
6.  k is 5 at first. After a query with a precision above 0.65 it is one more, after one below 0.55 one less.

What is the same: all numbers above, 200 epochs, the mixtures' settings.

What differs:
- The detector is a `feature_net` on the encoder's features; the target classifier is that of the round.
- Before anything is invalid their code divides the counts by C/(C+1) more than the paper says; here the mean is over
  the known classes in every query. A class that is not labelled yet has no counts.
- Many posteriors are 0 or 1 to the last digit, and their code leaves the order among these to the sort. Here it is by
  the detector's energy, and by the aleatoric uncertainty itself.
- k follows from the precision of the earlier queries that the pool knows of.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from neat_backend.ranking.pool import Indices, Past, Pool
from neat_backend.strategies import two_stage
from neat_backend.strategies.bual import unit_range
from neat_backend.strategies.feature_net import FeatureNet, at_random, mean_of, new_net, scaled, targets_of, train
from neat_backend.strategies.lfosa import larger_component

EPOCHS = 200
ENERGY_WEIGHT = 0.01
KNOWN_BELOW, INVALID_ABOVE = -25.0, -7.0
REVERSE_NEIGHBOURS = 250
FIRST_K = 5
PRECISION_WANTED, TOLERATED = 0.6, 0.05

Floats = NDArray[np.float64]


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """The choice of step 5, by falling aleatoric uncertainty; what it lacks is filled up by p.

    At random while there is no classifier or no sample of a known class.
    """
    size = min(batch_size, len(pool.offered))
    if not size or pool.model is None or not len(pool.known):
        return at_random(pool.offered, size, rng)
    inputs = scaled(pool.features)
    detector = train_detector(pool, inputs, rng)
    targets = targets_of(pool.labels[pool.labelled], pool.n_classes).numpy()
    hidden, logits = detector.outputs(inputs[pool.offered])
    counts = reverse_counts(detector.outputs(inputs[pool.labelled])[0], targets, hidden, pool.n_classes)
    certain = len(pool.invalid) > 0
    energy = energies(logits, pool.n_classes, certain)
    seeds = rng.integers(2**31, size=3)
    known = larger_component(-unit_range(energy), int(seeds[0]))
    known = known * larger_component(-unit_range(energies(counts, pool.n_classes, certain)), int(seeds[1]))
    outputs = pool.model.logits(pool.offered).astype(np.float64)
    doubt = aleatoric(outputs)
    informative = larger_component(unit_range(doubt), int(seeds[2]))
    share = -(-size // pool.n_classes)
    chosen = two_stage.choose(
        outputs.argmax(axis=1),
        _ranks(known, -energy),
        _ranks(informative, doubt),
        pool.n_classes,
        candidate_factor(pool.past) * share,
        size,
        rng,
    )
    return pool.offered[chosen]


def energies(logits: Floats, n_classes: int, with_unknown: bool) -> Floats:
    """Epistemic uncertainty of logits [m, C + 1], the last of them of what is unknown: float64 [m].

    -log Σ_c exp(f_c) over the known classes and, with the unknown, + log(1 + exp(f_C)).
    """
    energy: Floats = -np.logaddexp.reduce(logits[:, :n_classes], axis=1)
    return energy + np.logaddexp(0, logits[:, n_classes]) if with_unknown else energy


def aleatoric(logits: Floats) -> Floats:
    """log Σ exp of all logits but the largest, less log Σ exp of all: float64 [m] of [m, C]; equal for one class."""
    if logits.shape[1] < 2:
        return np.zeros(len(logits))
    others = np.sort(logits, axis=1)[:, :-1]
    doubt: Floats = np.logaddexp.reduce(others, axis=1) - np.logaddexp.reduce(logits, axis=1)
    return doubt


def reverse_counts(labelled: Floats, targets: Indices, unlabelled: Floats, n_classes: int) -> Floats:
    """How many labelled samples of each class have each unlabelled one among their nearest: float64 [u, C + 1].

    labelled [l, h] with targets [l] in 0..C, unlabelled [u, h]: nearest by cosine, 250 or all there are. Counts are
    divided by the size of the class over the mean size of the known classes; 0 for a class without samples.
    """
    counts = np.zeros((len(unlabelled), n_classes + 1))
    units = F.normalize(torch.from_numpy(unlabelled).float(), dim=1)
    cosines = F.normalize(torch.from_numpy(labelled).float(), dim=1) @ units.T  # [l, u]
    nearest = cosines.topk(min(REVERSE_NEIGHBOURS, len(units)), dim=1).indices.numpy()
    np.add.at(counts, (nearest, targets[:, None]), 1)
    sizes = np.bincount(targets, minlength=n_classes + 1)
    return counts / np.where(sizes > 0, sizes / sizes[:n_classes].mean(), 1)


def candidate_factor(past: tuple[Past, ...]) -> int:
    """k, how many times its share of the batch each class has candidates: at least 1."""
    factor = FIRST_K
    for precision in two_stage.precisions(past):
        if abs(precision - PRECISION_WANTED) > TOLERATED:
            factor = max(factor + (1 if precision > PRECISION_WANTED else -1), 1)
    return factor


def train_detector(pool: Pool, inputs: NDArray[np.float32], rng: np.random.Generator) -> FeatureNet:
    """The detector of step 1, on all that is labelled; without invalid samples by cross-entropy alone."""
    labelled = pool.labelled
    mine, targets = torch.from_numpy(inputs[labelled]), targets_of(pool.labels[labelled], pool.n_classes)
    net = new_net(inputs.shape[1], (pool.n_classes + 1,), rng)

    def loss(batch: Tensor) -> Tensor:
        _, logits = net(mine[batch])
        value = F.cross_entropy(logits, targets[batch])
        return value + ENERGY_WEIGHT * margin_loss(logits, targets[batch]) if len(pool.invalid) else value

    train(net, len(labelled), loss, rng, EPOCHS)
    return net


def margin_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean square of what the known samples' E is above -25, and of what the invalid ones' is below -7.

    logits [b, C + 1], targets [b] in 0..C; a kind that the batch does not have counts 0.
    """
    n_classes = logits.shape[1] - 1
    energy = -torch.logsumexp(logits[:, :-1], dim=1)
    known = targets < n_classes
    above = F.relu(energy[known] - KNOWN_BELOW).square()
    below = F.relu(INVALID_ABOVE - energy[~known]).square()
    return mean_of(above) + mean_of(below)


def _ranks(values: Floats, ties: Floats) -> Floats:
    """The places of the values [m] in rising order, equal ones by rising `ties`: one number for both."""
    ranks = np.empty(len(values))
    ranks[np.lexsort((ties, values))] = np.arange(len(values))
    return ranks
