"""The worker's measurements of a project, for the web's /metrics: a snapshot beside the ranking.

Web and worker may be on different machines, but they share these files. The counts continue when another worker takes
over. If the file is damaged they begin at zero, as Prometheus expects of a process that restarts.
"""

from __future__ import annotations

import bisect
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from neat_backend.store.arrays import ProjectArrays

RERANK = "rerank"  # apply labels to the engine and compute the head's new order
PUBLISH = "publish"  # an order into Label Studio: predictions imported and counted, version switched
SERVE = "serve"  # from the arrival of a webhook until the served order reflects it
BOUNDS_SECONDS = {
    RERANK: (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    PUBLISH: (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
    SERVE: (0.25, 0.5, 1, 2, 3, 5, 10, 30, 60, 300),
}
LABELS, IMAGES, DELETED = "labels", "images", "deleted"
FOUND = (LABELS, IMAGES, DELETED)  # tasks that a comparison with Label Studio corrected, by kind of difference
SAVE_SECONDS = 5.0  # the least time between two writings
_NAME = "measures"


@dataclass
class Timings:
    """A histogram of seconds. counts: int64 [bounds + 1], the last for values above the largest bound."""

    bounds: tuple[float, ...]
    counts: np.ndarray
    sum_seconds: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, seconds)] += 1  # a bound is part of its bucket
        self.sum_seconds += seconds


@dataclass
class Measured:
    """All measurements of a project."""

    histograms: dict[str, Timings] = field(
        default_factory=lambda: {
            name: Timings(bounds, np.zeros(len(bounds) + 1, np.int64)) for name, bounds in BOUNDS_SECONDS.items()
        }
    )
    found: dict[str, int] = field(default_factory=lambda: dict.fromkeys(FOUND, 0))


def read(arrays: ProjectArrays) -> Measured:
    """The measurements written last; empty where there are none or they have other bounds."""
    measured, kept = Measured(), arrays.read_snapshot(_NAME) or {}
    for name, histogram in measured.histograms.items():
        counts, bounds = kept.get(f"{name}_counts"), kept.get(f"{name}_bounds")
        if counts is not None and bounds is not None and tuple(bounds.tolist()) == histogram.bounds:
            histogram.counts, histogram.sum_seconds = counts, float(kept[f"{name}_sum"])
    for what in FOUND:
        measured.found[what] = int(kept.get(f"found_{what}", 0))
    return measured


def write(arrays: ProjectArrays, measured: Measured) -> None:
    kept: dict[str, np.ndarray] = {}
    for name, histogram in measured.histograms.items():
        kept |= {
            f"{name}_bounds": np.array(histogram.bounds),
            f"{name}_counts": histogram.counts,
            f"{name}_sum": np.array(histogram.sum_seconds),
        }
    arrays.write_snapshot(_NAME, kept | {f"found_{what}": np.array(count) for what, count in measured.found.items()})


class Measures:
    """Collects measurements from the threads of one worker and writes them from time to time."""

    def __init__(self, arrays: ProjectArrays, clock: Callable[[], float] = time.monotonic) -> None:
        self._arrays, self._clock = arrays, clock
        self._lock = threading.Lock()
        self._measured: Measured | None = None  # read at the first measurement
        self._changed = False
        self._saved_at = -math.inf

    def observe(self, name: str, seconds: float) -> None:
        with self._lock:
            self._at_hand().histograms[name].observe(max(0.0, seconds))

    def found(self, what: str, count: int) -> None:
        """Count tasks for which a comparison found a difference that no webhook reported."""
        if count:
            with self._lock:
                self._at_hand().found[what] += count

    def save(self) -> None:
        """Write new measurements, at most every SAVE_SECONDS. Raises StoreError where they can't be written."""
        with self._lock:
            if not self._changed or self._clock() - self._saved_at < SAVE_SECONDS:
                return
            self._saved_at = self._clock()
            write(self._arrays, self._at_hand())
            self._changed = False

    def due_seconds(self) -> float:
        """Time until new measurements may be written; math.inf where there are none."""
        return max(0.0, self._saved_at + SAVE_SECONDS - self._clock()) if self._changed else math.inf

    def _at_hand(self) -> Measured:
        if self._measured is None:
            self._measured = read(self._arrays)
        self._changed = True
        return self._measured
