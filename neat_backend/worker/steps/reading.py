"""Reading a whole project from Label Studio into the store.

Webhooks keep arriving meanwhile. An event that arrived after the reading began is newer than the data read: each write
carries the number of the inbox's last event at that moment (`seen`), and the store ignores older data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.labelstudio.publisher import UNCERTAINTY
from neat_backend.records import Label
from neat_backend.store import inbox, prefills, selections, tasks
from neat_backend.store.database import Database
from neat_backend.store.selections import Selection
from neat_backend.store.sql import chunks
from neat_backend.worker.steps.context import Context

if TYPE_CHECKING:
    from neat_backend.labelstudio.client import ProjectInfo

log = logging.getLogger(__name__)

FORGOTTEN_AT_ONCE = 5000


@dataclass(frozen=True)
class Synced:
    """The result of a synchronisation."""

    info: ProjectInfo
    config: LabelConfig
    seen: int  # the inbox's last event when the reading began
    tasks: int
    annotations: int
    deleted_tasks: int
    relabelled: frozenset[int] = frozenset()  # tasks whose annotations changed


def read_project(context: Context, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Synced:
    """Make the store equal to Label Studio's current data.

    Raises BadLabelConfig when the label config can't be used (it is stored nevertheless), LabelStudioError when Label
    Studio can't be read: data read so far stays, and nothing counts as deleted.
    """
    project, client, database = context.project, context.client, context.database
    seen, info, config = _look(context)
    present: list[NDArray[np.int64]] = [np.empty(0, np.int64)]  # eight bytes a task
    read = 0
    for page in client.tasks(project, config.image_key):
        with database.begin() as conn:
            tasks.upsert_tasks(conn, project, page, seen, authoritative=True)
        present.append(np.array([task.id for task in page], np.int64))
        read += len(page)
        on_progress(read, max(info.task_count, read))
    annotations: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    relabelled: set[int] = set()
    for answers in client.annotations(project):
        with database.begin() as conn:
            relabelled |= tasks.upsert_annotations(conn, project, answers, seen, authoritative=True)
        annotations.append(np.array([answer.id for answer in answers], np.int64))
    answered = np.concatenate(annotations)
    with database.read() as conn:
        missing = tasks.missing_tasks(conn, project, np.concatenate(present), seen)
        without = tasks.missing_annotations(conn, project, answered, seen)
    deleted = _delete(database, project, missing, seen)
    for part in chunks(without, FORGOTTEN_AT_ONCE):
        with database.begin() as conn:
            tasks.delete_unseen_annotations(conn, project, part, seen)
    log.info(
        "project %d: read %d tasks and %d annotations, %d tasks are gone",
        project,
        read,
        len(answered),
        len(deleted),
    )
    return Synced(info, config, seen, read, len(answered), len(deleted), frozenset(relabelled))


def read_slice(context: Context, image_key: str, page_size: int, places: int) -> list[int]:
    """Store a few tasks from all over a project, with their annotations; returns their ids. See `spread_tasks`.

    Raises LabelStudioError.
    """
    project, database = context.project, context.database
    with database.read() as conn:
        seen = inbox.received_through(conn, project)
    found = context.client.spread_tasks(project, image_key, page_size, places)
    with database.begin() as conn:
        tasks.upsert_tasks(conn, project, found, seen, authoritative=True)
    answered = [task.id for task in found if task.has_annotations]
    if answered:
        read_annotations(context, answered)
    log.info("project %d: %d tasks read for a first order", project, len(found))
    return [task.id for task in found]


def _look(context: Context) -> tuple[int, ProjectInfo, LabelConfig]:
    """The inbox's last event, and after it the project and its label config, stored even where that can't be used."""
    with context.database.read() as conn:
        seen = inbox.received_through(conn, context.project)
    info = context.client.project(context.project)
    context.update(title=info.title, label_config=info.label_config, sampling=info.sampling)
    return seen, info, label_config.read(info.label_config, context.settings)


@dataclass(frozen=True)
class Changed:
    """Changes that a comparison with Label Studio made in the store, by task."""

    new_images: set[int] = field(default_factory=set)  # new, revived, or with another image
    image_changed: set[int] = field(default_factory=set)
    relabelled: set[int] = field(default_factory=set)
    deleted: set[int] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.new_images or self.relabelled or self.deleted)


def read_changes(context: Context, since: datetime, image_key: str) -> Iterator[Changed]:
    """Store the tasks that changed after `since` (Label Studio's clock), with their present annotations.

    Yields the changes of each page. For these tasks the result equals a whole reading; deleted tasks are not found, see
    `forget_deleted`. Raises LabelStudioError; data read so far stays.
    """
    project, client, database = context.project, context.client, context.database
    with database.read() as conn:
        seen = inbox.received_through(conn, project)
    for page, answers in client.changed_tasks(project, image_key, since):
        looked_at = [task.id for task in page]
        present = np.array([answer.id for answer in answers], np.int64)
        with database.begin() as conn:
            done = tasks.upsert_tasks(conn, project, page, seen, authoritative=True)
            relabelled = tasks.upsert_annotations(conn, project, answers, seen, authoritative=True)
            missing = tasks.missing_annotations(conn, project, present, seen, looked_at)
            relabelled |= tasks.delete_unseen_annotations(conn, project, missing, seen)
        yield Changed({*done.new, *done.revived, *done.image_changed}, set(done.image_changed), relabelled)


def forget_deleted(context: Context) -> Iterator[list[int]]:
    """Write tombstones for tasks that Label Studio no longer has, by the ids of all its tasks; yields their ids.

    Each page covers all ids from the previous page to its own last one, so memory holds one page of ids of either side.
    Raises LabelStudioError; tombstones written so far stay.
    """
    project, client, database = context.project, context.client, context.database
    with database.read() as conn:
        seen = inbox.received_through(conn, project)
    above = 0
    for page in client.task_ids(project):
        present = np.array(page, np.int64)
        upto = int(present.max())
        with database.read() as conn:
            missing = tasks.missing_tasks(conn, project, present, seen, above, upto)
        yield _delete(database, project, missing, seen)
        above = upto
    with database.read() as conn:
        missing = tasks.missing_tasks(conn, project, np.empty(0, np.int64), seen, above)
    yield _delete(database, project, missing, seen)


def _delete(database: Database, project: int, missing: Sequence[int], seen: int) -> list[int]:
    """Write tombstones for missing tasks, in short transactions; returns their ids."""
    deleted: list[int] = []
    for part in chunks(missing, FORGOTTEN_AT_ONCE):
        with database.begin() as conn:
            deleted += tasks.delete_unseen_tasks(conn, project, part, seen)
    return deleted


def read_annotations(context: Context, of_tasks: Sequence[int]) -> None:
    """Read the annotations of a few tasks: those imported together with their annotations."""
    project, client, database = context.project, context.client, context.database
    with database.read() as conn:
        seen = inbox.received_through(conn, project)
    for answers in client.annotations(project, of_tasks):
        with database.begin() as conn:
            tasks.upsert_annotations(conn, project, answers, seen, authoritative=True)


def configure(context: Context) -> None:
    """Configure Label Studio to serve this order: uncertainty sampling.

    Once for each connection; a later change of the sampling by a person is respected.
    """
    context.client.set_sampling(context.project, UNCERTAINTY)
    context.update(sampling=UNCERTAINTY)
    log.info("project %d: sampling is %r", context.project, UNCERTAINTY)


def note_chosen(conn: Connection, project: int, config: LabelConfig, chosen: Mapping[int, Selection]) -> None:
    """Store the ranks of tasks at their answers, and whether the pre-filled choice was kept."""
    answers = tasks.annotations_of(conn, project, chosen) if chosen else {}
    labels = {task: label_config.resolve(task, found, config).choice for task, found in answers.items()}
    selections.note(conn, project, chosen)
    prefills.answer(conn, project, labels)


def resolve_labels(
    database: Database, project: int, config: LabelConfig, of_tasks: Iterable[int] | None = None
) -> list[Label]:
    """The labels of tasks (default: all), resolved from their stored annotations."""
    wanted = None if of_tasks is None else list(of_tasks)
    with database.read() as conn:
        answers = tasks.annotations_of(conn, project, wanted)
        if wanted is None:
            wanted = tasks.task_ids(conn, project).tolist()
    return [label_config.resolve(task, answers.get(task, []), config) for task in wanted]
