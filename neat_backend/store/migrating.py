"""Migrating the tables forward and back, within the caller's transaction."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import Connection

from neat_backend.errors import StoreError

MIGRATIONS = Path(__file__).parent / "migrations"
NOTHING = "base"  # the version before the first


def current(conn: Connection) -> str:
    """The version of the existing tables; NOTHING when there are none."""
    from alembic.migration import MigrationContext  # here, because every importer of the store would pay for it

    return MigrationContext.configure(conn).get_current_revision() or NOTHING


def newest() -> str:
    """The last version that this program knows, by its files' names: Alembic needs a quarter of a second to load."""
    return max(file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*_*.py"))


def is_newest(conn: Connection) -> bool:
    """Whether the tables have the newest version; does not load Alembic."""
    if not sa.inspect(conn).has_table("alembic_version"):
        return False
    return list(conn.execute(sa.text("SELECT version_num FROM alembic_version")).scalars()) == [newest()]


def versions() -> list[str]:
    """All versions that this program knows, oldest first, NOTHING before them."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory(str(MIGRATIONS))
    return [NOTHING, *reversed([entry.revision for entry in script.walk_revisions()])]


def move(conn: Connection, to: str = "head") -> str:
    """Migrate the tables to version `to`; returns it.

    Going back drops what later versions added. Raises StoreError where either version is unknown to this program.
    """
    from alembic import command
    from alembic.config import Config

    known = versions()
    wanted = known[-1] if to == "head" else to
    found = current(conn)
    for version in (wanted, found):
        if version not in known:
            raise StoreError(f"version {version} of the tables is not known here; known: {', '.join(known)}")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = conn
    if known.index(wanted) < known.index(found):
        command.downgrade(config, wanted)
    else:
        command.upgrade(config, wanted)
    return wanted
