"""Notices between processes: who listens hears of every committed transaction; nothing depends on it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from neat_backend.demo.ports import free_port
from neat_backend.errors import StoreError
from neat_backend.records import SYNC
from neat_backend.store import inbox, notices, projects, requests
from neat_backend.store.database import Database
from neat_backend.store.notices import EVENTS, PROJECTS, REQUESTS, Heard, Listening, Notice
from tests.waiting import HANGS, until

ONE = Notice(1, EVENTS)


@pytest.fixture
def listening(db: Database) -> Iterator[Listening]:
    with closing(db.listen()) as listening:
        yield listening


def heard(listening: Listening, *wanted: Notice) -> set[Notice]:
    """The notices up to those wanted, and those that came with them."""
    found: set[Notice] = set()
    deadline = time.monotonic() + HANGS
    while not found >= {*wanted}:
        assert time.monotonic() < deadline, found
        found |= listening.wait(1.0).notices
    return found


def file(db: Database, project: int = 1) -> int:
    with db.begin() as conn:
        return inbox.append(conn, project, SYNC, {})


def test_who_listens_hears_of_an_event_once_it_is_committed(db: Database, listening: Listening) -> None:
    with db.begin() as conn:
        inbox.append(conn, 1, SYNC, {})
        assert listening.wait(0) == Heard()
    assert heard(listening, ONE) == {ONE}


def test_several_listen_and_each_hears_everything(db: Database, listening: Listening) -> None:
    with closing(db.listen()) as other:
        file(db)
        file(db, 2)
        for each in (listening, other):
            assert heard(each, ONE, Notice(2, EVENTS)) == {ONE, Notice(2, EVENTS)}


def test_of_a_transaction_that_is_rolled_back_nothing_is_heard(db: Database, listening: Listening) -> None:
    def fail() -> None:
        with db.begin() as conn:
            inbox.append(conn, 1, SYNC, {})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    file(db, 2)
    assert heard(listening, Notice(2, EVENTS)) == {Notice(2, EVENTS)}


def test_requests_connections_and_leases_are_told_too(db: Database, listening: Listening) -> None:
    with db.begin() as conn:
        requests.ask(conn, 1, requests.TEXT, "a dog")
    assert heard(listening, Notice(1, REQUESTS)) == {Notice(1, REQUESTS)}
    with db.begin() as conn:
        assert projects.acquire_lease(conn, 2, "me", 60)
        projects.save_connection(conn, 1, title="Birds")
    assert heard(listening, Notice(1, PROJECTS)) == {Notice(1, PROJECTS)}
    with db.begin() as conn:
        projects.release_lease(conn, 1, "me")  # not mine
        projects.release_lease(conn, 2, "me")
    assert heard(listening, Notice(2, PROJECTS)) == {Notice(2, PROJECTS)}
    with db.begin() as conn:
        projects.delete(conn, 1)
    assert heard(listening, Notice(1, PROJECTS)) == {Notice(1, PROJECTS)}


def test_an_event_that_is_put_back_is_told(db: Database, listening: Listening) -> None:
    event = file(db)
    heard(listening, ONE)
    with db.begin() as conn:
        inbox.set_aside(conn, event, "why")
        inbox.requeue(conn, event)
    assert heard(listening, ONE) == {ONE}


def test_another_process_is_heard(db: Database, listening: Listening) -> None:
    url = db._url.render_as_string(hide_password=False)
    code = f"""
from neat_backend.store import inbox
from neat_backend.store.database import Database
with Database({url!r}).begin() as conn:
    inbox.append(conn, 1, "SYNC", {{}})
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=HANGS)
    assert heard(listening, ONE) == {ONE}


def test_waiting_ends_when_it_is_interrupted(db: Database, listening: Listening) -> None:
    thread = threading.Thread(target=listening.wait, args=(2 * HANGS,), daemon=True)
    thread.start()
    listening.interrupt()
    thread.join(HANGS)
    assert not thread.is_alive()


def test_without_anybody_who_listens_nothing_is_left(db: Database) -> None:
    file(db)
    with closing(db.listen()) as listening:
        assert listening.wait(0) == Heard()


class TestPipes:
    @pytest.fixture
    def file_db(self, tmp_path: Path, migrated_sqlite: Path) -> Iterator[Database]:
        (tmp_path / "neat.sqlite3").write_bytes(migrated_sqlite.read_bytes())
        database = Database(f"sqlite:///{tmp_path / 'neat.sqlite3'}")
        yield database
        database.dispose()

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return tmp_path / "neat.sqlite3.notices"

    def test_the_pipe_of_a_process_that_was_killed_is_removed(self, file_db: Database, folder: Path) -> None:
        code = f"""
import os, signal
from pathlib import Path
from neat_backend.store.notices import Pipes
listening = Pipes(Path({str(folder)!r})).listen()
os.kill(os.getpid(), signal.SIGKILL)
"""
        subprocess.run([sys.executable, "-c", code], check=False, timeout=HANGS)
        assert len(list(folder.iterdir())) == 1
        with closing(file_db.listen()) as listening:
            file(file_db)
            assert heard(listening, ONE) == {ONE}
            assert len(list(folder.iterdir())) == 1
        assert list(folder.iterdir()) == []

    def test_a_reader_that_has_not_read_for_long_is_told_to_look_at_everything(self, file_db: Database) -> None:
        with closing(file_db.listen()) as listening:
            for _ in range(20):  # more than a pipe holds
                notices.Pipes.tell(file_db._pipes, {f"{n} events" for n in range(1000)})  # type: ignore[arg-type]
            assert not listening.wait(0).complete
            until(lambda: listening.wait(0) == Heard())
            file(file_db)
            assert heard(listening, ONE) == {ONE}

    def test_text_that_is_no_notice_makes_it_look_at_everything(self, file_db: Database, folder: Path) -> None:
        with closing(file_db.listen()) as listening:
            (name,) = folder.iterdir()
            with open(name, "wb") as pipe:
                pipe.write(b"nonsense\n1 events\n")
            assert listening.wait(1) == Heard(frozenset({ONE}), complete=False)

    def test_a_pipe_that_was_deleted_is_noticed(self, file_db: Database, folder: Path) -> None:
        with closing(file_db.listen()) as listening:
            (name,) = folder.iterdir()
            name.unlink()
            with pytest.raises(StoreError, match="deleted"):
                listening.wait(0)

    def test_a_folder_that_cannot_be_made_is_said_and_events_are_filed_all_the_same(
        self, file_db: Database, folder: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder.write_text("in the way")
        with pytest.raises(StoreError, match=r"neat\.sqlite3\.notices"):
            file_db.listen()
        assert [file(file_db), file(file_db)] == [1, 2]
        assert len([one for one in caplog.records if one.levelname == "WARNING"]) == 1

    def test_other_files_in_the_folder_are_left_alone(self, file_db: Database, folder: Path) -> None:
        with closing(file_db.listen()) as listening:
            (folder / "note").write_text("mine")
            os.symlink(folder / "nowhere", folder / "link")
            file(file_db)
            assert heard(listening, ONE) == {ONE}
            assert (folder / "note").read_text() == "mine"


def test_a_server_that_is_away_is_said() -> None:
    database = Database(f"postgresql://neat@127.0.0.1:{free_port()}/nobody")
    with pytest.raises(StoreError, match="refused"):
        database.listen()
    database.dispose()


def test_a_connection_that_is_cut_is_said(empty_postgres: str, postgres_server: sa.Engine) -> None:
    database = Database(empty_postgres)
    with closing(database.listen()) as listening:
        with postgres_server.connect() as conn:
            conn.execute(
                sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"),
                {"name": sa.make_url(empty_postgres).database},
            )
        with pytest.raises(StoreError, match="lost"):
            until(lambda: listening.wait(1) is None)
    database.dispose()
