"""BGADL: query where dropout passes disagree, then generate one new sample from each answered one.

Tran et al., "Bayesian Generative Active Deep Learning", ICML 2019. `select` is BALD by Monte Carlo dropout (Gal et
al., ICML 2017), 20 passes as in the authors' code (toantm/BGADL); that code scores a random 2,000 of the pool in each
query, here all that is offered is scored. `generate` makes the new samples with a VAE-ACGAN; the experiment trains
the classifier on both.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.pool import Floats, Generated, Indices, Pool

PASSES = 20
CHUNK = 8192  # samples scored at once, so that the passes of a large pool fit the memory


def bald(logits: Floats) -> NDArray[np.float64]:
    """Mutual information of class and weights, in nats: H(mean of P) - mean of H(P), float64 [m].

    logits: [passes, m, C], one stochastic pass each.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=2, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=2, keepdims=True))  # [passes, m, C]
    p = np.exp(log_p)
    mean = p.mean(axis=0)  # [m, C]
    of_mean = -(mean * np.log(np.maximum(mean, np.finfo(np.float64).tiny))).sum(axis=1)
    mean_of = -(p * log_p).sum(axis=2).mean(axis=0)
    return np.maximum(of_mean - mean_of, 0.0)


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """The offered samples of largest mutual information, best first; ties by index. At random without a classifier."""
    if pool.model is None:
        return pool.offered[rng.permutation(len(pool.offered))[:batch_size]]
    parts = [pool.offered[i : i + CHUNK] for i in range(0, len(pool.offered), CHUNK)]
    scores = [bald(pool.model.dropout_logits(part, PASSES, rng)) for part in parts]
    order = np.argsort(-np.concatenate([np.zeros(0), *scores]), kind="stable")
    return pool.offered[order[:batch_size]]


def generate(pool: Pool, chosen: Indices, rng: np.random.Generator) -> Generated:
    """A new sample, with the same class, from each chosen one that was answered with a known class.

    The VAE-ACGAN trains on all labelled known samples, in the form in which the classifier sees them. The pool's
    labels hold the answers already. Chosen samples that are invalid or not answered make nothing; where none is left,
    or there is no learner to say what the classifier sees, the result is empty.
    """
    from neat_backend.strategies.vae_acgan import train_vae_acgan

    chosen = chosen[pool.labels[chosen] >= 0]
    if pool.learner is None:
        return Generated(np.zeros((0, pool.features.shape[1]), dtype=np.float32), np.zeros(0, dtype=np.int64))
    targets = pool.labels[chosen].astype(np.int64)
    inputs = pool.learner.inputs(chosen)
    if not len(chosen):
        return Generated(inputs.astype(np.float32), targets)
    network = train_vae_acgan(pool.learner.inputs(pool.known), pool.labels[pool.known], pool.n_classes, rng)
    return Generated(network.resample(inputs, targets, rng), targets)
