"""The tail of a sample of distances as a Weibull distribution, the way OpenMax's library (libMR) fits it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import weibull_min

Floats = NDArray[np.float64]

TAIL_SIZE = 20
SHIFT = 1.0  # libMR moves the smallest distance of the tail to 1, so that all are positive
LEAST_SIGMA = 1e-6


@dataclass(frozen=True)
class Tail:
    """Weibull distribution with a location; `shape` is inf where the fitted distances were all the same."""

    location: float
    scale: float
    shape: float

    def cdf(self, distances: Floats) -> Floats:
        """How surely a distance lies beyond the tail, in [0, 1], never falling: float64 like `distances`.

        1 - exp(-((d - location) / scale)^shape), and 0 below the location.
        """
        if np.isinf(self.shape):
            return (distances > self.location + self.scale).astype(np.float64)
        with np.errstate(over="ignore"):  # a large power is an infinite one: the value is 1 either way
            values: Floats = weibull_min.cdf(distances, self.shape, loc=self.location, scale=self.scale)
        return values


def fit_tail(distances: Floats, size: int = TAIL_SIZE) -> Tail:
    """The `size` largest distances, or all where there are fewer, as a Weibull distribution.

    The location isn't fitted: it is the smallest distance of the tail minus 1. libMR's Python interface, which the
    authors' OpenMax calls, shifts the tail so before it fits (`translate_amount` = 1). Scale and shape are the
    maximum of the likelihood: with x = log(d - location), the shape 1/s solves s + mean(x) = Σ x e^(x/s) / Σ e^(x/s).
    scipy's own fit starts from shape 1 and stops early at the large shapes that a narrow tail has, so that this one
    equation is solved instead. Distances that are all the same leave a step: 1 above them, 0 elsewhere.

    distances: float64 [n]. Raises ValueError when there are none.
    """
    if not len(distances):
        raise ValueError("a tail needs at least one distance")
    tail = np.sort(distances)[-size:]
    location = float(tail[0]) - SHIFT
    logs = np.log(tail - location)  # [t], the smallest is 0
    width = float(logs.max())
    if width <= 0:
        return Tail(location, SHIFT, float("inf"))
    x = (logs - width) / width  # into [-1, 0]: then a root lies in (0, 1], whatever the distances
    sigma = float(brentq(lambda s: s + x.mean() - np.average(x, weights=np.exp(x / s)), LEAST_SIGMA, 1.0, xtol=1e-14))
    log_scale = width * (1 + sigma * np.log(np.mean(np.exp(x / sigma))))
    return Tail(location, float(np.exp(log_scale)), 1 / (width * sigma))
