"""The latest state of Label Studio's tasks and annotations, whatever the order in which reports arrive.

Webhooks arrive twice, late and out of order, and a synchronisation reads meanwhile. So each mutation carries `seen`:
the number of its inbox event, or the inbox's `received_through` when the synchronisation began to read. Each row
decides two questions separately:

- what it contains: the newest `updated_at` wins, then the later `seen`; but a synchronisation began after all that
  had a smaller `seen`, and wins over it whatever Label Studio's clock said;
- whether it exists: for a task the later `seen` wins, a tie means deleted. An annotation that was
  deleted comes back only when a synchronisation that began later has found it, since Label Studio
  never uses an id twice.

Both are maxima, so updates and deletions may be applied in any order, and twice. A deletion leaves a tombstone for a
day (`prune`), and at most MOST_UNHEARD of rows that were unknown when deleted. A report without a tombstone counts as
new until the next comparison with Label Studio.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection

from neat_backend.records import Annotation, Task
from neat_backend.store import merging, schema
from neat_backend.store.merging import DELETED
from neat_backend.store.schema import NEVER
from neat_backend.store.sql import among, chunks, enter_project, int_columns, plain_ids, put

log = logging.getLogger(__name__)

PENDING = "pending"  # the image has not been encoded yet
READY = "ready"  # its features are kept
FAILED = "failed"  # it can't be fetched or decoded; `image_error` says why
_LIVE = (PENDING, READY, FAILED)

_tasks = schema.tasks
_annotations = schema.annotations


@dataclass(frozen=True)
class Upserted:
    """What an upsert of tasks changed, by task id, ascending."""

    new: list[int]
    image_changed: list[int]
    revived: list[int]  # had a tombstone


@dataclass(frozen=True)
class FailedImage:
    task: int
    image: str | None
    error: str


@dataclass(frozen=True)
class TaskImage:
    """A live task's image and its state."""

    image: str | None
    state: str
    error: str


@dataclass(frozen=True)
class TaskCounts:
    """Live tasks; pending + ready + failed = tasks."""

    tasks: int
    pending: int
    ready: int
    failed: int
    annotated: int  # with at least one live annotation, skips included
    annotations: int  # live ones of live tasks, without skips
    skips: int


# tasks


def upsert_tasks(
    conn: Connection, project: int, tasks: Sequence[Task], seen: int | Sequence[int], authoritative: bool = False
) -> Upserted:
    """Insert or update tasks from Label Studio. A new, changed or revived image becomes pending.

    seen: of all, or of each, then ascending; the result is that of one call for each task, in this order.
    authoritative: read from Label Studio by a synchronisation, not reported by an event.
    """
    enter_project(conn, project)
    new: list[int] = []
    image_changed: list[int] = []
    revived: list[int] = []
    for part in chunks(merging.with_seen(tasks, seen)):
        rows = merging.rows_of(conn, _tasks, project, (task.id for task, _ in part))
        changes = merging.Changes()
        for task, number in part:
            row = rows.get(task.id)
            content = {
                "updated_at": task.updated_at,
                "has_annotations": task.has_annotations,
                "image": schema.plain(task.image),
                "content_seen": number,
            }
            if row is None:
                new.append(task.id)
                added: dict[str, Any] = {
                    "project": project,
                    "id": task.id,
                    "state": PENDING,
                    "seen": number,
                    "image_error": "",
                    **content,
                }
                rows[task.id] = changes.add(added)
                continue
            after = dict(row)
            if merging.newer(row, task.updated_at, number, authoritative):
                after |= content
            if row["state"] == DELETED:
                if number > row["seen"]:
                    revived.append(task.id)
                    after |= {"state": PENDING, "image_error": ""}
            elif after["image"] != row["image"]:
                image_changed.append(task.id)
                after |= {"state": PENDING, "image_error": ""}
            after["seen"] = max(row["seen"], number)
            rows[task.id] = changes.replace(row, after, number)
        changes.store(conn, _tasks, project)
    fresh = set(new) | set(revived)
    return Upserted(sorted(set(new)), sorted(set(image_changed) - fresh), sorted(set(revived) - set(new)))


def delete_tasks(conn: Connection, project: int, ids: Collection[int], seen: int) -> list[int]:
    """Write tombstones for these tasks, also for MOST_UNHEARD unknown ones. Returns the ids that were live."""
    enter_project(conn, project)
    left, buried = merging.tombstones_left(conn, _tasks.c.project == project, _tasks.c.state == DELETED), 0
    deleted: list[int] = []
    for part in chunks(plain_ids(ids)):
        before = merging.rows_of(conn, _tasks, project, part)
        deleted += [id for id, row in sorted(before.items()) if row["state"] != DELETED and row["seen"] <= seen]
        conn.execute(
            sa.update(_tasks)
            .where(_tasks.c.project == project, among(_tasks.c.id, part), _tasks.c.seen <= seen)
            .values(state=DELETED, seen=seen, image_error="")
        )
        unheard = [id for id in part if id not in before][: left - buried]
        put(conn, _tasks, [merging.unheard_task(project, id, seen) for id in unheard])
        buried += len(unheard)
    return deleted


def missing_tasks(
    conn: Connection, project: int, present: np.ndarray, seen: int, above: int = 0, upto: int | None = None
) -> list[int]:
    """The live tasks that a synchronisation did not find, nor any event after it began: for `delete_unseen_tasks`.

    present: int64[n], all the ids that it found of those above `above` and up to `upto` (None: all of them).
    """
    statement = sa.select(_tasks.c.id).where(*_live_tasks(project), _tasks.c.seen <= seen, _tasks.c.id > above)
    known = int_columns(conn, statement if upto is None else statement.where(_tasks.c.id <= upto))[0]
    missing: list[int] = np.setdiff1d(known, np.asarray(present, np.int64)).tolist()
    return missing


def delete_unseen_tasks(conn: Connection, project: int, ids: Sequence[int], seen: int) -> list[int]:
    """Write tombstones for these live tasks, except those with an event after `seen`; returns their ids."""
    enter_project(conn, project)
    deleted: list[int] = []
    for part in chunks(ids):
        statement = (
            sa.update(_tasks)
            .where(*_live_tasks(project), among(_tasks.c.id, part), _tasks.c.seen <= seen)
            .values(state=DELETED, seen=seen, image_error="")
            .returning(_tasks.c.id)
        )
        deleted += conn.execute(statement).scalars()
    return sorted(deleted)


def task_ids(conn: Connection, project: int) -> np.ndarray:
    """Live tasks: int64[n], ascending."""
    return np.sort(int_columns(conn, sa.select(_tasks.c.id).where(*_live_tasks(project)))[0])


def task_images(conn: Connection, project: int) -> list[tuple[int, str | None, str]]:
    """(id, image, image state) of the live tasks, ascending ids."""
    statement = (
        sa.select(_tasks.c.id, _tasks.c.image, _tasks.c.state)
        .where(_tasks.c.project == project, _tasks.c.state != DELETED)
        .order_by(_tasks.c.id)
    )
    return [(id, image, state) for id, image, state in _stream(conn, statement)]


def images_of(conn: Connection, project: int, ids: Iterable[int]) -> dict[int, str | None]:
    """The images of those of the tasks that are live."""
    found: dict[int, str | None] = {}
    for part in chunks(plain_ids(ids)):
        statement = sa.select(_tasks.c.id, _tasks.c.image).where(
            _tasks.c.project == project, _tasks.c.id.in_(part), _tasks.c.state != DELETED
        )
        found |= {row.id: row.image for row in conn.execute(statement)}
    return found


def image(conn: Connection, project: int, id: int) -> TaskImage | None:
    """The image of one task; None when there is no such live task."""
    columns = _tasks.c.image, _tasks.c.state, _tasks.c.image_error
    row = conn.execute(sa.select(*columns).where(*_live_tasks(project), _tasks.c.id == id)).first()
    return None if row is None else TaskImage(*row)


def counts(conn: Connection, project: int) -> TaskCounts:
    statement = sa.select(_tasks.c.state, sa.func.count()).where(*_live_tasks(project)).group_by(_tasks.c.state)
    states = {state: count for state, count in conn.execute(statement)}  # noqa: C416 - rows aren't pairs
    answered = conn.execute(
        sa.select(
            sa.func.count(_annotations.c.task.distinct()),
            sa.func.count(sa.case((_annotations.c.was_cancelled, None), else_=1)),
            sa.func.count(sa.case((_annotations.c.was_cancelled, 1))),
        )
        .join(_tasks, sa.and_(_tasks.c.project == _annotations.c.project, _tasks.c.id == _annotations.c.task))
        .where(_annotations.c.project == project, _annotations.c.live, _tasks.c.state != DELETED)
    ).one()
    return TaskCounts(
        sum(states.values()), states.get(PENDING, 0), states.get(READY, 0), states.get(FAILED, 0), *answered
    )


# their images


def set_image_state(
    conn: Connection,
    project: int,
    ids: Iterable[int],
    state: str,
    error: str = "",
    images: Mapping[int, str | None] | None = None,
) -> None:
    """Set the image states of live tasks.

    images: the processed references, by task. A task whose image has changed meanwhile keeps its state.
    """
    if state not in _LIVE:
        raise ValueError(f"{state!r} is no image state")
    values = {"state": state, "image_error": error}
    for part in chunks(plain_ids(ids)):
        if images is not None:
            rows = merging.rows_of(conn, _tasks, project, part)
            part = [id for id in part if id in rows and rows[id]["image"] == schema.plain(images.get(id))]
        conn.execute(
            sa.update(_tasks)
            .where(_tasks.c.project == project, among(_tasks.c.id, part), _tasks.c.state != DELETED)
            .values(values)
        )


def pending_images(conn: Connection, project: int) -> list[tuple[int, str | None]]:
    """(task, image) of the images still to be encoded, ascending tasks."""
    statement = (
        sa.select(_tasks.c.id, _tasks.c.image)
        .where(_tasks.c.project == project, _tasks.c.state == PENDING)
        .order_by(_tasks.c.id)
    )
    return [(id, image) for id, image in _stream(conn, statement)]


def failed_images(conn: Connection, project: int, limit: int | None = None, offset: int = 0) -> list[FailedImage]:
    """By ascending task; `limit` of them after the first `offset`."""
    statement = (
        sa.select(_tasks.c.id, _tasks.c.image, _tasks.c.image_error)
        .where(_tasks.c.project == project, _tasks.c.state == FAILED)
        .order_by(_tasks.c.id)
        .limit(limit)
        .offset(offset or None)
    )
    return [FailedImage(id, image, error) for id, image, error in _stream(conn, statement)]


def retry_failed(conn: Connection, project: int) -> int:
    """failed → pending; how many."""
    statement = sa.update(_tasks).where(_tasks.c.project == project, _tasks.c.state == FAILED)
    return conn.execute(statement.values(state=PENDING, image_error="")).rowcount


# annotations


def upsert_annotations(
    conn: Connection,
    project: int,
    annotations: Sequence[Annotation],
    seen: int | Sequence[int],
    authoritative: bool = False,
) -> set[int]:
    """Insert or update annotations. Returns the tasks, known or not, whose live annotations changed.

    seen, authoritative: as for `upsert_tasks`.
    """
    enter_project(conn, project)
    affected: set[int] = set()
    for part in chunks(merging.with_seen(annotations, seen)):
        rows = merging.rows_of(conn, _annotations, project, (annotation.id for annotation, _ in part))
        changes = merging.Changes()
        for annotation, number in part:
            row = rows.get(annotation.id)
            content = {
                "task": annotation.task,
                "annotator": annotation.annotator,
                "choices": merging.plain_choices(annotation),
                "was_cancelled": annotation.was_cancelled,
                "ground_truth": annotation.ground_truth,
                "updated_at": annotation.updated_at,
                "content_seen": number,
            }
            if row is None:
                affected.add(annotation.task)
                _tell_of_unreadable(project, annotation)
                added: dict[str, Any] = {
                    "project": project,
                    "id": annotation.id,
                    "live": True,
                    "seen": number,
                    "synced_seen": number if authoritative else NEVER,
                    "deleted_seen": NEVER,
                    **content,
                }
                rows[annotation.id] = changes.add(added)
                continue
            after = dict(row)
            if merging.newer(row, annotation.updated_at, number, authoritative):
                after |= content
            after["seen"] = max(row["seen"], number)
            if authoritative:
                after["synced_seen"] = max(row["synced_seen"], number)
            after["live"] = after["deleted_seen"] < max(after["synced_seen"], 0)
            shown, was_shown = _shown(after), _shown(row)
            if shown != was_shown:
                affected |= {row["task"] for row in (after, row) if row["live"]}
                _tell_of_unreadable(project, annotation)
            rows[annotation.id] = changes.replace(row, after, number)
        changes.store(conn, _annotations, project)
    return affected


def delete_annotations(conn: Connection, project: int, ids: Collection[int], seen: int) -> set[int]:
    """Write tombstones for these annotations, also for MOST_UNHEARD unknown ones. Returns the tasks that lost one."""
    enter_project(conn, project)
    left, buried = merging.tombstones_left(conn, _annotations.c.project == project, _annotations.c.task.is_(None)), 0
    affected: set[int] = set()
    for part in chunks(plain_ids(ids)):
        before = merging.rows_of(conn, _annotations, project, part)
        affected |= {row["task"] for row in before.values() if row["live"] and row["synced_seen"] <= seen}
        _bury_annotations(conn, project, part, seen)
        unheard = [id for id in part if id not in before][: left - buried]
        put(conn, _annotations, [merging.unheard_annotation(project, id, seen) for id in unheard])
        buried += len(unheard)
    return affected


def missing_annotations(
    conn: Connection, project: int, present: np.ndarray, seen: int, of_tasks: Collection[int] | None = None
) -> list[int]:
    """The live annotations that a synchronisation did not find, nor any event after it began.

    present: int64[n], all the ids that it found; of_tasks: where it looked, None = everywhere.
    """
    statement = sa.select(_annotations.c.id).where(
        _annotations.c.project == project, _annotations.c.live, _annotations.c.seen <= seen
    )
    missing: list[int] = []
    for looked_at in [None] if of_tasks is None else list(chunks(plain_ids(of_tasks))):
        one = statement if looked_at is None else statement.where(among(_annotations.c.task, looked_at))
        missing += np.setdiff1d(int_columns(conn, one)[0], np.asarray(present, np.int64)).tolist()
    return missing


def delete_unseen_annotations(conn: Connection, project: int, ids: Sequence[int], seen: int) -> set[int]:
    """Write tombstones for these annotations, except those with an event after `seen`. Returns their tasks."""
    enter_project(conn, project)
    lost: set[int] = set()
    for part in chunks(ids):
        before = merging.rows_of(conn, _annotations, project, part).values()
        unseen = [row for row in before if row["live"] and row["seen"] <= seen]
        _bury_annotations(conn, project, [row["id"] for row in unseen], seen)
        lost |= {row["task"] for row in unseen}
    return lost


def prune(conn: Connection, project: int, through: int, limit: int = 10_000) -> int:
    """Delete tombstones without a report after the event `through`; returns how many.

    A deleted task goes with its annotations. A later report counts as new until the next comparison. At most `limit`,
    so that others don't wait long for the database: call again while it returns `limit`.
    """
    enter_project(conn, project)
    gone = sa.select(_tasks.c.id).where(
        _tasks.c.project == project, _tasks.c.state == DELETED, _tasks.c.seen <= through
    )
    tasks = list(conn.execute(gone.limit(limit)).scalars())
    for part in chunks(tasks):
        for table, column in ((_annotations, _annotations.c.task), (_tasks, _tasks.c.id)):
            conn.execute(sa.delete(table).where(table.c.project == project, among(column, part)))
    buried = sa.select(_annotations.c.id).where(
        _annotations.c.project == project,
        ~_annotations.c.live,
        _annotations.c.deleted_seen <= through,
        _annotations.c.seen <= through,
    )
    annotations = list(conn.execute(buried.limit(limit - len(tasks))).scalars())
    for part in chunks(annotations):
        conn.execute(sa.delete(_annotations).where(_annotations.c.project == project, among(_annotations.c.id, part)))
    return len(tasks) + len(annotations)


def annotated_ids(conn: Connection, project: int) -> list[int]:
    """Tasks with a live annotation, ascending; some may be deleted tasks."""
    statement = sa.select(_annotations.c.task).distinct().where(_annotations.c.project == project, _annotations.c.live)
    return sorted(int_columns(conn, statement)[0].tolist())


def annotations_of(conn: Connection, project: int, tasks: Collection[int] | None = None) -> dict[int, list[Annotation]]:
    """Live annotations of live tasks, by task, each list by time and id; all tasks unless given.

    Tasks without any are left out.
    """
    statement = (
        sa.select(_annotations)
        .join(_tasks, sa.and_(_tasks.c.project == _annotations.c.project, _tasks.c.id == _annotations.c.task))
        .where(_annotations.c.project == project, _annotations.c.live, _tasks.c.state != DELETED)
        .order_by(_annotations.c.task, _annotations.c.updated_at, _annotations.c.id)
    )
    found: dict[int, list[Annotation]] = {}
    parts = [None] if tasks is None else list(chunks(plain_ids(tasks)))
    for part in parts:
        one = statement if part is None else statement.where(among(_annotations.c.task, part))
        for row in _stream(conn, one):
            found.setdefault(row.task, []).append(merging.annotation_of(row))
    return found


def answered(conn: Connection, project: int) -> Iterator[tuple[dict[int, list[Annotation]], dict[int, str | None]]]:
    """Live annotations and images of all annotated tasks, by ascending task, some hundreds at a time."""
    for part in chunks(annotated_ids(conn, project)):
        yield dict(sorted(annotations_of(conn, project, part).items())), images_of(conn, project, part)


def _tell_of_unreadable(project: int, annotation: Annotation) -> None:
    for control, choices in annotation.choices.items():
        if choices is None:
            log.warning(
                "project %d: annotation %d of task %d has a result that can't be read (%s): it is no vote",
                project,
                annotation.id,
                annotation.task,
                f"control {control!r}" if control else "of no control",
            )


def _shown(row: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The columns that `annotations_of` returns."""
    if not row["live"]:
        return None
    names = ("task", "annotator", "choices", "was_cancelled", "ground_truth", "updated_at")
    return tuple(row[name] for name in names)


def _bury_annotations(conn: Connection, project: int, ids: Sequence[int], seen: int) -> None:
    later = _annotations.c.synced_seen > seen
    conn.execute(
        sa.update(_annotations)
        .where(_annotations.c.project == project, among(_annotations.c.id, ids), _annotations.c.deleted_seen < seen)
        .values(deleted_seen=seen, live=sa.and_(_annotations.c.live, later))
    )


def _live_tasks(project: int) -> tuple[ColumnElement[bool], ...]:
    """The condition for live tasks, with IN, so that the index by state alone answers it."""
    return _tasks.c.project == project, _tasks.c.state.in_(_LIVE)


def _stream(conn: Connection, statement: sa.Select[Any]) -> Iterable[Any]:
    return conn.execute(statement.execution_options(yield_per=10_000))
