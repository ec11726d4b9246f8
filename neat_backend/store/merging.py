"""Merging a stored row with a new report of it; see tasks.py for the rule."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection

from neat_backend.records import Annotation
from neat_backend.store.schema import NEVER
from neat_backend.store.sql import among, put

Item = TypeVar("Item")

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


def with_seen(items: Sequence[Item], seen: int | Sequence[int]) -> list[tuple[Item, int]]:
    """Each item with its number."""
    numbers = [seen] * len(items) if isinstance(seen, int) else seen
    return list(zip(items, numbers, strict=True))


def rows_of(conn: Connection, table: sa.Table, project: int, ids: Iterable[int]) -> dict[int, dict[str, Any]]:
    """The existing rows of at most a chunk of ids."""
    statement = sa.select(table).where(table.c.project == project, among(table.c.id, ids))
    return {row["id"]: dict(row) for row in conn.execute(statement).mappings()}


class Changes:
    """Changes of one table's rows, collected so that a few statements store many of them.

    A synchronisation finds mostly unchanged rows, of which only the event number rises; one UPDATE does for hundreds.
    """

    def __init__(self) -> None:
        self._written: dict[int, dict[str, Any]] = {}
        self._touched: dict[tuple[frozenset[str], int], list[int]] = {}

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Insert a row; returns it."""
        self._written[row["id"]] = row
        return row

    def replace(self, row: Mapping[str, Any], after: dict[str, Any], seen: int) -> dict[str, Any]:
        """Replace an existing row, of which a report with the number `seen` made `after`; returns that."""
        changed = frozenset(name for name in row if after[name] != row[name])
        if row["id"] in self._written or not changed <= {"seen", "content_seen", "synced_seen"}:
            self._written[row["id"]] = after
        elif changed:
            self._touched.setdefault((changed, seen), []).append(row["id"])
        return after

    def store(self, conn: Connection, table: sa.Table, project: int) -> None:
        put(conn, table, list(self._written.values()))
        for (columns, seen), ids in self._touched.items():
            ids = [id for id in ids if id not in self._written]
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
