"""One run: Algorithm 1 of the paper, with any strategy in place of lines 4 to 10.

Round 0 trains on the initial labels. Round t queries B labels with the classifier of round t - 1, and trains from
scratch on all labels of known classes. Each round is stored before the next begins.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend import strategies
from neat_backend.errors import NeatError
from neat_backend.experiments.checkpoints import Run, RunFolder
from neat_backend.experiments.live_metrics import effective_classes
from neat_backend.experiments.models import Clock, TimedLearner, TimedModel
from neat_backend.experiments.oracle import Oracle
from neat_backend.experiments.protocols import Protocol
from neat_backend.experiments.splits import codes_of, initial_labels, stream
from neat_backend.ranking.pool import Generated, Indices, Learner, Model, Past, Pool
from neat_backend.ranking.scores import INVALID

Figures = dict[str, Any]


@dataclass(frozen=True)
class Samples:
    """Data shared by all runs of an experiment. Sample i < n is of the pool, the others are of the test part.

    features     float32 [n, d], unit rows, of the pool
    labels       int64 [n + m], the data set's own class numbers
    learner      over all n + m samples
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    learner: Learner


class FirstModels:
    """The classifier of round 0 by seed and known classes: the same for every strategy, so it is trained once."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] = ()
        self._kept: tuple[Model, float] | None = None

    def get(self, key: tuple[Any, ...], train: Callable[[], Model], clock: Clock) -> Model:
        """The classifier for this key, trained at the first call. Each call counts its training time."""
        if self._kept is None or self._key != key:
            before = clock.seconds.get("training", 0.0)
            with clock("training"):
                model = train()
            self._key, self._kept = key, (model, clock.seconds["training"] - before)
        else:
            clock.seconds["training"] = clock.seconds.get("training", 0.0) + self._kept[1]
        return copy(self._kept[0])  # each strategy gets its own cache


def run_rounds(
    protocol: Protocol,
    samples: Samples,
    folder: RunFolder,
    on_round: Callable[[int, Figures], None] = lambda number, figures: None,
    first_models: FirstModels | None = None,
) -> list[Figures]:
    """Do the rest of one run, and return the figures of all its rounds.

    An interrupted run continues after its last finished round, with the results of an uninterrupted one. There are
    fewer rounds if the pool runs out. Raises NeatError when a strategy breaks its contract.
    """
    run = folder.run
    n = len(samples.features)
    codes = codes_of(samples.labels, run.known)  # [n + m]
    test = np.flatnonzero(codes[n:] >= 0) + n
    oracle = Oracle(
        codes[:n], initial_labels(codes[:n], protocol.initial, stream("initial labels", run.seed, run.known))
    )
    past: list[Past] = []
    made: list[Generated] = []
    figures = folder.figures()
    for query, generated in folder.queries():
        if not np.array_equal(oracle.answer(query.indices), query.answers):
            raise NeatError(f"the checkpoints of {run.name} are of other data; use another folder")
        past.append(query)
        if generated is not None:
            made.append(generated)

    def train(number: int, clock: Clock) -> Model:
        labels = oracle.labels
        known = np.flatnonzero(labels >= 0)
        rng = stream("training", run.seed, run.known, number)

        def fit() -> Model:
            return samples.learner.fit(known, labels[known], len(run.known), rng, generated=_joined(made))

        if number == 0:
            return (first_models or FirstModels()).get((run.seed, run.known), fit, clock)
        with clock("training"):
            return fit()

    clock = Clock()
    model: Model | None = None
    if not figures:
        model = train(0, clock)
        figures.append(_figures(run, 0, oracle, None, _accuracy(model, test, codes, clock), clock))
        folder.write(0, figures[0], None, None)
        on_round(0, figures[0])
    for number in range(len(figures), protocol.rounds + 1):
        if not len(oracle.unlabelled):
            break
        if model is None:  # continuing after an interruption
            model = train(number - 1, Clock())
        clock = Clock()
        pool = Pool(
            samples.features,
            oracle.labels,
            len(run.known),
            oracle.unlabelled,
            TimedModel(model, clock),
            TimedLearner(samples.learner, clock),
            protocol.k,
            protocol.rule,
            protocol.cut,
            tuple(past),
            protocol.target_precision,
        )
        chosen = _chosen(
            pool, protocol.batch, run.strategy, stream("query", run.seed, run.known, number, run.strategy), clock
        )
        past.append(Past(chosen, oracle.answer(chosen)))
        generate = getattr(strategies.module(run.strategy), "generate", None)
        generated = None
        if generate is not None:
            answered = Pool(
                pool.features,
                oracle.labels,
                pool.n_classes,
                oracle.unlabelled,
                pool.model,
                pool.learner,
                pool.k,
                pool.rule,
                pool.cut,
                tuple(past),
            )
            with clock("generation"):
                rng = stream("generation", run.seed, run.known, number, run.strategy)
                generated = generate(answered, chosen, rng)
            if generated is not None:
                made.append(generated)
        model = train(number, clock)
        figures.append(_figures(run, number, oracle, past[-1], _accuracy(model, test, codes, clock), clock))
        folder.write(number, figures[-1], past[-1], generated)
        on_round(number, figures[-1])
    return figures


def _chosen(pool: Pool, batch: int, name: str, rng: np.random.Generator, clock: Clock) -> Indices:
    with clock("query"):
        chosen = np.asarray(strategies.strategy(name)(pool, batch, rng))
    wanted = min(batch, len(pool.offered))
    if chosen.shape != (wanted,) or not np.issubdtype(chosen.dtype, np.integer):
        raise NeatError(f"strategy {name} chose {chosen.dtype} {list(chosen.shape)} where {wanted} samples were wanted")
    if len(np.unique(chosen)) != wanted or not np.isin(chosen, pool.offered).all():
        raise NeatError(f"strategy {name} chose a sample twice, or one that was not offered")
    return chosen.astype(np.int64)


def _joined(made: list[Generated]) -> Generated | None:
    if not made:
        return None
    return Generated(np.concatenate([one.inputs for one in made]), np.concatenate([one.targets for one in made]))


def _accuracy(model: Model, test: Indices, codes: NDArray[np.int64], clock: Clock) -> float | None:
    """Share of the known classes' test samples that are classified rightly; None without any."""
    if not len(test):
        return None
    with clock("testing"):
        return float((model.logits(test).argmax(axis=1) == codes[test]).mean())


def _figures(
    run: Run, number: int, oracle: Oracle, query: Past | None, accuracy: float | None, clock: Clock
) -> Figures:
    labels = oracle.labels
    return {
        "strategy": run.strategy,
        "seed": run.seed,
        "classes": list(run.known),
        "round": number,
        "accuracy": accuracy,
        "asked": 0 if query is None else len(query.indices),
        "found": 0 if query is None else int((query.answers >= 0).sum()),
        "known": int((labels >= 0).sum()),
        "invalid": int((labels == INVALID).sum()),
        "effective": effective_classes(np.bincount(labels[labels >= 0], minlength=len(run.known))),
        "left": len(oracle.unlabelled),
        "initial": oracle.n_initial,
        "known_in_pool": oracle.n_known_in_pool,
        "seconds": {phase: round(seconds, 6) for phase, seconds in sorted(clock.seconds.items())},
    }
