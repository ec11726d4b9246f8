"""The annotators' names, and how often their labels agree with the nearest labelled images."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import BadLabelConfig, LabelStudioError
from neat_backend.labelstudio import label_config
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.store import answers, people, projects
from neat_backend.store.insights import INVALID, UNLABELLED
from neat_backend.store.people import Person
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.step import Step

log = logging.getLogger(__name__)

RESTS = 20  # rest after a piece of work, in multiples of its duration
SHORTEST_REST_SECONDS = 5.0
NAMES_SECONDS = 3600.0  # between readings of the names, and after a failure
ROWS_AT_ONCE = 10_000
NO_VOTE = UNLABELLED


class People(Step):
    """Updates the annotators of one project; `step` from one thread."""

    name = "people"
    again_at_once = False
    in_background = True
    rest_seconds = 1.0

    def __init__(self, context: Context, engine: SharedEngine, clock: Callable[[], float] = time.monotonic) -> None:
        self._context, self._engine, self._clock = context, engine, clock
        self._of = -1  # the engine's version at the last comparison
        self._free_at = -math.inf
        self._names: dict[int, str] = {}
        self._names_at = -math.inf

    def _work(self) -> bool:
        if self.decided_at < self._free_at:
            return False
        with self._engine() as engine:
            version, classes = engine.version, engine.classes
            if version == self._of:
                return False
            nearest = engine.nearest_labelled()
        compared, agreed = self._compare(nearest.ids, nearest.codes, classes)
        names = self._named(set(compared))
        found = {who: Person(names.get(who, ""), compared[who], agreed[who]) for who in sorted(compared)}
        people.write(self._context.arrays, found)
        self._of = version
        now = self._clock()
        self._free_at = now + max(SHORTEST_REST_SECONDS, RESTS * (now - self.decided_at))
        return True

    def wait_seconds(self, done: bool) -> float:
        return self.first_moment_seconds()

    def moments(self) -> Iterable[float]:
        return (self._free_at,)

    def _compare(
        self, ids: NDArray[np.int64], nearest: NDArray[np.int16], classes: tuple[str, ...]
    ) -> tuple[Counter[int], Counter[int]]:
        """For each annotator: labels on images with a vote, and how many of them the vote confirms."""
        context, places = self._context, {name: place for place, name in enumerate(classes)}
        vote = votes(nearest, len(classes))
        compared: Counter[int] = Counter()
        agreed: Counter[int] = Counter()
        with context.database.read() as conn:
            try:
                config = label_config.read(projects.known(conn, context.project).label_config, context.settings)
            except BadLabelConfig:
                return compared, agreed
            contents, (tasks, annotators, said_what) = answers.given(conn, context.project)
            for number, content in enumerate(contents):
                task, annotator = tasks[said_what == number], annotators[said_what == number]
                label = label_config.label_of(answers.choices_of(content), content.was_cancelled, config)
                code = INVALID if label.invalid else places.get(label.choice or "", NO_VOTE)
                at = np.minimum(np.searchsorted(ids, task), max(len(ids) - 1, 0))
                said = vote[at] if len(ids) else np.full(len(task), NO_VOTE)
                has = (said != NO_VOTE) & (code != NO_VOTE) & (ids[at] == task if len(ids) else False)
                for who in np.unique(annotator).tolist():
                    theirs = has & (annotator == who)
                    compared[who] += int(theirs.sum())
                    agreed[who] += int((theirs & (said == code)).sum())
        return compared, agreed

    def _named(self, wanted: set[int]) -> dict[int, str]:
        """Names by annotator; read again where one is missing, but not after every label."""
        if wanted - self._names.keys() and self._clock() - self._names_at >= NAMES_SECONDS:
            self._names_at = self._clock()
            try:
                self._names = self._context.client.users()
            except LabelStudioError as error:
                log.info("project %d: annotators are shown by number: %s", self._context.project, error)
        return self._names


def votes(nearest: NDArray[np.int16], n_classes: int) -> NDArray[np.int16]:
    """The majority label of each row's labelled neighbours: int16 [n]; NO_VOTE = none, or a tie.

    nearest [n, K]: class, INVALID, or UNLABELLED = there is none.

    Worked example: (0, 0, 1) → 0; (0, 1, none) → no vote.
    """
    found = np.full(len(nearest), NO_VOTE, np.int16)
    for start in range(0, len(nearest), ROWS_AT_ONCE):
        part = nearest[start : start + ROWS_AT_ONCE].astype(np.int64)
        row, column = np.nonzero(part != UNLABELLED)
        cells = row * (n_classes + 1) + part[row, column] + 1  # INVALID is -1
        counts = np.bincount(cells, minlength=len(part) * (n_classes + 1)).reshape(len(part), n_classes + 1)
        most = counts.max(axis=1)
        clear = (most > 0) & ((counts == most[:, None]).sum(axis=1) == 1)
        found[start : start + ROWS_AT_ONCE][clear] = counts[clear].argmax(axis=1) - 1
    return found
