"""Views of a project for people, beside the order: made in the background, and less often the more they cost.

Copies the engine's state under its lock in milliseconds and reads the features from files; the rest runs in the calling
thread. The order does not need any of it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.ranking.views import Labelled, Ranking
from neat_backend.store import insights, prequential
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.insights import BINS, INVALID, UNLABELLED, Insight, Map, Mistake, States
from neat_backend.worker.steps import estimates, mistakes
from neat_backend.worker.steps.layout import FEWEST, LANDMARKS, Layout, read_layout, write_layout
from neat_backend.worker.steps.step import Step

log = logging.getLogger(__name__)

RESTS = 20  # rest after a piece of work, in multiples of its duration
SHORTEST_REST_SECONDS = 1.0
GROWN = 2.0  # the layout is found anew when the number of tasks has grown by this factor
MOST_MISTAKES = 100
LEAST_KNOWN = prequential.SHOWN_FROM  # labels of known classes, below which no class is estimated

Rows = TypeVar("Rows", Labelled, Ranking)


class Insights(Step):
    """Updates map, states and insight of one project; `step` from one thread."""

    name = "insight"
    again_at_once = False
    in_background = True
    rest_seconds = 0.5

    def __init__(
        self,
        arrays: ProjectArrays,
        engine: SharedEngine,
        kind: str,
        seed: int,
        settled: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """kind: of the features' arrays. settled: whether no images are being encoded; the map waits for that, or until
        the tasks have doubled."""
        self.arrays, self.kind, self.seed = arrays, kind, seed
        self._engine, self._settled = engine, settled
        self._clock = clock
        self._layout: Layout | None = None
        self._layout_tasks = 0  # when it was found
        self._ids: NDArray[np.int64] = np.zeros(0, np.int64)  # tasks on the map, ascending
        self._states: States | None = None
        self._of: tuple[object, ...] = ()  # versions that the last insight was computed from
        self.written = 0  # how often an insight was written
        self._mistakes: tuple[Mistake, ...] | None = None  # of the last insight; None = not computed yet
        self._complete: tuple[object, ...] = ()  # the state for which nothing is left to do
        self._free_at = {"map": 0.0, "states": 0.0, "insight": 0.0}

    def _work(self) -> bool:
        """Do one piece of due work; True if anything was written."""
        with self._engine() as engine:
            now = (engine.version, engine.pool_version, engine.training_version, self._settled())
        if now == self._complete:
            return False
        done = any(
            self._due(name) and self._timed(name, work)
            for name, work in (("states", self._show_states), ("map", self._show_map), ("insight", self._show_insight))
        )
        if not done and all(self._due(name) for name in self._free_at):
            self._complete = now
        return done

    def moments(self) -> Iterable[float]:
        return self._free_at.values()

    def mistakes(self) -> tuple[Mistake, ...]:
        """The likely mistakes found last, the likeliest first; at the start those of an earlier process."""
        if self._mistakes is None:
            before = insights.read_insight(self.arrays)
            self._mistakes = before.mistakes if before else ()
        return self._mistakes

    def _due(self, name: str) -> bool:
        return self.decided_at >= self._free_at[name]

    def _timed(self, name: str, work: Callable[[], bool]) -> bool:
        began = self._clock()
        done = work()
        if done:
            now = self._clock()
            self._free_at[name] = now + max(SHORTEST_REST_SECONDS, RESTS * (now - began))
        return done

    def _show_states(self) -> bool:
        with self._engine() as engine:
            ids, codes, classes = engine.codes()
        before = self._states
        if before is not None and before.classes == classes and np.array_equal(before.ids, ids):
            if np.array_equal(before.codes, codes):
                return False
        elif before is None and not len(ids):
            return False
        self._states = States(ids, codes, classes)
        insights.write_states(self.arrays, self._states)
        return True

    def _show_map(self) -> bool:
        with self._engine() as engine:
            ids = np.sort(np.array(engine.tasks(), np.int64))
        if np.array_equal(ids, self._ids) or not (self._settled() or len(ids) > 2 * len(self._ids)):
            return False
        if self._layout is None:
            self._layout, self._layout_tasks = read_layout(self.arrays, self.kind)
        if self._layout is None or len(ids) > GROWN * self._layout_tasks:
            landmarks = self._features(self._sampled(ids))[1]
            if len(landmarks) < FEWEST:
                return False
            self._layout, self._layout_tasks = Layout.find(landmarks, self.seed, self._layout), len(ids)
            write_layout(self.arrays, self._layout, self.kind, len(ids))
        self._ids, positions = self._features(ids, self._layout.place)
        insights.write_map(self.arrays, Map(self._ids, positions))
        return True

    def _sampled(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        rng = np.random.default_rng(self.seed)
        return ids if len(ids) <= LANDMARKS else rng.choice(ids, LANDMARKS, replace=False)

    def _features(
        self, ids: NDArray[np.int64], use: Callable[[NDArray[np.float32]], NDArray[Any]] = np.asarray
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """The tasks that have features, ascending, and what `use` makes of these, [n, d] → [n, …]."""
        found: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
        used = [use(np.zeros((0, 0), np.float32))]
        for segment in self.arrays.segments(self.kind):
            here = np.isin(segment.ids, ids)
            if here.any():
                found.append(segment.ids[here])
                used.append(use(segment.values[here]))
        order = np.argsort(np.concatenate(found))
        return np.concatenate(found)[order], np.concatenate(used[1:] or used)[order]

    def _show_insight(self) -> bool:
        with self._engine() as engine:
            of = (engine.version, len(self._ids))
            if of == self._of:
                return False
            _, codes, classes = engine.codes()
            finish, nearest = engine.copied_ranking(), engine.nearest_labelled()
            training_data, sample, share = engine.training_data(), engine.sample(), engine.draws.share
            separates = engine.linear is not None and engine.linear.unknown
            aside = engine.set_aside()  # Label Studio does not serve these to an annotator who has answered
            head = np.setdiff1d(engine.head(engine.batch_size), aside).tolist()
            k = engine.k
        ranking = finish()
        ranking = _rows(ranking, ~np.isin(ranking.ids, aside))
        open_rows = ~np.isin(nearest.ids, aside)
        answered, codes, nearest = int((~open_rows).sum()), codes[open_rows], _rows(nearest, open_rows)
        drawn, estimate = self._estimate(training_data, classes, sample, ranking, separates, head)
        class_labels = np.bincount(codes[codes >= 0], minlength=len(classes))
        class_left = left_of_classes(ranking, class_labels, math.nan if estimate is None else estimate.known)
        bins = np.minimum((ranking.priority * BINS).astype(np.int64), BINS - 1)
        likely = likely_mistakes(nearest, *training_data, classes, np.random.default_rng(self.seed))
        insights.write_insight(
            self.arrays,
            Insight(
                labelled=int((codes != UNLABELLED).sum()),
                known=int((codes >= 0).sum()),
                pool=int((codes == UNLABELLED).sum()),
                left=math.nan if estimate is None else estimate.known,
                left_low=math.nan if estimate is None else estimate.low,
                left_high=math.nan if estimate is None else estimate.high,
                in_head=math.nan if estimate is None else estimate.wanted,
                head=len(head),
                candidates=np.bincount(bins[ranking.candidate], minlength=BINS),
                others=np.bincount(bins[~ranking.candidate], minlength=BINS),
                k=k,
                mistakes=tuple(likely[:MOST_MISTAKES]),
                more_mistakes=max(0, len(likely) - MOST_MISTAKES),
                classes=classes,
                class_labels=tuple(class_labels.tolist()),
                class_left=tuple(class_left.tolist()),
                answered=answered,
                random_share=share,
                draws=len(sample),
                draws_tested=drawn.tested,
                draws_right=drawn.right,
            ),
        )
        self._of, self._mistakes = of, tuple(likely[:MOST_MISTAKES])
        self.written += 1
        return True

    def _estimate(
        self,
        training_data: tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]],
        classes: tuple[str, ...],
        sample: NDArray[np.int64],
        ranking: Ranking,
        separates: bool,
        head: list[int],
    ) -> tuple[estimates.Drawn, estimates.Estimate | None]:
        """Estimate from the labelled random draws, `sample`; separates: whether the head knows invalid labels."""
        ids, codes, features = training_data
        draws = np.isin(ids, sample)
        drawn = estimates.score_draws(features, codes, classes, draws, np.random.default_rng(self.seed))
        if separates and estimates.enough_of_each(codes):
            pool = estimates.log_odds(ranking.known_chance)
        else:
            drawn, pool = replace(drawn, logits=np.zeros(len(drawn.logits))), np.zeros(len(ranking.ids))
        return drawn, estimates.known_left(drawn, pool, pool[np.isin(ranking.ids, head)])


def _rows(found: Rows, rows: NDArray[np.bool_]) -> Rows:
    """These rows of all columns."""
    return replace(found, **{name: column[rows] for name, column in vars(found).items() if name != "classes"})


def left_of_classes(ranking: Ranking, labels: NDArray[np.int64], left: float) -> NDArray[np.float64]:
    """Estimated number of tasks of each class in the pool: float64 [C]; NaN = no estimate.

    The sum of `known_chance` over the tasks predicted as the class, scaled to `left`: the known tasks of the pool by
    `estimates` (NaN = not estimated). A task counts for its likeliest class alone, so a class that is mostly confused
    with another one is underestimated. labels [C]; a class without labels, or too few labels in all, gives NaN.

    Worked example: chances 0.9, 0.7 as dogs, 0.4 as a cat, and left = 4: 3.2 dogs and 0.8 cats.
    """
    nothing = np.full(len(labels), math.nan)
    predicted = ranking.predicted >= 0
    if not predicted.any() or labels.sum() < LEAST_KNOWN or math.isnan(left):
        return nothing
    sums = np.bincount(ranking.predicted[predicted], ranking.known_chance[predicted].astype(np.float64), len(labels))
    return np.where(labels > 0, sums * left / max(float(sums.sum()), 1e-12), nothing)


def likely_mistakes(
    nearest: Labelled,
    ids: NDArray[np.int64],
    codes: NDArray[np.integer],
    features: NDArray[np.float32],
    classes: tuple[str, ...],
    rng: np.random.Generator,
) -> list[Mistake]:
    """Labels that are probably mistakes, the likeliest first; method: `mistakes`.

    ids [n], ascending; codes [n] and features [n, d] of these labelled tasks, as the linear head's training data.
    """
    places = np.searchsorted(nearest.ids, ids)
    near, similarities = nearest.codes[places], nearest.similarities[places]
    chance = mistakes.chances(features, codes, near, len(classes), rng)
    found = []
    for row in mistakes.listed(chance):
        others, counts = np.unique(near[row][(near[row] >= INVALID) & (near[row] != codes[row])], return_counts=True)
        if len(others):
            best = int(np.argmax(counts))
            found.append(
                Mistake(
                    task=int(ids[row]),
                    label=_name(int(codes[row]), classes),
                    chance=float(chance[row]),
                    neighbours_say=_name(int(others[best]), classes),
                    votes=int(counts[best]),
                    own_votes=int((near[row] == codes[row]).sum()),
                    similarity=float(similarities[row][near[row] == others[best]].mean()),
                )
            )
    return sorted(found, key=lambda one: (-one.chance, -one.votes, one.own_votes, -one.similarity, one.task))


def _name(code: int, classes: tuple[str, ...]) -> str | None:
    return None if code == INVALID else classes[code]
