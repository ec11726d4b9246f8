"""Pre-filled choices, and whether annotators kept them.

A row is a task with a published prediction: its choice and, after the first answer, whether that was the answer. The
row is written in the transaction that switches to a revision. Rows of answered tasks don't change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from neat_backend.store import schema
from neat_backend.store.sql import among, chunks, insert, plain_ids

_table = schema.prefills


@dataclass(frozen=True)
class Kept:
    """Counts of published tasks that have been answered."""

    answered: int
    filled: int  # with a choice filled in
    kept: int  # of these, answered with that choice


def publish(conn: Connection, project: int, choices: Mapping[int, str | None]) -> None:
    """Record the choices that tasks show from now on; None = nothing is filled in."""
    for part in chunks(sorted(choices)):
        statement = insert(conn, _table)
        rows = [{"project": project, "task": task, "choice": choices[task] or ""} for task in part]
        update = {"choice": statement.excluded.choice}
        conn.execute(
            statement.on_conflict_do_update(
                index_elements=["project", "task"], set_=update, where=_table.c.kept.is_(None)
            ),
            rows,
        )


def answer(conn: Connection, project: int, labels: Mapping[int, str | None]) -> None:
    """Record answers of tasks: a choice, or None for none of the classes. Only a task's first answer counts."""
    for part in chunks(plain_ids(labels)):
        open_rows = _table.c.project == project, among(_table.c.task, part), _table.c.kept.is_(None)
        shown = conn.execute(sa.select(_table.c.task, _table.c.choice).where(*open_rows)).all()
        for kept in (True, False):
            tasks = [row.task for row in shown if kept == bool(row.choice and row.choice == labels[row.task])]
            if tasks:
                one = _table.c.project == project, among(_table.c.task, tasks)
                conn.execute(sa.update(_table).where(*one).values(kept=kept))


def kept(conn: Connection, project: int) -> Kept:
    """The counts so far."""
    filled, right = (sa.func.sum(sa.case((one, 1), else_=0)) for one in (_table.c.choice != "", _table.c.kept))
    statement = sa.select(sa.func.count(), filled, right).where(_table.c.project == project, _table.c.kept.is_not(None))
    return Kept(*(int(number or 0) for number in conn.execute(statement).one()))
