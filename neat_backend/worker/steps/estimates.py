"""How many known images the pool still holds, estimated from the labels that there are.

The labels are no random sample: the order went for known images. So the estimate comes from a model of
P(known | features, neighbours), which is asked about every unlabelled task: a support vector machine with a
Gaussian kernel, which far from all labels gives an undecided answer where a linear one would be sure, put on
the scale of probabilities by a logistic regression on decisions for tasks that it had not seen (five folds),
once with the neighbours' votes and once without; the estimate is the mean of the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.svm import SVC

Floats = NDArray[np.float64]

FOLDS = 5
LEAST_OF_EACH = 10  # known and invalid labels; below it, nothing is estimated
MOST_LABELS = 2000  # looked at; of more, a sample
MOST_ASKED = 20_000  # of the pool; of more, a sample
MOST_RESAMPLED = 2000
REFITS = 8  # models of labels drawn with replacement, for the interval
# What no resampling shows: the order has chosen the labels. So much of the pool (less where the model is sure) on
# either side, and the answer of a model without the votes, made 9 of 10 intervals hold in simulations on digits and
# Fashion-MNIST; docs/dashboard.md.
MODEL_ERROR = 0.12


@dataclass(frozen=True)
class Estimate:
    """Known images among the unlabelled, with an interval that 9 of 10 simulations kept to."""

    known: float
    low: float
    high: float
    wanted: float  # known ones among the tasks that were asked about apart


def known_left(
    labelled: Floats,
    votes: Floats,
    is_known: NDArray[np.bool_],
    pool: Floats,
    pool_votes: Floats,
    rng: np.random.Generator,
    wanted: NDArray[np.int64] | None = None,
) -> Estimate | None:
    """Estimate how many of the unlabelled tasks are of known classes; None of too few labels to tell.

    labelled [m, d], pool [n, d]   reduced features (see `projection`)
    votes [m], pool_votes [n]      share of known ones among each task's K nearest labelled tasks, itself left out
    wanted                         rows of the pool to be counted apart
    """
    if min(int(is_known.sum()), int((~is_known).sum())) < LEAST_OF_EACH:
        return None
    if len(labelled) > MOST_LABELS:
        some = rng.choice(len(labelled), MOST_LABELS, replace=False)
        labelled, votes, is_known = labelled[some], votes[some], is_known[some]
    if not len(pool):
        return Estimate(0.0, 0.0, 0.0, 0.0)
    asked = rng.permutation(len(pool))[:MOST_ASKED]
    model = _Model(labelled, votes, is_known)
    probabilities = model(pool[asked], pool_votes[asked])
    few = asked[:MOST_RESAMPLED]
    shares = []
    for _ in range(REFITS):
        drawn = rng.integers(0, len(labelled), len(labelled))
        if min(int(is_known[drawn].sum()), int((~is_known[drawn]).sum())) >= FOLDS:
            again = _Model(labelled[drawn], votes[drawn], is_known[drawn])
            shares.append(float(again(pool[few], pool_votes[few]).mean()))
    spread = 1.64 * float(np.std(shares)) if len(shares) > 1 else 1.0
    undecided = float(np.sqrt(np.mean(4 * probabilities * (1 - probabilities))))
    size = float(len(pool))
    point = size * float(probabilities.mean())
    other = size * float(model.by_features(pool[asked]).mean())
    half = size * float(np.hypot(spread, MODEL_ERROR * undecided))
    apart = 0.0 if wanted is None or not len(wanted) else float(model(pool[wanted], pool_votes[wanted]).sum())
    low, high = min(point, other) - half, max(point, other) + half
    return Estimate((point + other) / 2, max(0.0, low), min(size, high), apart)


class _Model:
    """(reduced features, votes) → P(known); `by_features` does without the votes."""

    def __init__(self, labelled: Floats, votes: Floats, is_known: NDArray[np.bool_]) -> None:
        self._machine = SVC(C=10.0, gamma="scale")
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
        unseen = cross_val_predict(self._machine, labelled, is_known, cv=folds, method="decision_function")
        self._scale = LogisticRegression().fit(np.column_stack([unseen, _log_odds(votes)]), is_known)
        self._by_features = LogisticRegression().fit(unseen[:, None], is_known)
        self._machine.fit(labelled, is_known)

    def by_features(self, pool: Floats) -> Floats:
        found: Floats = self._by_features.predict_proba(self._machine.decision_function(pool)[:, None])[:, 1]
        return found

    def __call__(self, pool: Floats, votes: Floats) -> Floats:
        decisions = self._machine.decision_function(pool)
        found: Floats = self._scale.predict_proba(np.column_stack([decisions, _log_odds(votes)]))[:, 1]
        return found


def _log_odds(shares: Floats) -> Floats:
    """Of shares in [0, 1], kept finite: 0 and 1 count as 1/22 and 21/22."""
    inside = (shares * 10 + 0.5) / 11
    return np.log(inside / (1 - inside))
