"""A task's rank and inconsistency in the served order when it was chosen.

Stored with the answer that labels a task of the pool, so a task that is unlabelled and answered again gets new numbers.
Labels from before the first order have none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy import Connection

from neat_backend.store import schema
from neat_backend.store.sql import among, chunks, plain_ids, put

_table = schema.selections


@dataclass(frozen=True)
class Selection:
    """A task's place in the order at the moment when its label came in."""

    rank: int  # 0 = it was the next one to label
    inconsistency: float  # Eq. 5


def note(conn: Connection, project: int, found: Mapping[int, Selection]) -> None:
    """Keep these selections, by task, in place of earlier ones."""
    for part in chunks(sorted(found)):
        rows = [
            {"project": project, "task": task, "rank": found[task].rank, "inconsistency": found[task].inconsistency}
            for task in part
        ]
        put(conn, _table, rows)


def of(conn: Connection, project: int, tasks: Iterable[int]) -> dict[int, Selection]:
    """The stored selections of these tasks."""
    found: dict[int, Selection] = {}
    for part in chunks(plain_ids(tasks)):
        statement = sa.select(_table.c.task, _table.c.rank, _table.c.inconsistency).where(
            _table.c.project == project, among(_table.c.task, part)
        )
        found |= {task: Selection(rank, inconsistency) for task, rank, inconsistency in conn.execute(statement)}
    return found
