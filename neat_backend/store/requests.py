"""Requests of the web to the worker, for answers that need PyTorch or Label Studio.

A request is a row; its answer is kept for repeated requests. The web waits a bounded time for it. Requests are not
events: a lost one can be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from neat_backend.store import notices, schema
from neat_backend.store.sql import clock, enter_project, put

TEXT, SELECTION = "text", "selection"  # the features of a text; a tab of these tasks

KEPT = timedelta(hours=1)
_table = schema.requests


@dataclass(frozen=True)
class Request:
    """One row."""

    kind: str
    name: str  # of a text the text itself
    body: str  # of a selection its tasks, as JSON
    answer: bytes | None  # None = not answered yet
    error: str  # why it can't be answered, "" = it can


def ask(conn: Connection, project: int, kind: str, name: str, body: str = "") -> None:
    """File a request, replacing an earlier one of this name, and delete old ones. Raises UnknownProject."""
    enter_project(conn, project)
    now = clock(conn)
    conn.execute(sa.delete(_table).where(_table.c.project == project, _table.c.asked_at < now - KEPT))
    row = {"project": project, "kind": kind, "name": name, "body": body, "answer": None, "error": "", "asked_at": now}
    put(conn, _table, [row])
    notices.note(conn, project, notices.REQUESTS)


def get(conn: Connection, project: int, kind: str, name: str) -> Request | None:
    """A request with its answer; None where there is none."""
    found = conn.execute(_read(project).where(_table.c.kind == kind, _table.c.name == name)).first()
    return None if found is None else _request(found)


def waiting(conn: Connection, project: int) -> Sequence[Request]:
    """The requests without an answer, oldest first."""
    open_rows = _read(project).where(_table.c.answer.is_(None), _table.c.error == "").order_by(_table.c.asked_at)
    return [_request(row) for row in conn.execute(open_rows)]


def projects_with_requests(conn: Connection) -> list[int]:
    """Projects with requests without an answer."""
    statement = sa.select(_table.c.project).where(_table.c.answer.is_(None), _table.c.error == "").distinct()
    return list(conn.execute(statement).scalars())


def answer(conn: Connection, project: int, request: Request, answer: bytes | None, error: str = "") -> None:
    """Answer a request, unless a request with another body has replaced it."""
    same = _table.c.project == project, _table.c.kind == request.kind, _table.c.name == request.name
    values = {"answer": answer, "error": error}
    conn.execute(sa.update(_table).where(*same, _table.c.body == request.body).values(values))


def _read(project: int) -> sa.Select[Any]:
    columns = (_table.c.kind, _table.c.name, _table.c.body, _table.c.answer, _table.c.error)
    return sa.select(*columns).where(_table.c.project == project)


def _request(row: Any) -> Request:
    return Request(row.kind, row.name, row.body, row.answer, row.error)
