"""MQNET: purity and informativeness weighed by a small network that learns from the last query's answers.

Park et al., "Meta-Query-Net: Resolving Purity-Informativeness Dilemma in Open-set Active Learning", NeurIPS 2022, and
the authors' code (kaist-dmlab/MQNet). What is the same: informativeness is least confidence, 1 - max P (their
`mqnet-mode CONF`, the default of their code; the runs in their README use `LL`, which needs a loss-prediction head on
the classifier); purity is the largest cosine to a labelled sample of a known class; both go through
exp((score - mean) / std) over the samples at hand; the first query takes the largest sums; the later ones the largest
scores of a network trained on the query before.

What differs:
- Purity is taken in the encoder's features. The originals train CSI features for it, on the pool itself.
- The original scores the last query's samples before their answers are in, with the classifier that chose them and
  the labels of that time. Nothing is kept between queries here, and today's classifier has been trained on those very
  samples: its loss on them is near 0, and only the invalid ones would look informative. So a classifier is trained
  again on what was labelled before. That doubles the training time of this strategy. Without a learner today's
  classifier has to do, with this flaw.
- In its first query their code leaves least confidence as it is and transforms purity alone; here both are
  transformed, as the paper writes and as their code does for `LL`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.pool import Indices, Model, Pool
from neat_backend.ranking.scores import INVALID
from neat_backend.strategies.query_net import QueryNet, train_query_net

CHUNK = 4096  # rows of one product of features

Floats = NDArray[np.float64]


def least_confidence(probabilities: Floats) -> Floats:
    """1 - max_c P[c] for probabilities [m, C]: float64 [m]."""
    return 1 - probabilities.max(axis=1)


def purity(features: NDArray[np.float32], known: NDArray[np.float32]) -> Floats:
    """Largest cosine of each unit row [m, d] to one of the known [l, d]: float64 [m]; 0 while none is known."""
    if not len(known):
        return np.zeros(len(features))
    parts = [(features[i : i + CHUNK] @ known.T).max(axis=1) for i in range(0, len(features), CHUNK)]
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)


def transformed(scores: Floats) -> Floats:
    """exp((score - mean) / std), std with divisor m: float64 [m], always above 0. Equal scores all become 1."""
    if not len(scores):
        return np.ones(0)
    deviation = scores.std()
    if deviation <= 1e-12 * max(1.0, np.abs(scores).max()):  # rounding apart, all the same
        return np.ones(len(scores))
    return np.exp((scores - scores.mean()) / deviation)


def meta_inputs(pool: Pool, indices: Indices, known: Indices) -> Floats:
    """Transformed informativeness and purity of the samples among themselves: float64 [m, 2]."""
    informativeness = least_confidence(pool.probabilities(indices)) if len(indices) else np.zeros(0)
    similarity = purity(pool.features[indices], pool.features[known])
    return np.stack([transformed(informativeness), transformed(similarity)], axis=1)


def masked_losses(probabilities: Floats, answers: NDArray[np.int64]) -> Floats:
    """What the network shall rank by: the cross-entropy of probabilities [m, C], and 0 for invalid ones."""
    chosen = probabilities[np.arange(len(answers)), np.maximum(answers, 0)]
    return np.where(answers == INVALID, 0.0, -np.log(np.maximum(chosen, np.finfo(np.float64).tiny)))


def learnt_from_last_query(pool: Pool, rng: np.random.Generator) -> QueryNet | None:
    """The network after the last query; None before the second query and where there is nothing to learn from."""
    if not pool.past or len(pool.past[-1].indices) < 2:
        return None
    last = pool.past[-1]
    known = np.setdiff1d(pool.known, last.indices)  # as they were before it
    if not len(known):
        return None
    model: Model | None = pool.model
    if pool.learner is not None:
        model = pool.learner.fit(known, pool.labels[known], pool.n_classes, rng)
    if model is None:
        return None
    then = replace(pool, model=model)
    targets = masked_losses(then.probabilities(last.indices), last.answers)
    return train_query_net(meta_inputs(then, last.indices, known), targets, rng)


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """The offered samples of largest score, best first; ties by the sum of the two inputs, then by index.

    Before the first classifier purity alone decides, without known samples informativeness alone; with neither the
    choice is at random.
    """
    if not len(pool.offered) or (pool.model is None and not len(pool.known)):
        return pool.offered[rng.permutation(len(pool.offered))[:batch_size]]
    inputs = meta_inputs(pool, pool.offered, pool.known)
    total = inputs.sum(axis=1)
    net = learnt_from_last_query(pool, rng)
    scores = total if net is None else net.scores(inputs)
    return pool.offered[np.lexsort((-total, -scores))[:batch_size]]
