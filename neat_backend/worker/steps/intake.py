"""Applying changes of the store to the engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from neat_backend.labelstudio.events import ProjectFields
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.store import inbox
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.event_following import Following
from neat_backend.worker.steps.image_fetching import PoolImages
from neat_backend.worker.steps.labelling import Labelling
from neat_backend.worker.steps.query_rounds import Rounds
from neat_backend.worker.steps.reading import Changed, Synced
from neat_backend.worker.steps.shown_state import ShownOrder
from neat_backend.worker.steps.wanted import Wanted


@dataclass
class Effects:
    """Changes that a batch of events made in the store, to be applied to the engine."""

    through: int = 0  # highest event id
    received_at: datetime | None = None  # of the first event with a label
    relabelled: set[int] = field(default_factory=set)
    deleted: set[int] = field(default_factory=set)
    image_changed: set[int] = field(default_factory=set)
    new_images: bool = False
    with_annotations: set[int] = field(default_factory=set)
    project: ProjectFields | None = None  # the latest, by Label Studio's clock
    project_event: int = 0  # the event that it came with
    answered: bool = False  # an annotation was created, changed or deleted
    train: bool = False
    sync: bool = False
    compare: bool = False  # Label Studio has called /setup


class Intake:
    """Applies changes of the store to the engine; from any thread.

    stale: the engine may lack changes of the store because of a failure; `recover` rebuilds it.
    """

    def __init__(
        self,
        context: Context,
        engine: SharedEngine,
        images: PoolImages,
        labelling: Labelling,
        following: Following,
        rounds: Rounds,
        shown: ShownOrder,
        wanted: Wanted,
    ) -> None:
        self.stale = False
        self._context, self._engine, self._images, self._labelling = context, engine, images, labelling
        self._following, self._rounds, self._shown, self._wanted = following, rounds, shown, wanted
        self._followed = following.followed

    def refresh(self) -> None:
        """Set the engine's tasks, features and labels to what the store has."""
        with self._engine():  # before reading: what an event deletes meanwhile would come back
            self._images.refresh()
            self._labelling.relabel()

    def catch_up(self) -> None:
        """Set the last applied event to that of the store."""
        with self._context.database.read() as conn:
            waiting = inbox.pending(conn, self._context.project, 1)
            through = inbox.received_through(conn, self._context.project)
        self._followed.applied = waiting[0].id - 1 if waiting else through

    def recover(self) -> None:
        """Rebuild the engine from the store if it is stale."""
        if self.stale:
            with self._engine():
                self.refresh()
                self.catch_up()
            self.stale = False

    def mark_stale(self) -> None:
        self.stale = True
        self._wanted.read_again()

    def apply(self, effects: Effects) -> None:
        """Apply changes of the store to the engine; after a failure it is stale."""
        try:
            self._apply(effects)
        except BaseException:
            self.mark_stale()
            raise

    def apply_changes(self, found: Changed) -> None:
        """Apply the changes that a comparison found."""
        if found:
            self._labelling.note_answered(found.relabelled)
            self.apply(
                Effects(
                    relabelled=found.relabelled | found.new_images,
                    deleted=found.deleted,
                    image_changed=found.image_changed,
                    new_images=bool(found.new_images),
                )
            )

    def apply_reading(self, found: Synced, began: datetime) -> None:
        """Apply the result of a reading of the whole project; began: by Label Studio's clock."""
        self._labelling.note_answered(found.relabelled)
        followed = self._followed
        with self._engine():
            followed.read(found.info, began, found.seen)
            self._context.update(title=followed.title, label_config=followed.label_config, sampling=followed.sampling)
            self._following.use_label_config()
            self.refresh()

    def relabel(self, tasks: Iterable[int]) -> None:
        """Apply the annotations of these tasks, which have been read."""
        self._labelling.relabel(tasks)

    def skip(self, event: int) -> None:
        """Count an event that was set aside as applied."""
        with self._engine():
            self._followed.applied = max(self._followed.applied, event)

    def _apply(self, effects: Effects) -> None:
        if effects.with_annotations:  # first, as it can't fail
            self._wanted.read_annotations(effects.with_annotations)
        if effects.sync:
            self._wanted.read_again()
        if effects.compare:
            self._followed.calls += effects.compare
            self._wanted.compare_now()
        with self._engine() as engine:
            engine.remove_tasks(effects.deleted | effects.image_changed)
            self._shown.moved(effects.deleted | effects.relabelled | effects.image_changed)
            if effects.train:
                self._rounds.request()
            relabelled = effects.relabelled - effects.deleted
            if relabelled:
                self._labelling.take(relabelled)
            if effects.received_at is not None:
                self._labelling.arrived(effects.through, effects.received_at)
            self._following.follow(effects.project, effects.project_event)
            self._followed.applied = max(self._followed.applied, effects.through)
            if effects.answered:
                self._followed.answered = self._followed.applied
        if effects.new_images:
            self._wanted.wake()
