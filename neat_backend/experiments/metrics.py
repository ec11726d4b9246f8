"""Figures of merit from the rounds of runs: precision and recall (Eq. 6), accuracy and its area, differences.

Rounds are numbered from 0, the initial labels; query t makes round t.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rounds = Sequence[Mapping[str, Any]]  # of one run, as loop.run_rounds makes them
Floats = NDArray[np.float64]
PHASES = ("query", "detector", "generation", "inference", "training", "testing")


def accuracies(rounds: Rounds) -> Floats:
    """On the known classes' test set after each round, [T + 1]; NaN where there is no test set."""
    return np.array([math.nan if one["accuracy"] is None else one["accuracy"] for one in rounds], np.float64)


def precisions(rounds: Rounds) -> Floats:
    """Share of known-class samples in each query, Eq. 6: [T]. The last query of a pool that runs out is smaller
    than B; its precision is of the queried samples."""
    return np.array([one["found"] / one["asked"] for one in rounds[1:]], np.float64)


def found(rounds: Rounds) -> Floats:
    """Known samples found by the queries so far, [T + 1]; the initial labels don't count."""
    return np.cumsum([one["found"] for one in rounds]).astype(np.float64)


def cumulative_precisions(rounds: Rounds) -> Floats:
    """`precisions` over all queries so far, [T]."""
    return found(rounds)[1:] / np.cumsum([one["asked"] for one in rounds])[1:]


def recalls(rounds: Rounds) -> Floats:
    """Known samples found so far, of those that were in the pool before the first query, Eq. 6: [T + 1]."""
    return found(rounds) / max(1, rounds[0]["known_in_pool"])


def recalls_with_initial(rounds: Rounds) -> Floats:
    """`recalls` with the initial labels in both counts, as the authors' code reports it: [T + 1]."""
    initial = rounds[0]["initial"]
    return (found(rounds) + initial) / (initial + rounds[0]["known_in_pool"])


def area(values: Sequence[float] | Floats) -> float:
    """Area under a curve of one value for each round, as a share: the mean of the trapezoids, [T + 1] → scalar.

    Equals the mean over rounds with half weight for the first and the last; a constant curve has its value.
    Worked example: 0.5, 0.7, 0.9 → (0.6 + 0.8) / 2 = 0.7. A single value is its own area.
    """
    points = np.asarray(values, np.float64)
    return float(points[0]) if len(points) == 1 else float(((points[:-1] + points[1:]) / 2).mean())


def minutes(rounds: Rounds, class_seconds: float, none_seconds: float) -> Floats:
    """Annotator's minutes for the queries so far, without the initial labels: [T + 1].

    A label of a known class takes class_seconds, "none of these" none_seconds. Worked example: 60 known and 40 invalid
    at 3 and 1.5 seconds take 4 minutes.
    """
    invalid = np.cumsum([one["asked"] for one in rounds]) - found(rounds)
    spent: Floats = (class_seconds * found(rounds) + none_seconds * invalid) / 60
    return spent


def summary(rounds: Rounds) -> dict[str, float]:
    """The figures that tables are made of, of one run."""
    curve = accuracies(rounds)
    has_queries = len(rounds) > 1
    values = {
        "accuracy": float(curve[-1]),
        "first_accuracy": float(curve[1]) if has_queries else math.nan,
        "area": area(curve),
        "precision": float(precisions(rounds).mean()) if has_queries else math.nan,
        "cumulative_precision": float(cumulative_precisions(rounds)[-1]) if has_queries else math.nan,
        "first_precision": float(precisions(rounds)[0]) if has_queries else math.nan,
        "recall": float(recalls(rounds)[-1]),
        "recall_with_initial": float(recalls_with_initial(rounds)[-1]),
        "found": float(found(rounds)[-1]),
        "effective": rounds[-1].get("effective", math.nan),  # older checkpoints lack it
        "queries": float(len(rounds) - 1),
    }
    for phase in PHASES:  # of a round, the mean over those with a query; training is also done in round 0
        counted = rounds if phase in ("training", "testing") else rounds[1:]
        seconds = [one["seconds"].get(phase, 0.0) for one in counted]
        values[f"seconds_{phase}"] = float(np.mean(seconds)) if seconds else 0.0
    values["seconds_total"] = float(sum(sum(one["seconds"].values()) for one in rounds))
    return values


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n - 1); that of one value is NaN."""
    array = np.asarray(values, np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else math.nan


@dataclass(frozen=True)
class Difference:
    """mean ± half: the 95 % interval of Student's t over n pairs, NaN for one; p of a paired two-sided t-test."""

    mean: float
    half: float
    n: int
    p: float


def paired(values: Sequence[float], others: Sequence[float], confidence: float = 0.95) -> Difference:
    """Mean of values - others, pair by pair: the same seed and the same known classes.

    Worked example: differences 1, 2, 3 have mean 2 and standard error 1/√3; t(0.975, 2) = 4.303, so half = 2.484.
    Raises ValueError when the two are not of one length, or empty.
    """
    from scipy.stats import t

    if len(values) != len(others) or not len(values):
        raise ValueError(f"{len(values)} and {len(others)} values make no pairs")
    differences = np.asarray(values, np.float64) - np.asarray(others, np.float64)
    n, mean = len(differences), float(differences.mean())
    if n == 1:
        return Difference(mean, math.nan, 1, math.nan)
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * error
    p = float(2 * t.sf(abs(mean) / error, n - 1)) if error else (1.0 if mean == 0 else 0.0)
    return Difference(mean, half, n, p)
