from __future__ import annotations

import multiprocessing
import os
import socketserver
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from neat_backend.errors import StoreError
from neat_backend.store import inbox, projects
from neat_backend.store.database import Database
from neat_backend.store.schema import metadata
from tests.waiting import HANGS


def _migrate(url: str, start: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    Database(url).migrate()


def test_migrations_make_the_tables_that_the_schema_describes(empty_url: str) -> None:
    database = Database(empty_url)
    database.migrate()
    with database.read() as conn:
        found = sa.inspect(conn)
        for table in metadata.sorted_tables:
            made = {index["name"]: index["column_names"] for index in found.get_indexes(table.name)}
            assert made == {index.name: [column.name for column in index.columns] for index in table.indexes}
        assert compare_metadata(MigrationContext.configure(conn), metadata) == []
    database.migrate()  # once more changes nothing
    database.dispose()


def test_processes_that_migrate_at_once_take_turns(empty_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [context.Process(target=_migrate, args=(empty_url, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(HANGS)
    assert [process.exitcode for process in both] == [0, 0]
    database = Database(empty_url)
    with database.begin() as conn:
        assert projects.all(conn) == []
    database.dispose()


def test_a_database_of_a_newer_version_is_left_alone(empty_url: str) -> None:
    database = Database(empty_url)
    database.migrate()
    with database.begin() as conn:
        conn.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match="newer neat-backend"):
        database.migrate()
    database.dispose()


def test_before_migrating_the_error_says_what_to_do(empty_url: str) -> None:
    database = Database(empty_url)
    if empty_url.startswith("sqlite"):
        Path(database._url.database or "").parent.mkdir(parents=True)
    with pytest.raises(StoreError, match="tables"), database.read() as conn:
        projects.all(conn)
    database.dispose()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://neat:hunter2@127.0.0.1:1/neat", "is PostgreSQL running"),
        ("postgresql://neat:hunter2@[::1/neat", "is not a URL"),
        ("postgresql://neat:hunter2@host:port/neat", "is not a URL"),
        ("mysql://neat:hunter2@host/neat", "must start with"),
        ("hunter2", "is not a URL"),
        ("sqlite://", "names no file"),
        ("sqlite:////proc/hunter/neat.sqlite3", "folder"),
    ],
)
def test_a_bad_url_is_told_in_plain_words_without_the_password(url: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        Database(url).migrate()
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(caught.value.__cause__)


class WrongPassword(socketserver.StreamRequestHandler):
    """PostgreSQL's answers to a client whose password it does not take."""

    def handle(self) -> None:
        while (size := int.from_bytes(self.rfile.read(4), "big")) == 8:  # encryption is requested first
            self.rfile.read(4)
            self.wfile.write(b"N")
        self.rfile.read(size - 4)
        self.wfile.write(b"R" + (8).to_bytes(4, "big") + (3).to_bytes(4, "big"))  # the password, in clear
        if not self.rfile.read(1):
            return  # it has none
        self.rfile.read(int.from_bytes(self.rfile.read(4), "big") - 4)
        said = b'SFATAL\0C28P01\0Mpassword authentication failed for user "neat"\0\0'
        self.wfile.write(b"E" + (len(said) + 4).to_bytes(4, "big") + said)


@pytest.mark.parametrize("user", ["neat:hunter2", "neat"])
def test_a_password_that_postgresql_does_not_take_is_told_with_its_variable(user: str) -> None:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), WrongPassword) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(StoreError, match=r"DATABASE_PASSWORD.*POSTGRES_PASSWORD") as caught:
            Database(f"postgresql://{user}@127.0.0.1:{server.server_address[1]}/neat").migrate()
        server.shutdown()
    assert "hunter2" not in str(caught.value)


def test_a_sqlite_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "neat.sqlite3"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="not a database"):
        Database(f"sqlite:///{path}").migrate()


def test_sqlite_is_set_to_lose_nothing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'neat.sqlite3'}")
    with database.begin() as conn:
        pragmas = {
            name: conn.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_an_exception_undoes_the_transaction(db: Database) -> None:
    with pytest.raises(KeyError), db.begin() as conn:  # noqa: PT012
        projects.save_connection(conn, 7)
        inbox.append(conn, 7, "X", {})
        raise KeyError
    with db.read() as conn:
        assert projects.get(conn, 7) is None
        assert inbox.received_through(conn, 7) == 0


def test_reading_can_not_write(db: Database) -> None:
    with pytest.raises(StoreError), db.read() as conn:
        projects.save_connection(conn, 7)
    with db.begin() as conn:  # and the connection can again
        projects.save_connection(conn, 7)


def test_reading_sees_one_moment(db: Database) -> None:
    with db.read() as conn:
        before = projects.all(conn)
        with db.begin() as other:
            projects.save_connection(other, 7)
        assert projects.all(conn) == before


def test_what_the_database_refuses_is_a_store_error_without_the_values(db: Database) -> None:
    with pytest.raises(StoreError) as caught, db.begin() as conn:
        conn.execute(sa.text("INSERT INTO projects (id, access_token) VALUES (9, :token)"), {"token": "s3cret"})
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in str(caught.value.__cause__)


def test_times_come_back_aware_and_to_the_microsecond(db: Database) -> None:
    tokyo = datetime(2026, 3, 1, 8, 30, 0, 123456, timezone(timedelta(hours=9)))
    with db.begin() as conn:
        projects.update(conn, 1, synced_at=tokyo)
        project = projects.get(conn, 1)
        assert project is not None
        assert project.synced_at == tokyo
        assert project.synced_at.utcoffset() == timedelta(0)
    with pytest.raises(StoreError, match="time zone"), db.begin() as conn:
        projects.update(conn, 1, synced_at=datetime(2026, 3, 1))


def test_text_that_a_database_can_not_hold_does_not_fail(db: Database) -> None:
    with db.begin() as conn:
        projects.update(conn, 1, title="a\0b", detail="\ud800 Hündchen 🐕", extra_params={"a\0": "\ud800"})
        project = projects.get(conn, 1)
    assert project is not None
    assert project.title == "a\ufffdb"
    assert project.detail.endswith(" Hündchen 🐕")
    assert project.extra_params == {"a\0": "\ud800"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_after_a_fork_both_processes_go_on(db: Database) -> None:
    with db.begin() as conn:
        inbox.append(conn, 1, "PARENT", {})
    child = os.fork()
    if child == 0:
        try:
            with db.begin() as conn:
                inbox.append(conn, 1, "CHILD", {})
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    with db.begin() as conn:
        inbox.append(conn, 1, "PARENT", {})
        assert [event.action for event in inbox.pending(conn, 1)] == ["PARENT", "CHILD", "PARENT"]


def test_importing_the_store_is_light() -> None:
    code = (
        "import sys; from neat_backend.store import arrays, database, inbox, projects, revisions, rounds, tasks;"
        "print([m for m in ('torch', 'faiss', 'pandas', 'label_studio_sdk', 'alembic') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
