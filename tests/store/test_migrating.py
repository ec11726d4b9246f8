"""Forward, back and forward again, on each database: a roll-back is possible from every version."""

from __future__ import annotations

import subprocess
import sys

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from neat_backend.errors import StoreError
from neat_backend.store import migrating, projects
from neat_backend.store.database import Database
from neat_backend.store.schema import metadata
from tests.waiting import HANGS


def shape(database: Database) -> dict[str, object]:
    """Tables with their columns, keys and indices."""
    with database.read() as conn:
        found = sa.inspect(conn)
        return {
            name: (
                [(column["name"], str(column["type"]), column["nullable"]) for column in found.get_columns(name)],
                found.get_pk_constraint(name)["constrained_columns"],
                sorted(str(index["name"]) for index in found.get_indexes(name)),
            )
            for name in sorted(found.get_table_names())
            if name != "alembic_version"
        }


def test_every_version_is_reached_forward_and_back_and_looks_the_same(empty_url: str) -> None:
    database = Database(empty_url)
    versions = migrating.versions()
    forward = {}
    for version in versions[1:]:
        assert database.migrate(version) == version
        forward[version] = shape(database)
    for version in reversed(versions[:-1]):
        assert database.migrate(version) == version
        assert shape(database) == forward.get(version, {})
    database.migrate()
    with database.read() as conn:
        assert compare_metadata(MigrationContext.configure(conn), metadata) == []
    database.dispose()


def test_tables_that_are_up_to_date_are_known_without_loading_alembic(empty_url: str) -> None:
    database = Database(empty_url)
    database.migrate("0001")
    database.migrate("base")
    with database.read() as conn:
        assert not migrating.is_newest(conn)
    assert database.migrate() == migrating.newest() == migrating.versions()[-1]
    with database.read() as conn:
        assert migrating.is_newest(conn)
    database.dispose()
    code = f"import sys; from neat_backend.store.database import Database; Database({empty_url!r}).migrate()"
    code += "; assert 'alembic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], timeout=HANGS, check=True)


def test_projects_survive_a_step_back_and_forward(empty_url: str) -> None:
    database = Database(empty_url)
    database.migrate()
    with database.begin() as conn:
        projects.save_connection(conn, 7, title="Dogs")
    database.migrate(migrating.versions()[1])
    database.migrate()
    with database.read() as conn:
        assert [project.title for project in projects.all(conn)] == ["Dogs"]
    database.dispose()


def test_a_version_that_is_not_known_changes_nothing(empty_url: str) -> None:
    database = Database(empty_url)
    database.migrate()
    before = shape(database)
    with pytest.raises(StoreError, match="9999 of the tables is not known"):
        database.migrate("9999")
    assert shape(database) == before
    database.dispose()
