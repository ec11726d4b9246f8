"""Scores of the labels to check, by which their tab is sorted.

The prediction score is the only column of Label Studio by which a backend can sort labelled tasks: the mean over a
task's predictions of the version that is switched on. So each label to check has one there, with the chance of a
mistake as its score and what the neighbours say as its choice. Every revision comes with them (publishing.py); `step`
keeps them up to date until the next one. Label Studio does not serve these tasks any more, so the order stays as it is.
Where it asks several people about a task, it does serve them, the lowest score first: then all these scores lie at the
far end, still sorted, and no choice is pre-filled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence

from neat_backend.errors import LabelStudioError
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.labelstudio.publisher import Prediction, Publisher
from neat_backend.store.insights import Mistake
from neat_backend.worker.steps.backoff import Backoff
from neat_backend.worker.steps.context import Context

log = logging.getLogger(__name__)

LOOK_SECONDS = 60.0  # between looks at how many people a task is given to
SHORTEST_REST_SECONDS, RESTS = 10.0, 20  # after a change, at least; in multiples of its duration
AGAIN_SECONDS, LONGEST_AGAIN_SECONDS = 60.0, 3600.0  # after a failure, and after many in a row
FAR_END = 1e-9  # wide: behind all scores of the order, but those of priorities that are 0 in effect

Sent = dict[int, Prediction | None]  # by task; None = unknown, of a failed call


class Suspicions:
    """Maintains these predictions for one project. `publishing.py` takes them, another thread calls `step`."""

    def __init__(
        self,
        context: Context,
        check_ownership: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """check_ownership: called before Label Studio is changed; raises when another process owns the project."""
        self.project, self.client = context.project, context.client
        self._check_ownership, self._clock = check_ownership, clock
        self._wanted: dict[int, Prediction] = {}  # by task, the likeliest mistake first
        self._on: tuple[str, Sent] = ("", {})  # the version that is switched on, and what it has; replaced as a whole
        self._of: tuple[Mistake, ...] = ()  # what the wanted ones were made of
        self._free_at = self._look_at = float("-inf")
        self._backoff = Backoff(AGAIN_SECONDS, LONGEST_AGAIN_SECONDS)

    def predictions(self, besides: Collection[int]) -> list[Prediction]:
        """For a revision that has these tasks already."""
        apart = set(besides)
        return [one for task, one in self._wanted.items() if task not in apart]

    def published(self, version: str, sent: Sequence[Prediction]) -> None:
        """Record that this version is switched on, and which of `predictions` it has."""
        self._on = (version, {one.task: one for one in sent})

    def tasks(self) -> set[int]:
        """The tasks that have such a prediction, or may have one soon."""
        return {*self._wanted, *self._on[1]}

    def step(self, mistakes: Sequence[Mistake], config: LabelConfig) -> bool:
        """Bring the present version's predictions up to date if that is due; True if it was done.

        mistakes: to check, the likeliest first. Label Studio's failures are logged and tried again.
        """
        began = self._clock()
        of = tuple(mistakes)
        if began < self._free_at or (of == self._of and (not of or began < self._look_at)):
            return False
        try:
            several = self.client.project(self.project).opinions > 1
            self._wanted = {one.task: _prediction(one, config, several) for one in of}
            self._send(Publisher(self.client, self.project, config), *self._on)
        except LabelStudioError as error:
            self._free_at = self._clock() + self._backoff.failed()
            log.warning("project %d: the scores of labels to check could not be written: %s", self.project, error)
            return False
        self._backoff.worked()
        self._of, self._look_at = of, began + LOOK_SECONDS
        self._free_at = self._clock() + max(SHORTEST_REST_SECONDS, RESTS * (self._clock() - began))
        return True

    def moments(self) -> Iterable[float]:
        """When the next look is due, and when a change that has to wait may be made."""
        return (self._free_at, self._look_at) if self._of else (self._free_at,)

    def _send(self, publisher: Publisher, version: str, sent: Sent) -> None:
        if not version or _shows(sent, self._wanted):
            return
        self._check_ownership()
        wrong = [task for task in {*sent, *self._wanted} if sent.get(task) != self._wanted.get(task)]
        for task in wrong:  # it may have the score by which it was served, too
            for number in self.client.predictions_of(self.project, version, task):
                self.client.delete_prediction(number)
            sent.pop(task, None)
        made = [one for one in self._wanted.values() if one.task not in sent]
        if made:
            sent.update(dict.fromkeys((one.task for one in made), None))
            publisher.import_revision(version, made)
            sent.update({one.task: one for one in made})


def _prediction(mistake: Mistake, config: LabelConfig, several: bool) -> Prediction:
    if several:
        return Prediction(mistake.task, 1 - FAR_END * (1 - mistake.chance))
    say = mistake.neighbours_say or next(iter(config.invalid), None)
    return Prediction(
        mistake.task, mistake.chance, say, f"its label may be wrong, with a chance of {mistake.chance:.2f}"
    )


def _shows(sent: Sent, wanted: dict[int, Prediction]) -> bool:
    """Whether these are the wanted tasks with the wanted choices, in the wanted order; a score itself may differ."""
    there = [one for one in sent.values() if one is not None]
    if len(there) < len(sent) or {one.task: one.choice for one in there} != {t: p.choice for t, p in wanted.items()}:
        return False
    scores = [one.score for one in (sent[task] for task in wanted) if one is not None]
    return scores == sorted(scores, reverse=True)
