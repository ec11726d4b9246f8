"""Importing a ranking's predictions into Label Studio, with checks of their number.

Label Studio refuses in two ways. A deleted task fails the whole call with 400. A choice that its label config does not
have (any more) is dropped silently, and only the count is smaller. In both cases the imported predictions are looked
up, and only missing ones are sent again: without deleted tasks, and then without choices, since the order needs only
scores. So no prediction is imported twice.

`worker.steps.publishing` decides when to publish.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from neat_backend.errors import PredictionsRejected
from neat_backend.labelstudio.label_config import WHY, LabelConfig
from neat_backend.records import Ranked

log = logging.getLogger(__name__)

UNCERTAINTY = "Uncertainty sampling"  # Label Studio's name for serving the lowest score first

# A call has a fixed part that grows with the project, so few are made; one as large as this takes 1 s.
PREDICTIONS_PER_CALL = 1000

ONE_BY_ONE_AT_ONCE = 20  # where each prediction takes a call of 0.1 s

DELETED_AT_ONCE = 100  # predictions; takes 1 s
TAKEN_OUT = 10  # predictions of a larger version that one call deletes one by one


@dataclass(frozen=True)
class Prediction:
    """One task's prediction: its score, and the pre-filled choice, if any."""

    task: int
    score: float  # in [0, 1]; Label Studio silently drops other values
    choice: str | None = None
    why: str = ""  # in words, for a label config with a place for it

    def __post_init__(self) -> None:
        if not (math.isfinite(self.score) and 0 <= self.score <= 1):
            raise ValueError(f"the score of task {self.task} is {self.score}, not in [0, 1]")


def score(priority: float, sampling: str) -> float:
    """The score for a priority, both in [0, 1]; the sampling decides which end is served first."""
    return min(max(1.0 - priority if sampling == UNCERTAINTY else priority, 0.0), 1.0)


def result(choice: str | None, config: LabelConfig, why: str = "") -> list[dict[str, Any]]:
    """A choice as a prediction's result in Label Studio's JSON; None = no choice is pre-filled.

    why: text for the config's TextArea, if it has one: all that a prediction can carry beside a choice that the
    labelling page shows. (`meta` and a result's own score are kept, but shown for regions alone.)
    """
    found: list[dict[str, Any]] = []
    if choice is not None:
        value: dict[str, Any] = {"choices": [config.stored(choice)]}
        if config.paths:
            # The page ticks a path alone, and an import takes none; but it looks at no more than what stands under the
            # control's name, where there is something. One by one a prediction with a path is taken, 0.1 s each.
            value[config.control] = {"choices": [choice]}
        found.append({"from_name": config.control, "type": "choices", "value": value})
    if why and config.why:
        found.append({"from_name": WHY, "type": "textarea", "value": {"text": [why]}})
    return [{**one, "to_name": config.to_name} for one in found]


def reasons(ranked: Ranked) -> str:
    """The reasons for a task's place in one line, as of the prediction."""
    known = f"{ranked.known_neighbours} of its nearest labelled images are of the wanted classes"
    known += f", {ranked.votes} of them {ranked.vote}" if ranked.vote is not None else ""
    said = "no classifier yet" if ranked.predicted is None else f"the classifier says {ranked.predicted}"
    drawn = "drawn at random; " if ranked.drawn else ""
    return f"{drawn}{known}; {said}; inconsistency {ranked.inconsistency:.2f}"


@dataclass(frozen=True)
class Imported:
    """The result of importing one revision; a dropped task is deleted, or refused without a choice too."""

    accepted: int
    dropped_tasks: tuple[int, ...] = ()
    # Tasks whose choice was refused: they have the score alone.
    without_choice: frozenset[int] = field(default=frozenset(), compare=False)


class _Client(Protocol):
    """The part of LabelStudioClient that is used here."""

    def import_predictions(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> int: ...

    def imports_one_by_one(self, project: int) -> bool: ...

    def tasks_with_prediction(self, project: int, version: str, tasks: Sequence[int]) -> set[int]: ...

    def existing_tasks(self, project: int, tasks: Sequence[int]) -> set[int]: ...

    def model_versions(self, project: int) -> Mapping[str, int]: ...

    def set_model_version(self, project: int, version: str) -> None: ...

    def predictions_of(self, project: int, version: str) -> list[int]: ...

    def delete_prediction(self, prediction: int) -> None: ...

    def delete_model_version(self, project: int, version: str) -> None: ...


class Publisher:
    """Publishes to one project."""

    def __init__(self, client: _Client, project: int, config: LabelConfig) -> None:
        self.client = client
        self.project = project
        self.config = config
        self._apart: dict[str, list[int]] = {}  # of a large version that is being deleted, the predictions left

    @property
    def at_once(self) -> int:
        """Predictions to import at a time in the background."""
        return ONE_BY_ONE_AT_ONCE if self.client.imports_one_by_one(self.project) else PREDICTIONS_PER_CALL

    def import_revision(self, version: str, predictions: Sequence[Prediction]) -> Imported:
        """Import predictions under a model version that these tasks have no prediction of yet.

        Raises ValueError when a task comes twice, LabelStudioUnavailable when Label Studio went away:
        some may have landed then, and the version should be given up.
        """
        if len({prediction.task for prediction in predictions}) < len(predictions):
            raise ValueError("a task has more than one prediction in the same revision")
        dropped: list[int] = []
        without_choice: set[int] = set()
        for chunk in _chunks(predictions):
            dropped += self._import_chunk(version, chunk, without_choice)
        if dropped:
            log.warning(
                "project %d: Label Studio took %d of %d predictions of %s; not those of tasks %s",
                self.project,
                len(predictions) - len(dropped),
                len(predictions),
                version,
                ", ".join(map(str, dropped[:20])) + (" …" if len(dropped) > 20 else ""),
            )
        return Imported(len(predictions) - len(dropped), tuple(dropped), frozenset(without_choice.difference(dropped)))

    def switch(self, version: str) -> None:
        """Make Label Studio show and sort by this version."""
        self.client.set_model_version(self.project, version)

    def delete_some(self, versions: Sequence[str]) -> str | None:
        """Delete predictions of these versions for about a second, the smallest version first.

        Returns the version that is fully deleted now, None = there is more. Label Studio deletes a version in one
        transaction, and with SQLite it accepts no annotation meanwhile: half a minute for 2,000. So predictions of a
        large version are deleted one by one first, and small versions don't wait for it.
        """
        counts = self.client.model_versions(self.project)
        version = min(versions, key=lambda one: counts.get(one, 0))
        count = counts.get(version, 0)
        if count <= DELETED_AT_ONCE:
            self._apart.pop(version, None)
            if count:
                self.client.delete_model_version(self.project, version)
            return version
        if version not in self._apart:
            self._apart[version] = self.client.predictions_of(self.project, version)
        for _ in range(min(TAKEN_OUT, count - DELETED_AT_ONCE, len(self._apart[version]))):
            self.client.delete_prediction(self._apart[version].pop())
        if not self._apart[version]:
            del self._apart[version]  # there are new ones: list them again
        return None

    def _import_chunk(self, version: str, chunk: Sequence[Prediction], without_choice: set[int]) -> list[int]:
        """Returns the tasks whose prediction Label Studio refused; adds those that it took without the choice."""
        pending = {prediction.task: prediction for prediction in chunk}
        with_choices = True
        dropped: list[int] = []
        # Tasks may vanish again and again while this runs; three more tries are enough in earnest.
        for _ in range(4):
            items = [self._json(version, prediction, with_choices) for prediction in pending.values()]
            try:
                created = self.client.import_predictions(self.project, items)
                rejected = False
            except PredictionsRejected as error:
                log.info("project %d: %s", self.project, error)
                created, rejected = 0, True
            if created == len(items):
                return dropped
            for task in self.client.tasks_with_prediction(self.project, version, sorted(pending)):
                pending.pop(task, None)
            gone = set(pending) - self.client.existing_tasks(self.project, sorted(pending))
            for task in sorted(gone):
                dropped.append(task)
                del pending[task]
            if not pending:
                return dropped
            # A prediction that is refused although its task exists is refused for its choice.
            with_choices = with_choices and rejected and bool(gone)
            without_choice.update(() if with_choices else pending)
        return dropped + sorted(pending)

    def _json(self, version: str, prediction: Prediction, with_choices: bool) -> dict[str, Any]:
        return {
            "task": prediction.task,
            "score": float(prediction.score),
            "model_version": version,
            "result": result(prediction.choice, self.config, prediction.why) if with_choices else [],
        }


def _chunks(predictions: Sequence[Prediction]) -> Iterator[Sequence[Prediction]]:
    for start in range(0, len(predictions), PREDICTIONS_PER_CALL):
        yield predictions[start : start + PREDICTIONS_PER_CALL]
