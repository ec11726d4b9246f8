"""Applies the inbox's events: one transaction stores them and marks them applied, then the engine follows."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from neat_backend.errors import DataRefused, LeaseLost, StoreError
from neat_backend.labelstudio import events as ls_events
from neat_backend.records import Event, Task
from neat_backend.store import inbox, projects, tasks
from neat_backend.worker.steps import reading
from neat_backend.worker.steps.comparing import CLOCK_SLACK
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.followed import Followed
from neat_backend.worker.steps.intake import Effects, Intake
from neat_backend.worker.steps.label_schema import Schema
from neat_backend.worker.steps.shown_state import ShownOrder
from neat_backend.worker.steps.step import Step

log = logging.getLogger(__name__)

EVENTS_AT_ONCE = 500
POISON_ATTEMPTS = 3  # an event that fails so often is set aside
POISON_RETRY_SECONDS = 1.0  # before the second try, three times as long before the third


class Applying(Step):
    """Applies the queued events of one project."""

    name = "apply"

    def __init__(
        self,
        context: Context,
        intake: Intake,
        schema: Schema,
        followed: Followed,
        shown: ShownOrder,
        stopping: threading.Event,
    ) -> None:
        self.last_used = -math.inf  # time.monotonic() of the last event
        self._project, self._database, self._client = context.project, context.database, context.client
        self._intake, self._schema, self._followed, self._shown = intake, schema, followed, shown
        self._stopping = stopping

    def _work(self) -> bool:
        """Apply a batch of events; True if there was any."""
        self._intake.recover()
        with self._database.read() as conn:
            waiting = inbox.pending(conn, self._project, EVENTS_AT_ONCE)
        if not waiting:
            return False
        self.last_used = time.monotonic()
        try:
            self._apply(waiting)
        except LeaseLost:
            raise
        except Exception as error:
            if self._intake.stale or _is_no_fault_of_an_event(error):
                raise  # it is stored already, so no event is to blame
            log.exception(
                "project %d: a batch of %d events failed, taking them one by one", self._project, len(waiting)
            )
            self._apply_one_by_one(waiting)
        return True

    def _apply(self, waiting: Sequence[Event]) -> None:
        try:
            effects = self._store(waiting)
        except DataRefused:
            raise
        except StoreError:
            self._intake.mark_stale()  # it may have failed after the commit
            raise
        self._intake.apply(effects)

    def _store(self, waiting: Sequence[Event]) -> Effects:
        effects = Effects()
        changes = [(event, self._in_time(ls_events.changes(event, self._schema.config.image_key))) for event in waiting]
        answered = {answer.task for _, change in changes for answer in change.annotations}
        chosen = self._shown.selections(answered)  # before the transaction: it takes the engine's lock
        with self._database.begin() as conn:
            for run in _runs(changes):
                self._store_run(conn, run, effects)
            reading.note_chosen(conn, self._project, self._schema.config, chosen)
            inbox.mark_applied(conn, [event.id for event in waiting])
            news = self._followed.news(effects.project, effects.project_event)
            projects.update(conn, self._project, applied_event=waiting[-1].id, **news)
        effects.through = waiting[-1].id
        for event in waiting:
            log.debug("project %d: event %d, %s, applied", self._project, event.id, event.action)
        return effects

    def _in_time(self, change: ls_events.Changes) -> ls_events.Changes:
        """The change without times ahead of Label Studio's clock."""
        now = self._client.clock()
        return change if now is None else ls_events.no_later_than(change, now + CLOCK_SLACK)

    def _apply_one_by_one(self, waiting: Sequence[Event]) -> None:
        """Apply a batch with a failing event one by one: that event is retried, then set aside."""
        for event in waiting:
            try:
                self._apply([event])
            except LeaseLost:
                raise
            except Exception as error:
                if self._intake.stale or _is_no_fault_of_an_event(error):
                    raise
                reason = f"{type(error).__name__}: {error}"
                with self._database.begin() as conn:
                    attempts = inbox.record_attempt(conn, event.id, reason)
                    if attempts >= POISON_ATTEMPTS:
                        inbox.set_aside(conn, event.id, reason)
                if attempts < POISON_ATTEMPTS:
                    self._stopping.wait(POISON_RETRY_SECONDS * 3 ** (attempts - 1))
                    return  # keep the order: later events wait for the next try
                log.error("project %d: event %d (%s) set aside: %s", self._project, event.id, event.action, reason)
                self._intake.skip(event.id)

    def _store_run(self, conn: Connection, run: Sequence[tuple[Event, ls_events.Changes]], effects: Effects) -> None:
        """Store events of which only the first may delete anything or retry images."""
        first, change = run[0]
        if change.deleted_tasks:
            effects.deleted.update(tasks.delete_tasks(conn, self._project, change.deleted_tasks, first.id))
        if change.deleted_annotations:
            effects.relabelled |= tasks.delete_annotations(conn, self._project, change.deleted_annotations, first.id)
        if change.retry_images:
            effects.new_images |= bool(tasks.retry_failed(conn, self._project))
        self._store_tasks(conn, [(task, event.id) for event, change in run for task in change.tasks], effects)
        answers = [(answer, event.id) for event, change in run for answer in change.annotations]
        if answers:
            items, seen = [answer for answer, _ in answers], [event for _, event in answers]
            effects.relabelled |= tasks.upsert_annotations(conn, self._project, items, seen)
        for event, change in run:
            _note(event, change, effects)

    def _store_tasks(self, conn: Connection, reports: Sequence[tuple[Task, int]], effects: Effects) -> None:
        if not reports:
            return
        items, seen = [task for task, _ in reports], [event for _, event in reports]
        done = tasks.upsert_tasks(conn, self._project, items, seen)
        effects.image_changed.update(done.image_changed)
        effects.relabelled.update(done.new, done.revived, done.image_changed)
        effects.new_images |= bool(done.new or done.revived or done.image_changed)
        effects.deleted.difference_update(done.new, done.revived)
        effects.with_annotations.update(task.id for task, _ in reports if task.has_annotations)


def _runs(
    changes: Sequence[tuple[Event, ls_events.Changes]],
) -> Iterator[Sequence[tuple[Event, ls_events.Changes]]]:
    """Consecutive events that can be stored together: one that deletes or retries images begins a run."""
    begin = 0
    for at, (_, change) in enumerate(changes):
        if at > begin and (change.deleted_tasks or change.deleted_annotations or change.retry_images):
            yield changes[begin:at]
            begin = at
    yield changes[begin:]


def _note(event: Event, change: ls_events.Changes, effects: Effects) -> None:
    """What an event asks for beside the rows that it changes."""
    answered = bool(change.annotations or change.deleted_annotations)
    if answered and effects.received_at is None:
        effects.received_at = event.received_at
    effects.answered |= answered
    if change.project is not None and (
        effects.project is None or change.project.updated_at >= effects.project.updated_at
    ):
        effects.project, effects.project_event = change.project, event.id
    effects.train |= change.train
    effects.sync |= change.sync
    effects.compare |= change.compare


def _is_no_fault_of_an_event(error: Exception) -> bool:
    """Whether the database failed, and not the event: then no event is set aside."""
    return isinstance(error, (DBAPIError, StoreError)) and not isinstance(error, DataRefused)
