"""The connected projects: fields, state, and the lease of the worker that owns each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, fields
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from neat_backend.errors import UnknownProject
from neat_backend.records import Project
from neat_backend.store import notices, schema
from neat_backend.store.sql import among, clock, insert

CONNECTING = "connecting"  # /setup has come; label config and rights not checked yet
SYNCING = "syncing"  # tasks and annotations are being read from Label Studio
EMBEDDING = "embedding"  # images are being fetched and encoded; labels are applied meanwhile
READY = "ready"  # every label gives a new order
BLOCKED = "blocked"  # a person must act; `detail` says what
AWAY = "away"  # Label Studio does not answer; tried again by itself
DISCONNECTED = "disconnected"  # Label Studio has no connection to this backend any more: nothing is published

_HOLD_SECONDS = 5  # see hold_lease
_LONGEST_LEASE_SECONDS = 600  # one that ends later was given before the clock was set back: it counts as run out

_table = schema.projects
_FIELDS = tuple(field.name for field in fields(Project))
_SETTABLE = frozenset(_FIELDS) - {"id"}


def get(conn: Connection, id: int) -> Project | None:
    row = conn.execute(_select().where(_table.c.id == id)).first()
    return None if row is None else _project(row)


def known(conn: Connection, id: int) -> Project:
    """The same; raises UnknownProject."""
    found = get(conn, id) if 0 < id < 2**63 else None  # larger: no database's number
    if found is None:
        raise UnknownProject(id)
    return found


def all(conn: Connection) -> list[Project]:
    """Every connected project, by id."""
    return [_project(row) for row in conn.execute(_select().order_by(_table.c.id))]


def save_connection(conn: Connection, id: int, **fields: Any) -> Project:
    """The project with `fields` set, made if it is new. An unknown field raises TypeError."""
    _check(fields)
    row = asdict(Project(id)) | fields
    statement = insert(conn, _table).values(row)
    if fields:
        statement = statement.on_conflict_do_update(index_elements=["id"], set_=fields)
    else:
        statement = statement.on_conflict_do_nothing(index_elements=["id"])
    conn.execute(statement)
    notices.note(conn, id, notices.PROJECTS)
    project = get(conn, id)
    assert project is not None
    return project


def update(conn: Connection, id: int, **fields: Any) -> None:
    """Set `fields`. An unknown field raises TypeError, an unknown project UnknownProject."""
    _check(fields)
    statement = sa.update(_table).where(_table.c.id == id).values(fields or {"id": id})
    if conn.execute(statement).rowcount == 0:
        raise UnknownProject(id)


def delete(conn: Connection, id: int) -> None:
    """Delete the project with all its rows and events. The arrays are not touched."""
    conn.execute(sa.select(_table.c.id).where(_table.c.id == id).with_for_update())  # first, as its owner does
    for table in (
        schema.annotations,
        schema.selections,
        schema.prefills,
        schema.requests,
        schema.array_files,
        schema.array_lists,
        schema.tasks,
        schema.rounds,
        schema.revisions,
        schema.events,
        schema.inbox_heads,
    ):
        conn.execute(sa.delete(table).where(table.c.project == id))
    conn.execute(sa.delete(_table).where(_table.c.id == id))
    notices.note(conn, id, notices.PROJECTS)


def acquire_lease(conn: Connection, id: int, owner: str, seconds: float, now: datetime | None = None) -> bool:
    """Become, or stay, the owner of the project for the next `seconds`.

    False while another owner's lease runs, and for a project that is not connected. `now`: the
    database's clock unless given.
    """
    now = now or clock(conn)
    # Don't wait for the row: a process that has it locked is in `hold_lease`, alive or cut off.
    free = (
        sa.select(_table.c.id)
        .where(
            _table.c.id == id,
            sa.or_(_table.c.lease_owner.is_(None), _table.c.lease_owner == owner, sa.not_(_runs(now))),
        )
        .with_for_update(skip_locked=True, key_share=True)
    )
    if conn.execute(free).first() is None:
        return False
    until = now + timedelta(seconds=seconds)
    conn.execute(sa.update(_table).where(_table.c.id == id).values(lease_owner=owner, lease_until=until))
    return True


def keep_leases(conn: Connection, ids: Collection[int], owner: str, seconds: float) -> set[int]:
    """Extend the owner's leases to `seconds` from now; returns the projects that the owner still has.

    An expired lease is extended unless another worker has taken the project. One that was taken and released meanwhile
    is lost: this owner's memory lacks the other's changes.
    """
    mine = sa.and_(among(_table.c.id, ids), _table.c.lease_owner == owner)
    lock = sa.select(_table.c.id).where(mine).with_for_update(skip_locked=True, key_share=True)
    unlocked = list(conn.execute(lock).scalars())
    # The new end may be earlier: then the clock has been set back.
    until = clock(conn) + timedelta(seconds=seconds)
    conn.execute(sa.update(_table).where(among(_table.c.id, unlocked)).values(lease_until=until))
    return set(conn.execute(sa.select(_table.c.id).where(mine)).scalars())


def hold_lease(conn: Connection, id: int, owner: str) -> bool:
    """Whether the owner has the project; if so, it keeps it until this transaction ends.

    For writes that only the owner may make. PostgreSQL ends a transaction that its process leaves idle
    for _HOLD_SECONDS, so that a stopped process does not keep the project for ever.
    """
    if conn.dialect.name == "postgresql":
        limit = f"{_HOLD_SECONDS}s"
        conn.execute(sa.select(sa.func.set_config("idle_in_transaction_session_timeout", limit, True)))
    mine = sa.select(_table.c.id).where(_table.c.id == id, _table.c.lease_owner == owner)
    return conn.execute(mine.with_for_update(key_share=True)).first() is not None


def release_lease(conn: Connection, id: int, owner: str) -> None:
    """Release the lease; no effect if another worker has it."""
    released = conn.execute(
        sa.update(_table)
        .where(_table.c.id == id, _table.c.lease_owner == owner)
        .values(lease_owner=None, lease_until=None)
    )
    if released.rowcount:
        notices.note(conn, id, notices.PROJECTS)


def lease_owner(conn: Connection, id: int, now: datetime | None = None) -> str | None:
    """The owner of the project; None when there is none or the lease has expired."""
    now = now or clock(conn)
    owner: str | None = conn.execute(sa.select(_table.c.lease_owner).where(_table.c.id == id, _runs(now))).scalar()
    return owner


def lease_owners(conn: Connection) -> dict[int, str]:
    """The owner of each project that has one."""
    rows = conn.execute(sa.select(_table.c.id, _table.c.lease_owner).where(_runs(clock(conn))))
    return {row.id: row.lease_owner for row in rows if row.lease_owner is not None}


def _runs(now: datetime) -> sa.ColumnElement[bool]:
    """Whether the lease still runs. A lease longer than any given has expired: a clock jump must not lock a project."""
    return sa.func.coalesce(
        sa.and_(_table.c.lease_until > now, _table.c.lease_until <= now + timedelta(seconds=_LONGEST_LEASE_SECONDS)),
        sa.false(),
    )


def _select() -> sa.Select[Any]:
    return sa.select(*(_table.c[name] for name in _FIELDS))


def _project(row: Any) -> Project:
    return Project(**row._mapping)


def _check(fields: dict[str, Any]) -> None:
    unknown = sorted(set(fields) - _SETTABLE)
    if unknown:
        raise TypeError(f"a project has no field {', '.join(unknown)}")
