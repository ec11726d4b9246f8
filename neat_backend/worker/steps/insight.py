"""What people are shown of a project beside the order: off the labelling path, and rarer the more it costs.

Reads the engine by copies taken under its lock in milliseconds, and the features from the files; all else
happens in the calling thread. Nothing here is needed to serve the order: a failure costs a picture.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.shared import SharedEngine
from neat_backend.ranking.views import Labelled, Ranking
from neat_backend.store import insights, prequential
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.insights import BINS, INVALID, UNLABELLED, Insight, Map, Mistake, States
from neat_backend.worker.steps import estimates, mistakes
from neat_backend.worker.steps.projection import Axes, map_places
from neat_backend.worker.steps.step import Step

log = logging.getLogger(__name__)

RESTS = 20  # a piece of work rests so many times as long as it took
SHORTEST_REST_SECONDS = 1.0
GROWN = 1.25  # axes are found anew when there are so many times the tasks that they were found from
AXES_FROM = 20_000  # tasks that axes are found from
MOST_MISTAKES = 100
LEAST_KNOWN = prequential.SHOWN_FROM  # labels of known classes, below which nothing is said of each class

Rows = TypeVar("Rows", Labelled, Ranking)


class Insights(Step):
    """Keeps map, states and insight of one project up to date; `step` from one thread."""

    name = "insight"
    again_at_once = False
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
        """kind: of the features' arrays. settled: whether no images are being encoded; the map waits for that, or for
        twice the tasks."""
        self.arrays, self.kind, self.seed = arrays, kind, seed
        self._engine, self._settled = engine, settled
        self._clock = clock
        self._axes: Axes | None = None
        self._axes_of = 0  # how many tasks they were found from
        self._ids: NDArray[np.int64] = np.zeros(0, np.int64)  # tasks that are projected, ascending
        self._projected: NDArray[np.float16] = np.zeros((0, 2), np.float16)
        self._states: States | None = None
        self._of: tuple[object, ...] = ()  # what the last insight was made from
        self._mistakes: tuple[Mistake, ...] | None = None  # of the last insight; None = not looked at yet
        self._free_at = {"map": 0.0, "states": 0.0, "insight": 0.0}

    def step(self) -> bool:
        """Do one piece of what is due; True if anything was written."""
        return any(
            self._due(name) and self._timed(name, work)
            for name, work in (("states", self._show_states), ("map", self._show_map), ("insight", self._show_insight))
        )

    def mistakes(self) -> tuple[Mistake, ...]:
        """The likely mistakes that were found last, the strongest first; at the start those of an earlier process."""
        if self._mistakes is None:
            before = insights.read_insight(self.arrays)
            self._mistakes = before.mistakes if before else ()
        return self._mistakes

    def _due(self, name: str) -> bool:
        return self._clock() >= self._free_at[name]

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
        if self._axes is None or not self._axes or len(ids) > GROWN * self._axes_of:
            self._axes = Axes(self._sampled(ids))
            self._axes_of = len(ids)
        if not self._axes:
            return False
        found, rows = [], []
        for segment in self.arrays.segments(self.kind):
            here = np.isin(segment.ids, ids)
            if here.any():
                rows.append(segment.ids[here])
                found.append(self._axes.project(segment.values[here]).astype(np.float16))
        every = np.concatenate(rows) if rows else np.zeros(0, np.int64)
        order = np.argsort(every)
        self._ids = every[order]
        self._projected = np.concatenate(found)[order] if found else self._projected[:0]
        insights.write_map(self.arrays, Map(self._ids, map_places(self._projected.astype(np.float32))))
        return True

    def _sampled(self, ids: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
        """Features of a sample of the tasks, drawn by the seed, in pieces."""
        rng = np.random.default_rng(self.seed)
        chosen = ids if len(ids) <= AXES_FROM else rng.choice(ids, AXES_FROM, replace=False)
        kept: list[NDArray[np.float32]] = []
        for segment in self.arrays.segments(self.kind):
            kept.append(segment.values[np.isin(segment.ids, chosen)])
            if sum(map(len, kept)) >= 2048:
                yield np.concatenate(kept)
                kept = []
        if kept:
            yield np.concatenate(kept)

    def _show_insight(self) -> bool:
        with self._engine() as engine:
            of = (engine.version, len(self._ids))
            if of == self._of:
                return False
            _, codes, classes = engine.codes()
            finish, nearest = engine.copied_ranking(), engine.nearest_labelled()
            taught = engine.taught()
            aside = engine.set_aside()  # Label Studio serves these to nobody who has answered
            head = np.setdiff1d(engine.head(engine.batch_size), aside).tolist()
            k = engine.k
        ranking = finish()
        ranking = _rows(ranking, ~np.isin(ranking.ids, aside))
        asked = ~np.isin(nearest.ids, aside)
        answered, codes, nearest = int((~asked).sum()), codes[asked], _rows(nearest, asked)
        votes = (nearest.codes >= 0).sum(axis=1) / k
        estimate = self._estimate(nearest.ids, codes, votes, head)
        class_labels = np.bincount(codes[codes >= 0], minlength=len(classes))
        invalid = int((codes == INVALID).sum())
        class_left = left_of_classes(ranking, class_labels, invalid, math.nan if estimate is None else estimate.known)
        bins = np.minimum((ranking.priority * BINS).astype(np.int64), BINS - 1)
        likely = likely_mistakes(nearest, *taught, classes, np.random.default_rng(self.seed))
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
            ),
        )
        self._of, self._mistakes = of, tuple(likely[:MOST_MISTAKES])
        return True

    def _estimate(
        self, ids: NDArray[np.int64], codes: NDArray[np.int16], votes: NDArray[np.float64], head: list[int]
    ) -> estimates.Estimate | None:
        """Of the pool, and of the head in it; None while some of it is not projected."""
        if not len(self._ids) or not np.isin(ids, self._ids).all():
            return None
        reduced = self._projected[np.searchsorted(self._ids, ids)].astype(np.float64)
        labelled = codes != UNLABELLED
        return estimates.known_left(
            reduced[labelled],
            votes[labelled],
            codes[labelled] >= 0,
            reduced[~labelled],
            votes[~labelled],
            np.random.default_rng(self.seed),
            np.flatnonzero(np.isin(ids[~labelled], head)),
        )


def _rows(found: Rows, rows: NDArray[np.bool_]) -> Rows:
    """Some rows of all its columns."""
    return replace(found, **{name: column[rows] for name, column in vars(found).items() if name != "classes"})


def left_of_classes(ranking: Ranking, labels: NDArray[np.int64], invalid: int, left: float) -> NDArray[np.float64]:
    """About how many of the pool are of each class: float64 [C]; NaN = nothing to say it from.

    The sum of `known_chance` over the tasks that are predicted as the class, on the scale of `left`, all known ones of
    the pool by `core.estimates`, which allows for the labels being no random sample (NaN = not estimated). Without any
    invalid label the sum is taken as it is. A task counts for its likeliest class alone: a class that is mostly taken
    for another one is underestimated. labels [C]; of a class that has none, and of too few labels, nothing is said.

    Worked example: chances 0.9, 0.7 as dogs, 0.4 as a cat, and left = 4: 3.2 dogs and 0.8 cats.
    """
    nothing = np.full(len(labels), math.nan)
    told = ranking.predicted >= 0
    if not told.any() or labels.sum() < LEAST_KNOWN or (invalid and math.isnan(left)):
        return nothing
    sums = np.bincount(ranking.predicted[told], ranking.known_chance[told].astype(np.float64), len(labels))
    total = float(sums.sum())
    scale = 1.0 if math.isnan(left) or not total else left / total
    return np.where(labels > 0, sums * scale, nothing)


def likely_mistakes(
    nearest: Labelled,
    ids: NDArray[np.int64],
    codes: NDArray[np.integer],
    features: NDArray[np.float32],
    classes: tuple[str, ...],
    rng: np.random.Generator,
) -> list[Mistake]:
    """Labels that are likelier mistakes than others, the likeliest first; `mistakes` says how that is found out.

    ids [n], ascending; codes and features [n, d] of these, the labelled tasks, as the linear head is taught them.
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
