"""Replacing the projects' folder at a restore, atomically with the tables.

The transaction that replaces the tables contains the two renames and a row that names the exchange. After a kill, this
row shows which files belong to the tables: the restored ones or the earlier ones.
"""

from __future__ import annotations

import logging
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection

from neat_backend.errors import StoreError
from neat_backend.store import locks
from neat_backend.store.database import Database
from neat_backend.store.npz import sync_folder

log = logging.getLogger(__name__)

_done = sa.Table("restoring", sa.MetaData(), sa.Column("folder", sa.Text))  # there only while a restore ends


@contextmanager
def exchange(database: Database, data_dir: Path) -> Iterator[Exchange]:
    """The folder that will replace the projects' folder, for one restore at a time; deleted at the end in any case."""
    with locks.alone(data_dir, StoreError(f"another restore into {data_dir} is running: wait for it")):
        _tidy(database, data_dir)
        incoming = _projects(data_dir).parent / f".restored-{secrets.token_hex(4)}"
        (incoming / "projects").mkdir(parents=True)
        try:
            yield Exchange(incoming, _projects(data_dir))
        finally:
            _tidy(database, data_dir)


def tidy(database: Database, data_dir: Path) -> None:
    """Finish or undo a restore that was killed. Raises StoreError while one is running."""
    if any(_leftovers(data_dir)):
        with locks.alone(
            data_dir, StoreError(f"a restore into {data_dir} is running: start the worker when it has ended")
        ):
            _tidy(database, data_dir)


class Exchange:
    def __init__(self, incoming: Path, projects: Path) -> None:
        self.incoming, self._projects = incoming, projects

    def run(self, conn: Connection) -> None:
        """Exchange the folders; it counts when the transaction is committed."""
        _done.create(conn, checkfirst=True)
        conn.execute(sa.insert(_done), {"folder": self.incoming.name})
        before = self.incoming / "before"
        if self._projects.exists():
            self._projects.rename(before)
        else:
            before.mkdir()  # marks the beginning of the exchange
        (self.incoming / "projects").rename(self._projects)
        sync_folder(self._projects.parent)


def _tidy(database: Database, data_dir: Path) -> None:
    projects = _projects(data_dir)
    for incoming in _leftovers(data_dir):
        counts, before = _is_committed(database, incoming.name), incoming / "before"
        if before.exists() and not counts:
            if projects.exists():
                projects.rename(incoming / "undone")
            before.rename(projects)
            log.warning("a restore had ended before it was complete: everything is as it was before it")
        elif counts:
            shutil.rmtree(before, ignore_errors=True)
            if before.exists():  # the row must exist as long as this folder does
                continue
            _forget(database, incoming.name)
        shutil.rmtree(incoming, ignore_errors=True)


def _is_committed(database: Database, name: str) -> bool:
    with database.read() as conn:
        return sa.inspect(conn).has_table(_done.name) and (
            conn.execute(sa.select(_done).where(_done.c.folder == name)).first() is not None
        )


def _forget(database: Database, name: str) -> None:
    with database.begin() as conn:
        conn.execute(sa.delete(_done).where(_done.c.folder == name))
        if conn.execute(sa.select(_done)).first() is None:
            _done.drop(conn)


def _leftovers(data_dir: Path) -> list[Path]:
    return sorted(_projects(data_dir).parent.glob(".restored-*"))


def _projects(data_dir: Path) -> Path:
    """The projects' folder itself, where a link leads to it."""
    return (data_dir / "projects").resolve()
