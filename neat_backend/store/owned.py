"""A project's database for its worker: it refuses writes once another worker owns the project.

A worker that is stopped for longer than its lease (a suspended machine, a long swap) goes on with stale data: a page of
tasks read before, or a number that is no longer the highest. Another worker has written since, and the numbers in the
rows alone can't distinguish stale from new data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from neat_backend.errors import LeaseLost
from neat_backend.store import projects
from neat_backend.store.database import Database


class OwnedDatabase(Database):
    """One project's view of a database; it shares the database's connections."""

    def __init__(self, database: Database, project: int, owner: str) -> None:
        self._database, self._project, self._owner = database, project, owner
        self.shown = database.shown

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """As `Database.begin`; the owner keeps the project until the end. Raises LeaseLost."""
        with self._database.begin() as conn:
            if not projects.hold_lease(conn, self._project, self._owner):
                raise LeaseLost(f"project {self._project} belongs to another worker now")
            yield conn

    @contextmanager
    def read(self) -> Iterator[Connection]:
        with self._database.read() as conn:
            yield conn

    def migrate(self, to: str = "head") -> str:
        return self._database.migrate(to)

    def dispose(self) -> None:
        """Does nothing: the connections are shared."""
