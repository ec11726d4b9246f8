"""Query rounds.

start ──▶ running ──finish──▶ done
             └──fail, abandon_running──▶ failed
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from neat_backend.errors import StoreError
from neat_backend.records import Round
from neat_backend.store import schema
from neat_backend.store.sql import clock, enter_project

RUNNING = "running"
DONE = "done"
FAILED = "failed"

_table = schema.rounds
_columns = [column for column in _table.c if column.name != "project"]


@dataclass(frozen=True)
class NewRound:
    """A new round; fields as in `records.Round`."""

    trigger: str
    known: int
    invalid: int
    unlabelled: int
    queried: int
    queried_known: int
    classes: Sequence[str]


def start(conn: Connection, project: int, new: NewRound) -> Round:
    """A new running round with the next number; the first is 1."""
    enter_project(conn, project)
    last = conn.execute(sa.select(sa.func.max(_table.c.number)).where(_table.c.project == project)).scalar()
    round = Round(
        number=(last or 0) + 1,
        trigger=new.trigger,
        state=RUNNING,
        known=new.known,
        invalid=new.invalid,
        unlabelled=new.unlabelled,
        queried=new.queried,
        queried_known=new.queried_known,
        classes=tuple(new.classes),
        started_at=clock(conn),
    )
    conn.execute(sa.insert(_table).values(project=project, **{c.name: getattr(round, c.name) for c in _columns}))
    return round


def finish(
    conn: Connection, project: int, number: int, *, seconds: float, held_out: int, held_out_correct: int
) -> Round:
    """running → done."""
    return _end(
        conn, project, number, state=DONE, seconds=seconds, held_out=held_out, held_out_correct=held_out_correct
    )


def fail(conn: Connection, project: int, number: int, error: str) -> Round:
    """running → failed."""
    return _end(conn, project, number, state=FAILED, error=error)


def abandon_running(conn: Connection, project: int) -> int:
    """running → failed, "interrupted", for rounds whose process is gone; returns how many."""
    statement = sa.update(_table).where(_table.c.project == project, _table.c.state == RUNNING)
    return conn.execute(statement.values(state=FAILED, error="interrupted", finished_at=clock(conn))).rowcount


def latest(conn: Connection, project: int, state: str = DONE) -> Round | None:
    """The highest round in this state."""
    statement = _select(project).where(_table.c.state == state).order_by(_table.c.number.desc()).limit(1)
    row = conn.execute(statement).first()
    return None if row is None else _round(row)


def all(conn: Connection, project: int) -> list[Round]:
    """Every round, by number."""
    return [_round(row) for row in conn.execute(_select(project).order_by(_table.c.number))]


def _end(conn: Connection, project: int, number: int, **values: Any) -> Round:
    statement = (
        sa.update(_table)
        .where(_table.c.project == project, _table.c.number == number, _table.c.state == RUNNING)
        .values(finished_at=clock(conn), **values)
    )
    ended = conn.execute(statement).rowcount
    row = conn.execute(_select(project).where(_table.c.number == number)).first()
    if not ended or row is None:
        is_now = "not there" if row is None else row.state
        raise StoreError(f"Round {number} of project {project} must be running for this, it is {is_now}")
    return _round(row)


def _select(project: int) -> sa.Select[Any]:
    return sa.select(*_columns).where(_table.c.project == project)


def _round(row: Any) -> Round:
    return Round(**{**row._mapping, "classes": tuple(row.classes)})
