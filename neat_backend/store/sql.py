"""SQL that differs between SQLite and PostgreSQL, and statements in bounded pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Column, ColumnElement, Connection, Select, Table
from sqlalchemy.dialects import postgresql, sqlite

from neat_backend.errors import UnknownProject
from neat_backend.store.schema import projects

T = TypeVar("T")

CHUNK = 1000  # rows of one statement


def chunks(items: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """`items` in pieces of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def plain_ids(ids: Iterable[int] | np.ndarray) -> list[int]:
    """Distinct ids, ascending, as Python ints (the drivers know nothing of numpy's)."""
    return np.unique(np.fromiter(ids, dtype=np.int64)).tolist()


def among(column: Column[Any], ids: Iterable[int]) -> ColumnElement[bool]:
    """column IN ids, the numbers written out.

    SQLite counts variables, and PostgreSQL looks up constants in a hash table but compares with
    variables one by one.
    """
    values = sa.bindparam(None, [int(id) for id in ids], type_=sa.BigInteger, expanding=True, literal_execute=True)
    return column.in_(values)


def clock(conn: Connection) -> datetime:
    """Now, by the clock that all who share the database share.

    That is the server's for PostgreSQL; users of one SQLite file are on one machine.
    """
    if conn.dialect.name == "postgresql":
        now: datetime = conn.execute(sa.select(sa.func.clock_timestamp())).scalar_one()
        return now.astimezone(timezone.utc)
    return datetime.now(timezone.utc)


def insert(conn: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """INSERT with ON CONFLICT, which both databases have and SQLAlchemy spells per database."""
    return postgresql.insert(table) if conn.dialect.name == "postgresql" else sqlite.insert(table)


def put(conn: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert `rows`, complete ones, or overwrite those that are there."""
    if not rows:
        return
    statement = insert(conn, table)
    keys = [column.name for column in table.primary_key]
    update = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    conn.execute(statement.on_conflict_do_update(index_elements=keys, set_=update), list(rows))


def int_columns(conn: Connection, statement: Select[Any], width: int = 1) -> np.ndarray:
    """The result, `width` columns of integers, as int64[width, n]; read in a stream."""
    result = conn.execute(statement.execution_options(yield_per=10_000))
    parts = [
        np.fromiter(chain.from_iterable(part), np.int64, len(part) * width).reshape(-1, width).T
        for part in result.partitions()
    ]
    return np.concatenate(parts, axis=1) if parts else np.empty((width, 0), dtype=np.int64)


def enter_project(conn: Connection, project: int) -> None:
    """Let one transaction at a time change the tasks of a project.

    SQLite has one writer anyhow. Raises UnknownProject, so that rows never outlive their project.
    """
    if conn.dialect.name == "postgresql":
        conn.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended("neat project", project))))
    if conn.execute(sa.select(projects.c.id).where(projects.c.id == project)).first() is None:
        raise UnknownProject(project)
