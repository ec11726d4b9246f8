"""The database as the worker of a project may write to it: not any more once the project is another's.

A worker that is stopped for longer than its lease lasts (a suspended machine, a long swap) goes on where it was, with
a page of tasks that it read before, or a number that is no longer the highest. Its successor has been at work since,
and what was read at the same moment can't be told from what is newer by the numbers in the rows alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from neat_backend.errors import LeaseLost
from neat_backend.store import projects
from neat_backend.store.database import Database


class OwnedDatabase(Database):
    """One project's view of a database; of the connections it has none of its own."""

    def __init__(self, database: Database, project: int, owner: str) -> None:
        self._database, self._project, self._owner = database, project, owner
        self.shown = database.shown

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """As `Database.begin`, with the project staying the owner's until the end. Raises LeaseLost."""
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
        """The connections are everybody's."""
