"""LFOSA: a detector with one output more than there are known classes, and a mixture on its largest activations.

Ning et al., "Active Learning for Open-set Annotation", CVPR 2022, and the authors' code (ningkp/LfOSA). The
temperature acts in training only: the activation that the mixture sees is the raw logit there and here.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.pool import Indices, Model, Pool

TEMPERATURE = 0.5
MAX_ITERATIONS = 10
TOLERANCE = 1e-2
VARIANCE_ADDED = 5e-4

Floats = NDArray[np.float64]


def train_detector(pool: Pool, rng: np.random.Generator) -> Model | None:
    """A classifier of C + 1 outputs on known and invalid samples, the invalid ones as class C.

    Before anything is invalid it trains on the known alone, as the authors' first one does. Without a learner the
    classifier of the round stands in: it has no output for the unknown, so the mixture alone decides. None where
    there is neither, or nothing labelled.
    """
    labelled = pool.labelled
    if pool.learner is None or not len(labelled):
        return pool.model
    labels = pool.labels[labelled]
    targets = np.where(labels < 0, pool.n_classes, labels)
    return pool.learner.fit(labelled, targets, pool.n_classes + 1, rng, temperature=TEMPERATURE)


def larger_component(activations: Floats, seed: int, components: int = 2) -> Floats:
    """Posterior of the component of largest mean in a mixture of `components` fitted to activations [m]: float64 [m].

    Fewer activations than components can't be fitted: 0. (The authors' code leaves such a group out of the query.)
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    if len(activations) < components:
        return np.zeros(len(activations))
    mixture = GaussianMixture(
        components, max_iter=MAX_ITERATIONS, tol=TOLERANCE, reg_covar=VARIANCE_ADDED, random_state=seed
    )
    column = activations[:, None]
    with warnings.catch_warnings():  # ten iterations may not converge, and equal activations are one cluster: meant
        warnings.simplefilter("ignore", ConvergenceWarning)
        mixture.fit(column)
    posterior: Floats = mixture.predict_proba(column)[:, mixture.means_.argmax()]
    return posterior


def known_probability(logits: Floats, n_classes: int, rng: np.random.Generator) -> Floats:
    """How surely a sample is of a known class, from the detector's logits [m, outputs]: float64 [m].

    Samples are grouped by the class of their largest logit, and each group has its own mixture; what is predicted
    unknown (class C) has 0.
    """
    predicted, activation = logits.argmax(axis=1), logits.max(axis=1)
    probability = np.zeros(len(logits))
    for label, seed in enumerate(rng.integers(2**31, size=n_classes)):
        group = predicted == label
        probability[group] = larger_component(activation[group], int(seed))
    return probability


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """The offered samples of largest posterior, best first.

    Ties, many posteriors are 1: by larger activation. What is predicted unknown comes last, that of smallest
    activation first. At random where there is no detector (see `train_detector`).
    """
    if not len(pool.offered):
        return pool.offered.copy()
    detector = train_detector(pool, rng)
    if detector is None:
        return pool.offered[rng.permutation(len(pool.offered))[:batch_size]]
    logits = detector.logits(pool.offered).astype(np.float64)
    probability = known_probability(logits, pool.n_classes, rng)
    unknown, activation = logits.argmax(axis=1) == pool.n_classes, logits.max(axis=1)
    order = np.lexsort((np.where(unknown, activation, -activation), -probability, unknown))
    return pool.offered[order[:batch_size]]
