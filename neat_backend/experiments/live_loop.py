"""One live run: query an order for one label at a time, and measure its results every ten labels.

All orders with one seed and one set of known classes begin with the same labels, and are judged by the same classifier:
multinomial logistic regression on the encoder's features, trained on the known labels so far.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from neat_backend.experiments import orders
from neat_backend.experiments.checkpoints import Run, RunFolder
from neat_backend.experiments.live_metrics import effective_classes, longest_run, seen_after
from neat_backend.experiments.loop import Samples
from neat_backend.experiments.models import Clock
from neat_backend.experiments.oracle import Oracle
from neat_backend.experiments.orders import EngineOrder
from neat_backend.experiments.protocols import LiveProtocol
from neat_backend.experiments.splits import codes_of, labels_of_each, stream
from neat_backend.ranking.pool import Indices, Learner
from neat_backend.ranking.prefill import MODES

EVERY = 10  # labels between two points
WINDOW = 100  # of the last known labels that the classifier is tested on, as the worker does

Point = dict[str, Any]


@dataclass(frozen=True)
class LiveSamples(Samples):
    """`learner` trains in rounds; `judge` is the classifier whose accuracy is reported, the same for all orders."""

    judge: Learner


def points_of(protocol: LiveProtocol) -> list[int]:
    """Labels after which figures are taken: 0, every ten, and the last."""
    return sorted({*range(0, protocol.labels, EVERY), protocol.labels})


def start_of(protocol: LiveProtocol, labels: Indices, run: Run) -> Indices:
    """Samples of the pool that a run begins with, the same for all orders; labels [n] are the data set's own.

    Raises SettingsError where a class has too few.
    """
    return labels_of_each(codes_of(labels, run.known), protocol.start, stream("start", run.seed, run.known))


class Filling:
    """Pre-filled choices; the classifier is tested on each known label before it learns it."""

    def __init__(self, order: EngineOrder) -> None:
        self.filled = {mode: [0, 0] for mode in MODES}
        self._order = order
        self._right: deque[bool] = deque(maxlen=WINDOW)

    def answer(self, sample: int, code: int) -> None:
        """Record a label, a class or INVALID; call it before the order has the label."""
        for mode, choice in self._order.filled_in(sample, (sum(self._right), len(self._right))).items():
            if choice is not None:
                self.filled[mode][0] += 1
                self.filled[mode][1] += choice == code
        predicted = self._order.predicted(sample)
        if code >= 0 and predicted >= 0:
            self._right.append(predicted == code)


# Hundreds of small fits: BLAS's threads would wait for each other longer than they work.
@threadpool_limits.wrap(limits=1, user_api="blas")
def run_labels(
    protocol: LiveProtocol,
    samples: LiveSamples,
    folder: RunFolder,
    on_point: Callable[[int, Point], None] = lambda number, point: None,
) -> dict[str, Any]:
    """Do one run, unless it is done, and return the content of its file:

        order, seed, classes    which run it is
        start                   samples labelled at the start, as rows of the pool
        asked, codes            queried samples, in order, and the answers: class code, or -1 = invalid
        points                  figures after 0, 10, 20 … labels (`_point`)
        all_seen_after          labels until every class had one; None = not in this run
        filled                  for each mode of NEAT_PREFILL, how many queried samples had a choice filled in, and
                                how many of these were right; None without an engine
        seconds                 in all, by phase: fit and apply (of the linear head), order (labels in, next task out),
                                round, testing

    A pool that runs out ends the run. `on_point(number, figures)` is called as soon as there is a point.
    """
    done = folder.live()
    if done is not None:
        return done
    run, n = folder.run, len(samples.features)
    codes = codes_of(samples.labels, run.known)  # [n + m]
    test = np.flatnonzero(codes[n:] >= 0) + n
    start = start_of(protocol, samples.labels[:n], run)
    oracle, clock = Oracle(codes[:n], start), Clock()
    order = orders.build(protocol, samples, run, clock)
    order.take(start.tolist(), codes[start].tolist())
    filling = Filling(order) if isinstance(order, EngineOrder) else None
    queried: list[int] = []
    points: list[Point] = []
    wanted = set(points_of(protocol))
    most = min(protocol.labels, n - len(start))

    def look() -> None:
        if len(queried) in wanted or len(queried) == most:
            points.append(_point(run.known, queried, codes, oracle, samples, test, clock))
            on_point(len(points) - 1, points[-1])

    look()
    while len(queried) < most:
        for sample in order.next()[: most - len(queried)]:
            code = oracle.answer(np.array([sample]))
            if filling is not None:
                filling.answer(sample, int(code[0]))
            order.take([sample], code.tolist())
            queried.append(sample)
            look()
    answers = codes[queried].tolist()
    made = {
        "order": run.strategy,
        "seed": run.seed,
        "classes": list(run.known),
        "start": start.tolist(),
        "asked": queried,
        "codes": answers,
        "points": points,
        "all_seen_after": seen_after(answers, codes[start].tolist(), len(run.known)),
        "filled": None if filling is None else filling.filled,
        "seconds": {phase: round(seconds, 6) for phase, seconds in sorted(clock.seconds.items())},
    }
    folder.write_live(made)
    return made


def _point(
    known: tuple[int, ...],
    queried: list[int],
    codes: Indices,
    oracle: Oracle,
    samples: LiveSamples,
    test: Indices,
    clock: Clock,
) -> Point:
    """Accuracy is None without test images or with fewer than two labelled classes; precision before any query."""
    labels, answers = oracle.labels, codes[queried]
    taught = np.flatnonzero(labels >= 0)
    counts = np.bincount(labels[taught], minlength=len(known))
    accuracy = None
    if len(test) and (counts > 0).sum() > 1:
        with clock("testing"):
            model = samples.judge.fit(taught, labels[taught], len(known), np.random.default_rng(0))
            accuracy = float((model.logits(test).argmax(axis=1) == codes[test]).mean())
    return {
        "labels": len(queried),
        "accuracy": accuracy,
        "precision": float((answers >= 0).mean()) if queried else None,
        "effective": effective_classes(counts),
        "longest_run": longest_run(answers.tolist()),
        "seen": int((counts > 0).sum()),
        "known": len(taught),
        "invalid": int((labels == -1).sum()),
    }
