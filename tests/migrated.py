"""Databases on SQLite with all tables: copies of one that was migrated once."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from neat_backend.store.database import Database


@cache
def _template() -> Path:
    path = Path(mkdtemp(prefix="neat-template-")) / "neat.sqlite3"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.dispose()
    return path


def make_sqlite(path: Path) -> Path:
    """A new database file at `path`, whose folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(_template(), path)
    return path
