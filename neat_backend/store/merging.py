"""Merging a stored row with a new report of it; see tasks.py for the rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection

from neat_backend.records import Annotation
from neat_backend.store.schema import NEVER
from neat_backend.store.sql import among, put

DELETED = "deleted"  # state of a deleted task, which a late webhook can't restore
MOST_UNHEARD = 100_000  # tombstones; beyond it none for unknown rows: 190 bytes each


def tombstones_left(conn: Connection, *tombstones: ColumnElement[bool]) -> int:
    """How many more tombstones of unknown rows are allowed."""
    found = sa.select(sa.literal(1)).where(*tombstones).limit(MOST_UNHEARD).subquery()
    return MOST_UNHEARD - conn.execute(sa.select(sa.func.count()).select_from(found)).scalar_one()


def unheard_task(project: int, id: int, seen: int) -> dict[str, Any]:
    return {
        "project": project,
        "id": id,
        "state": DELETED,
        "seen": seen,
        "content_seen": NEVER,
        "updated_at": None,
        "has_annotations": False,
        "image": None,
        "image_error": "",
    }


def unheard_annotation(project: int, id: int, seen: int) -> dict[str, Any]:
    return {
        "project": project,
        "id": id,
        "live": False,
        "seen": NEVER,
        "synced_seen": NEVER,
        "deleted_seen": seen,
        "content_seen": NEVER,
        "task": None,
        "annotator": None,
        "choices": {},
        "was_cancelled": False,
        "ground_truth": False,
        "updated_at": None,
    }


def newer(row: Mapping[str, Any], updated_at: Any, seen: int, authoritative: bool) -> bool:
    if row["updated_at"] is None or (authoritative and seen > row["content_seen"]):
        return True
    if not authoritative and seen <= row.get("synced_seen", NEVER):
        return False  # it had come when the reading began
    return (updated_at, seen) >= (row["updated_at"], row["content_seen"])


def rows_of(conn: Connection, table: sa.Table, project: int, ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """The existing rows of at most a chunk of ids."""
    statement = sa.select(table).where(table.c.project == project, among(table.c.id, ids))
    return {row["id"]: dict(row) for row in conn.execute(statement).mappings()}


def sort_in(
    after: dict[str, Any],
    row: Mapping[str, Any],
    write: dict[int, dict[str, Any]],
    touch: dict[frozenset[str], list[int]],
) -> None:
    """Add an existing row to `write` when it has changed, else to `touch`, by columns.

    A synchronisation finds mostly unchanged rows; one UPDATE then does for hundreds of them.
    """
    changed = frozenset(name for name in row if after[name] != row[name])
    if row["id"] in write or not changed <= {"seen", "content_seen", "synced_seen"}:
        write[row["id"]] = after
    elif changed:
        touch.setdefault(changed, []).append(row["id"])


def store(
    conn: Connection,
    table: sa.Table,
    project: int,
    write: Mapping[int, dict[str, Any]],
    touch: Mapping[frozenset[str], list[int]],
    seen: int,
) -> None:
    put(conn, table, list(write.values()))
    for columns, ids in touch.items():
        ids = [id for id in ids if id not in write]
        conn.execute(
            sa.update(table)
            .where(table.c.project == project, among(table.c.id, ids))
            .values(dict.fromkeys(columns, seen))
        )


def annotation_of(row: Any) -> Annotation:
    return Annotation(
        id=row.id,
        task=row.task,
        annotator=row.annotator,
        choices={
            name: None if choices is None else tuple(tuple(one) if isinstance(one, list) else one for one in choices)
            for name, choices in row.choices.items()
        },
        was_cancelled=row.was_cancelled,
        ground_truth=row.ground_truth,
        updated_at=row.updated_at,
    )


def plain_choices(annotation: Annotation) -> dict[str, list[str | list[str]] | None]:
    """The annotation's choices as JSON gives them back."""
    return {
        name: None if choices is None else [list(one) if isinstance(one, tuple) else one for one in choices]
        for name, choices in annotation.choices.items()
    }
