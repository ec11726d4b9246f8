"""Revisions: the versions of predictions that this backend publishes to Label Studio.

    begin ──▶ importing ──switched──▶ on ──the next one is switched──▶ old ──deleted──▶ gone
                  └────────────abandon────────────────────────────────▶ ┘

At most one revision of a project is on: the one that annotators are served.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from neat_backend.errors import StoreError, UnknownProject
from neat_backend.store import schema
from neat_backend.store.sql import clock

IMPORTING = "importing"  # its predictions are going in
ON = "on"  # project.model_version names it
OLD = "old"  # its predictions are to be deleted

_VERSION = re.compile(r"neat-r(\d{1,18})")

_table = schema.revisions
_projects = schema.projects


def number(version: str) -> int | None:
    """The number of a version of this backend; None for another version."""
    match = _VERSION.fullmatch(version)
    return None if match is None else int(match[1])


def skip_to(conn: Connection, project: int, versions: Iterable[str]) -> None:
    """Continue above the highest of these versions, which exist in Label Studio.

    After a restore, or a loss of the database, `begin` could reuse a number. The new predictions would then be added to
    the old ones, and Label Studio would order by the mean of both.
    """
    highest = max((number(version) or 0 for version in versions), default=0)
    behind = _projects.c.id == project, _projects.c.revision < highest
    conn.execute(sa.update(_projects).where(*behind).values(revision=highest))


def begin(conn: Connection, project: int) -> str:
    """Begin a revision; returns its version, `neat-r000123`. No number is used twice."""
    statement = (
        sa.update(_projects)
        .where(_projects.c.id == project)
        .values(revision=_projects.c.revision + 1)
        .returning(_projects.c.revision)
    )
    number = conn.execute(statement).scalar()
    if number is None:
        raise UnknownProject(project)
    version = f"neat-r{number:06d}"
    conn.execute(
        sa.insert(_table).values(project=project, number=number, version=version, state=IMPORTING, begun_at=clock(conn))
    )
    return version


def switched(conn: Connection, project: int, version: str) -> None:
    """importing → on; the one before becomes old, and the project's model_version is this."""
    _move(conn, project, version, IMPORTING, ON)
    others = _table.c.project == project, _table.c.state == ON, _table.c.version != version
    conn.execute(sa.update(_table).where(*others).values(state=OLD))
    conn.execute(sa.update(_projects).where(_projects.c.id == project).values(model_version=version))


def abandon(conn: Connection, project: int, version: str) -> None:
    """importing → old: it will not be switched on, and its predictions are to be deleted."""
    _move(conn, project, version, IMPORTING, OLD)


def importing(conn: Connection, project: int) -> list[str]:
    """Versions in the state importing, oldest first; after a crash, abandon them."""
    return _versions(conn, project, IMPORTING)


def to_delete(conn: Connection, project: int) -> list[str]:
    """Versions in the state old, oldest first."""
    return _versions(conn, project, OLD)


def deleted(conn: Connection, project: int, version: str) -> None:
    """old → gone: Label Studio no longer has its predictions."""
    statement = sa.delete(_table).where(*_one(project, version), _table.c.state == OLD)
    if not conn.execute(statement).rowcount:
        raise _refused(conn, project, version, OLD)


def _versions(conn: Connection, project: int, state: str) -> list[str]:
    statement = sa.select(_table.c.version).where(_table.c.project == project, _table.c.state == state)
    return list(conn.execute(statement.order_by(_table.c.number)).scalars())


def _move(conn: Connection, project: int, version: str, source: str, target: str) -> None:
    statement = sa.update(_table).where(*_one(project, version), _table.c.state == source).values(state=target)
    if not conn.execute(statement).rowcount:
        raise _refused(conn, project, version, source)


def _one(project: int, version: str) -> tuple[Any, ...]:
    return _table.c.project == project, _table.c.version == version


def _refused(conn: Connection, project: int, version: str, wanted: str) -> StoreError:
    state = conn.execute(sa.select(_table.c.state).where(*_one(project, version))).scalar()
    return StoreError(
        f"Revision {version} of project {project} must be {wanted} for this, it is {state or 'not there'}"
    )
