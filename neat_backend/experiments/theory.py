"""When neighbours can be trusted: Theorem 0.1 of the paper and (K, σ_K) label clusterability (Definition 0.1)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def detection_error_bound(
    k: int, label_error: float, constant: float, exponent: float, radius: npt.ArrayLike
) -> Floats:
    """Theorem 0.1: the upper bound (Eq. 4) on the probability of a wrong known-class detection, for each radius.

    k            K, neighbours looked at
    label_error  e of Assumption 0.2, in [0, 1]
    constant     C > 0 and
    exponent     0 < α < 1 of Assumption 0.1: P(labels differ) <= C ρ^α at distance ρ
    radius       r_K(x) >= 0, distance of the K-th neighbour, of any shape; the result has its shape

    With q = C r^α the terms are binom(K, k) e^k (1-e)^(K-k) times q^k for k from ⌈(K-1)/2⌉ + 1 to K, and times
    q^(K-k) for k from 0 to ⌊(K+1)/2⌋ - 1. Above 1 it says nothing; it is given as it is. Worked example: K = 1 gives
    e q + (1-e) q = q; K = 2 gives e² q² + (1-e)² q². Raises ValueError for values outside these ranges.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if not 0 <= label_error <= 1:
        raise ValueError(f"label_error must be in [0, 1], not {label_error}")
    if not constant > 0 or not 0 < exponent < 1:
        raise ValueError(f"constant must be positive and exponent in (0, 1), not {constant} and {exponent}")
    radii = np.asarray(radius, np.float64)
    if (radii < 0).any():
        raise ValueError("a radius can't be negative")
    differ = constant * radii**exponent
    total = np.zeros_like(radii)
    for wrong in range(math.ceil((k - 1) / 2) + 1, k + 1):
        total += _binomial(k, wrong, label_error) * differ**wrong
    for wrong in range((k + 1) // 2):
        total += _binomial(k, wrong, label_error) * differ ** (k - wrong)
    return total


def _binomial(n: int, k: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def clusterability(labels: npt.NDArray[np.integer], neighbour_labels: npt.NDArray[np.integer]) -> Floats:
    """σ_k for k = 1 … K (Definition 0.1): the share of samples that do not have the label of all k nearest ones.

    labels: [n]. neighbour_labels: [n, K], nearest first, the sample itself left out. float64 [K], not decreasing; 0
    is k-NN label clusterability. Worked example: labels 0, 0, 1 with neighbours (0, 1), (0, 0), (1, 0) give 0, 2/3.
    Raises ValueError when the shapes don't fit, or nothing is there.
    """
    if neighbour_labels.ndim != 2 or neighbour_labels.shape[0] != len(labels) or not neighbour_labels.size:
        raise ValueError(f"labels {list(labels.shape)} and neighbours {list(neighbour_labels.shape)} don't go together")
    same = neighbour_labels == labels[:, None]  # [n, K]
    agreeing = np.logical_and.accumulate(same, axis=1)
    return 1 - agreeing.mean(axis=0)


def holder_constant(
    distances: npt.NDArray[np.floating], differ: npt.NDArray[np.bool_], exponent: float, bins: int = 20
) -> float:
    """The smallest C with P(labels differ) <= C ρ^α in each of `bins` equally large groups of pairs by distance.

    What Assumption 0.1 asks for, measured: distances ρ of pairs [m], and whether their labels differ [m]. The
    distance of a group is its mean. Worked example: one group, half of the pairs differ at distance 4, α = 1/2:
    C = 0.5/2 = 0.25. Raises ValueError for fewer pairs than groups.
    """
    if len(distances) < bins or len(distances) != len(differ):
        raise ValueError(f"{len(distances)} pairs are too few for {bins} groups")
    order = np.argsort(distances, kind="stable")
    constant = 0.0
    for group in np.array_split(order, bins):
        distance = float(distances[group].mean())
        if distance > 0:
            constant = max(constant, float(differ[group].mean()) / distance**exponent)
    return constant
