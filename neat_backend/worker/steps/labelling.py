"""Setting the engine's labels from the stored annotations."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.records import Label
from neat_backend.worker.steps import reading
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.label_schema import Schema
from neat_backend.worker.steps.learning import Learning
from neat_backend.worker.steps.shown_state import ShownOrder
from neat_backend.worker.steps.timing import LabelTimes


class Labelling:
    """Sets one project's labels; from any thread."""

    def __init__(
        self,
        context: Context,
        engine: SharedEngine,
        schema: Schema,
        learning: Learning,
        shown: ShownOrder,
        times: LabelTimes,
    ) -> None:
        self._context, self._engine, self._schema = context, engine, schema
        self._learning, self._shown, self._times = learning, shown, times

    def relabel(self, tasks: Iterable[int] | None = None) -> None:
        """Set the labels of these tasks (default: all) from the store."""
        with self._engine() as engine:
            engine.set_labels(self._stored(tasks))
            if tasks is None:
                self._shown.invalidate()

    def take(self, tasks: Iterable[int]) -> None:
        """As `relabel`, for answered tasks: the classifiers are tested on new labels first."""
        with self._engine() as engine, self._times.taking_labels():
            labels = self._stored(tasks)
            self._learning.test(engine, labels)
            engine.set_labels(labels)

    def note_answered(self, tasks: Iterable[int]) -> None:
        """Store the ranks and pre-filled choices of answered tasks; call it before the engine has their labels."""
        chosen = self._shown.selections(tasks)
        if chosen:
            with self._context.database.begin() as conn:
                reading.note_chosen(conn, self._context.project, self._schema.config, chosen)

    def arrived(self, event: int, received_at: datetime) -> None:
        """See `LabelTimes.arrived`."""
        self._times.arrived(event, received_at)

    def _stored(self, tasks: Iterable[int] | None) -> list[Label]:
        return reading.resolve_labels(self._context.database, self._context.project, self._schema.config, tasks)
