"""Every test of the store that touches rows runs on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from neat_backend.errors import StoreError
from neat_backend.store import projects
from neat_backend.store.database import Database
from neat_backend.store.schema import metadata
from tests.conftest import need
from tests.waiting import HANGS

POSTGRES = os.environ.get("NEAT_TEST_POSTGRES_URL", "postgresql+psycopg://root@127.0.0.1:5432/test")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[sa.Engine]:
    """A server on which databases can be made."""
    engine = sa.create_engine(POSTGRES, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 3})
    try:
        engine.connect().close()
    except (sa.exc.OperationalError, ModuleNotFoundError) as error:
        need("postgres", f"{POSTGRES} does not answer: {type(error).__name__}")
    yield engine
    engine.dispose()


@pytest.fixture
def empty_postgres(postgres_server: sa.Engine) -> Iterator[str]:
    """URL of a database without tables, dropped afterwards."""
    yield from _postgres_database(postgres_server)


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: sa.Engine) -> Iterator[str]:
    for url in _postgres_database(postgres_server):
        _migrate(url)
        yield url


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "neat.sqlite3"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that nothing has been done to."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'made' / 'on demand' / 'neat.sqlite3'}"
    url: str = request.getfixturevalue("empty_postgres")
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A migrated database with projects 1 and 2 in it. On a busy machine writers wait for each other for minutes."""
    if request.param == "sqlite":
        path = tmp_path / "neat.sqlite3"
        shutil.copy(request.getfixturevalue("migrated_sqlite"), path)
        database = Database(f"sqlite:///{path}", busy_seconds=HANGS)
    else:
        database = Database(request.getfixturevalue("migrated_postgres"), busy_seconds=HANGS)
    with database.begin() as conn:
        for table in reversed(metadata.sorted_tables):
            conn.execute(sa.delete(table))
        projects.save_connection(conn, 1, title="Dogs")
        projects.save_connection(conn, 2, title="Cats")
    yield database
    database.dispose()


def _postgres_database(server: sa.Engine) -> Iterator[str]:
    name = f"neat_test_{secrets.token_hex(6)}"
    with server.connect() as conn:
        conn.execute(sa.text(f"CREATE DATABASE {name}"))
    yield server.url.set(database=name).render_as_string(hide_password=False)
    with server.connect() as conn:
        conn.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


def _migrate(url: str) -> None:
    database = Database(url)
    try:
        database.migrate()
    except StoreError as error:
        pytest.fail(str(error))
    finally:
        database.dispose()
