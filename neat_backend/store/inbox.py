"""The inbox: every event is a row before it is acknowledged. Only this file changes an event's state.

    append ──▶ queued ──mark_applied──▶ applied ──prune──▶ gone
                │  ▲      drop: queued ──▶ gone, where nobody has connected the project
      set_aside ▼  │ requeue
              set_aside            a person looks at it

A transition from any other state is refused with StoreError. Ids rise with time; those of one
project also become visible in that order, so nothing can appear below an id already taken.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement, Connection

from neat_backend.errors import StoreError
from neat_backend.records import Event
from neat_backend.store import notices, schema
from neat_backend.store.sql import among, chunks, clock, insert, plain_ids

QUEUED = "queued"  # acknowledged, not yet applied
APPLIED = "applied"  # the engine's state has it
SET_ASIDE = "set_aside"  # failed too often; later events are applied without it

ITEMS_AT_ONCE = 5_000  # tasks and annotations, in events applied at a time
_ROWS_READ_AT_ONCE = 8

_table = schema.events
_heads = schema.inbox_heads
_EVENT = (
    _table.c.id,
    _table.c.project,
    _table.c.action,
    _table.c.payload,
    _table.c.received_at,
    _table.c.attempts,
)


@dataclass(frozen=True)
class QueueDepth:
    """The length of the inbox's queue."""

    count: int  # queued events
    oldest_seconds: float  # how long the oldest of them has waited, 0 when there is none
    set_aside: int


def append(conn: Connection, project: int, action: str, payload: Mapping[str, Any]) -> int:
    """File one event; returns its id."""
    return append_many(conn, [(project, action, payload)])[0]


def append_many(conn: Connection, events: Iterable[tuple[int, str, Mapping[str, Any]]]) -> list[int]:
    """File events in this order; returns their ids, rising."""
    events = list(events)
    if not events:
        return []
    # The heads are locked before an id is drawn, always in the same order: see schema.inbox_heads.
    lock = insert(conn, _heads)
    lock = lock.on_conflict_do_update(index_elements=["project"], set_={"received_through": _heads.c.received_through})
    for project in sorted({project for project, _, _ in events}):
        conn.execute(lock.values(project=project, received_through=0))
    now = clock(conn)
    rows = [
        {
            "project": project,
            "action": action,
            "state": QUEUED,
            "received_at": now,
            "applied_at": None,
            "attempts": 0,
            "error": "",
            "payload": dict(payload),
        }
        for project, action, payload in events
    ]
    if len(rows) == 1:
        ids = [int(conn.execute(sa.insert(_table).returning(_table.c.id), rows[0]).scalar_one())]
    else:
        statement = sa.insert(_table).returning(_table.c.id, sort_by_parameter_order=True)
        ids = [int(id) for id in conn.execute(statement, rows).scalars()]
    highest = {project: id for (project, _, _), id in zip(events, ids, strict=True)}
    for project, id in sorted(highest.items()):
        conn.execute(sa.update(_heads).where(_heads.c.project == project).values(received_through=id))
        notices.note(conn, project, notices.EVENTS)
    return ids


def pending(conn: Connection, project: int, limit: int = 500, items: int = ITEMS_AT_ONCE) -> list[Event]:
    """The queued events of a project, oldest first, at most `limit`, and no more after `items` tasks and annotations.

    A large import gives events of thousands of tasks each: 500 of these would be gigabytes, and on SQLite webhooks wait
    while they are applied.
    """
    statement = sa.select(*_EVENT).where(_in(QUEUED), _table.c.project == project).order_by(_table.c.id).limit(limit)
    found: list[Event] = []
    held = 0
    with conn.execute(statement.execution_options(yield_per=_ROWS_READ_AT_ONCE)) as rows:
        for row in rows:
            found.append(_event(row))
            held += sum(len(value) for value in found[-1].payload.values() if isinstance(value, list))
            if held >= items:
                break
    return found


def mark_applied(conn: Connection, ids: Collection[int]) -> None:
    """queued → applied, all or none."""
    _move(conn, ids, QUEUED, state=APPLIED, applied_at=clock(conn))


def record_attempt(conn: Connection, id: int, error: str) -> int:
    """Record that applying a queued event failed; returns its number of failures."""
    statement = (
        sa.update(_table)
        .where(_table.c.id == id, _in(QUEUED))
        .values(attempts=_table.c.attempts + 1, error=error)
        .returning(_table.c.attempts)
    )
    attempts = conn.execute(statement).scalar()
    if attempts is None:
        raise StoreError(f"Event {id} is not queued")
    return int(attempts)


def set_aside(conn: Connection, id: int, error: str) -> None:
    """queued → set_aside: the event blocks others, and a person should look at it."""
    _move(conn, [id], QUEUED, state=SET_ASIDE, error=error)


def requeue(conn: Connection, id: int) -> None:
    """set_aside → queued, with its attempts reset."""
    _move(conn, [id], SET_ASIDE, state=QUEUED, attempts=0)
    project = conn.execute(sa.select(_table.c.project).where(_table.c.id == id)).scalar_one()
    notices.note(conn, project, notices.EVENTS)


def set_aside_events(conn: Connection, project: int) -> list[tuple[Event, str]]:
    """The events set aside, oldest first, each with its error."""
    statement = (
        sa.select(*_EVENT, _table.c.error).where(_in(SET_ASIDE), _table.c.project == project).order_by(_table.c.id)
    )
    return [(_event(row), row.error) for row in conn.execute(statement)]


def received_through(conn: Connection, project: int) -> int:
    """The highest id that the project ever had, 0 if none; pruning doesn't lower it."""
    statement = sa.select(_heads.c.received_through).where(_heads.c.project == project)
    return conn.execute(statement).scalar() or 0


def projects_with_work(conn: Connection) -> list[int]:
    """Projects with queued events, by id."""
    statement = sa.select(_table.c.project).where(_in(QUEUED)).distinct().order_by(_table.c.project)
    return list(conn.execute(statement).scalars())


def depth(conn: Connection, project: int | None = None) -> QueueDepth:
    """How much is queued and set aside, in one project or in all."""
    one = sa.true() if project is None else _table.c.project == project
    queued = sa.select(sa.func.count(), sa.func.min(_table.c.received_at, type_=schema.UtcDateTime))
    count, oldest = conn.execute(queued.where(_in(QUEUED), one)).one()
    aside = conn.execute(sa.select(sa.func.count()).where(_in(SET_ASIDE), one)).scalar_one()
    waited = 0.0 if oldest is None else max(0.0, (clock(conn) - oldest).total_seconds())
    return QueueDepth(count, waited, aside)


def has_pending(conn: Connection, project: int, action: str) -> bool:
    """Whether an event of this action is queued."""
    statement = sa.select(_table.c.id).where(_in(QUEUED), _table.c.project == project, _table.c.action == action)
    return conn.execute(statement.limit(1)).first() is not None


def has_arrived(conn: Connection, project: int, action: str, after: int) -> bool:
    """Whether an event of this action has arrived after the event `after`, in any state."""
    statement = sa.select(_table.c.id).where(
        _table.c.project == project, _table.c.action == action, _table.c.id > after
    )
    return conn.execute(statement.limit(1)).first() is not None


def applied_since(conn: Connection, project: int, action: str, moment: datetime | None) -> bool:
    """Whether an event of this action has been applied after `moment` (None: ever), except pruned ones."""
    statement = sa.select(_table.c.id).where(_in(APPLIED), _table.c.project == project, _table.c.action == action)
    if moment is not None:
        statement = statement.where(_table.c.applied_at > moment)
    return conn.execute(statement.limit(1)).first() is not None


def drop(conn: Connection, project: int, through: int) -> int:
    """Delete the queued events of an unconnected project up to this id; returns how many."""
    gone = _in(QUEUED), _table.c.project == project, _table.c.id <= through
    return conn.execute(sa.delete(_table).where(*gone)).rowcount


def settled_through(conn: Connection, project: int, applied_before: datetime) -> int:
    """The highest id up to which all events were applied before `applied_before`; 0 = none."""
    old = (
        sa.select(_table.c.id)
        .where(_in(APPLIED), _table.c.applied_at < applied_before)
        .order_by(_table.c.applied_at.desc(), _table.c.id.desc())
        .limit(1)
    )
    waiting = sa.select(sa.func.min(_table.c.id)).where(
        _table.c.project == project, sa.or_(_in(QUEUED), _in(SET_ASIDE))
    )
    highest, first_waiting = conn.execute(old).scalar() or 0, conn.execute(waiting).scalar()
    return highest if first_waiting is None else min(highest, first_waiting - 1)


def prune(conn: Connection, applied_before: datetime, limit: int = 10_000) -> int:
    """Delete events applied before this time, oldest first; returns how many.

    At most `limit`, so that others don't wait long for the database: call again while it returns `limit`.
    """
    old = (
        sa.select(_table.c.id)
        .where(_in(APPLIED), _table.c.applied_at < applied_before)
        .order_by(_table.c.applied_at, _table.c.id)
        .limit(limit)
    )
    return conn.execute(sa.delete(_table).where(_table.c.id.in_(old))).rowcount


def _in(state: str) -> ColumnElement[bool]:
    """state = 'queued', written out: a bound value would not match the partial indices."""
    return _table.c.state == sa.literal_column(f"'{state}'")


def _move(conn: Connection, ids: Collection[int], source: str, **values: Any) -> None:
    """Move all of these events to another state. Raises StoreError, and moves none, if one is in the wrong state."""
    parts = list(chunks(plain_ids(ids)))
    wrong = []
    for part in parts:
        rows = conn.execute(sa.select(_table.c.id, _table.c.state).where(among(_table.c.id, part)).with_for_update())
        states: dict[int, str] = {row.id: row.state for row in rows}
        wrong += [f"{id} is {states.get(id, 'not there')}" for id in part if states.get(id) != source]
    if wrong:
        shown = ", ".join(wrong[:5]) + (", …" if len(wrong) > 5 else "")
        raise StoreError(f"Events must be {source} for this: {shown}")
    for part in parts:
        conn.execute(sa.update(_table).where(among(_table.c.id, part)).values(values))


def _event(row: Any) -> Event:
    return Event(row.id, row.project, row.action, row.payload, row.received_at, row.attempts)
