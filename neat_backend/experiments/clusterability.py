"""How well an encoder suits a data set, measured by the labels of neighbours, before any label is paid for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.experiments.splits import Known, codes_of
from neat_backend.experiments.theory import clusterability, detection_error_bound, holder_constant
from neat_backend.strategies.nearest import nearest

EXPONENT = 0.5  # α of Assumption 0.1; the paper leaves it open
PAIRS = 20_000  # whose distances the constant C is measured on


@dataclass(frozen=True)
class Suitability:
    """sigma       σ_k for k = 1 … K over all classes (Definition 0.1)
    purity         share of the K neighbours with the sample's label, mean over samples
    chance         the same for neighbours drawn at random
    open_sigma     σ_k when all unknown classes count as one: what detection of known classes needs
    pure_precision, pure_recall   of the rule "all K neighbours are known", with everything else labelled
    constant       C of Assumption 0.1, measured with α = EXPONENT
    bound          Theorem 0.1 with it and faultless labels, mean over samples; above 1 it is void
    """

    k: int
    sigma: NDArray[np.float64]
    purity: float
    chance: float
    open_sigma: NDArray[np.float64]
    pure_precision: float
    pure_recall: float
    constant: float
    bound: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "k": self.k,
            "sigma": {str(i + 1): float(value) for i, value in enumerate(self.sigma)},
            "purity": self.purity,
            "chance": self.chance,
            "open_sigma": {str(i + 1): float(value) for i, value in enumerate(self.open_sigma)},
            "pure_precision": self.pure_precision,
            "pure_recall": self.pure_recall,
            "constant": self.constant,
            "exponent": EXPONENT,
            "bound": self.bound,
        }


def measure(
    features: NDArray[np.float32], labels: NDArray[np.int64], known: Known, k: int, rng: np.random.Generator
) -> Suitability:
    """Of unit feature vectors [n, d] and all their labels [n]. Raises ValueError for k outside 1..n-1."""
    n = len(labels)
    if not 1 <= k < n:
        raise ValueError(f"K must be in 1..{n - 1}, not {k}")
    every = np.arange(n)
    indices, similarities = nearest(np.ascontiguousarray(features), every, every, k)
    codes = codes_of(labels, known)  # [n], INVALID for all unknown classes
    near, near_codes = labels[indices], codes[indices]  # [n, k]
    shares = np.bincount(labels) / n
    held = np.asarray((near_codes >= 0).all(axis=1))  # [n]
    first, second = rng.integers(n, size=(2, PAIRS))
    different = first != second
    first, second = first[different], second[different]
    # The pairs that matter are near ones, so each sample's neighbours are in.
    distances = _distance(
        np.concatenate([np.einsum("ij,ij->i", features[first], features[second]), similarities.ravel()])
    )
    differ = np.concatenate([labels[first] != labels[second], (near != labels[:, None]).ravel()])
    constant = holder_constant(distances, differ, EXPONENT)
    radius = _distance(similarities[:, -1])
    bound = float(detection_error_bound(k, 0.0, constant, EXPONENT, radius).mean()) if constant > 0 else 0.0
    return Suitability(
        k,
        clusterability(labels, near),
        float((near == labels[:, None]).mean()),
        float((shares**2).sum()),
        clusterability(codes, near_codes),
        float((codes[held] >= 0).mean()) if held.any() else float("nan"),
        float(held[codes >= 0].mean()),
        constant,
        bound,
    )


def _distance(cosines: NDArray[np.floating]) -> NDArray[np.float64]:
    """Cosine distance, 1 - cos."""
    return np.maximum(1 - cosines.astype(np.float64), 0)
