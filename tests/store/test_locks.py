"""Locks on files: one at a time, and a process that is stopped with one in its hands stops nobody else for long."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from neat_backend.errors import StoreError
from neat_backend.store import inbox
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.group_commit import GroupCommit
from neat_backend.store.locks import held
from tests.serving import make_database, make_settings
from tests.waiting import HANGS, until

HOLD = """
import sys
from neat_backend.store.locks import held
with held(sys.argv[1], 0):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def frozen(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the lock and is stopped."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        process.send_signal(signal.SIGSTOP)
        try:
            yield process
        finally:
            process.kill()


def in_time(do: Callable[[], object]) -> object:
    """What it gives, in a thread, so that a test of what hangs has an end."""
    found: list[object] = []

    def run() -> None:
        try:
            found.append(do())
        except Exception as error:
            found.append(error)

    threading.Thread(target=run, daemon=True).start()
    until(lambda: found)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def lock(path: Path, seconds: float = HANGS, exclusive: bool = True) -> None:
    with held(path, seconds, exclusive):
        pass


def test_one_at_a_time_and_all_get_their_turn(tmp_path: Path) -> None:
    inside, most = 0, 0

    def enter(_: int) -> None:
        nonlocal inside, most
        with held(tmp_path / "lock", HANGS):
            inside += 1
            most = max(most, inside)
            inside -= 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(enter, range(400)))
    assert most == 1


@pytest.mark.parametrize("exclusive", [True, False])
def test_nobody_waits_for_ever_and_whoever_comes_later_still_gets_it(tmp_path: Path, exclusive: bool) -> None:
    path = tmp_path / "lock"
    threads = threading.active_count()
    with frozen(path) as process:
        for _ in range(5):
            with pytest.raises(StoreError, match="is one stopped"):
                in_time(lambda: lock(path, 0.02, exclusive))
            assert sum(thread.name == "lock" for thread in threading.enumerate()) == 1
        late = threading.Thread(target=lock, args=(path, HANGS, exclusive))
        late.start()
        process.send_signal(signal.SIGCONT)
        process.communicate(b"")
        late.join(HANGS)
        assert not late.is_alive()
    lock(path)  # nobody has kept it
    until(lambda: threading.active_count() <= threads)


def test_a_frozen_writer_of_sqlite_is_waited_for_a_while(tmp_path: Path) -> None:
    settings = make_settings(tmp_path)
    make_database(settings)
    hasty = Database(settings.sqlalchemy_url, busy_seconds=0.05)
    with frozen(settings.data_dir / "neat.sqlite3.turn"), pytest.raises(StoreError, match="is one stopped"):
        in_time(lambda: write(hasty))
    write(hasty)
    with hasty.read() as conn:
        assert len(inbox.pending(conn, 1)) == 1


def test_a_frozen_writer_of_postgresql_too(migrated_postgres: str, db: Database) -> None:
    hasty = Database(migrated_postgres, busy_seconds=0.05)
    database = Database(migrated_postgres)
    with database.begin() as conn:
        inbox.append(conn, 1, "A", {})  # and is held up here
        with pytest.raises(StoreError, match="is one stopped"):
            in_time(lambda: write(hasty))
    write(hasty)
    for one in (hasty, database):
        one.dispose()


def write(database: Database) -> None:
    with database.begin() as conn:
        inbox.append(conn, 1, "A", {})


def test_all_who_wait_for_a_frozen_writer_are_told_at_once(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is not one after the other for each of them."""
    tries: list[int] = []  # how many events each was about

    def append_many(conn: object, events: Sequence[object]) -> list[int]:
        tries.append(len(events))
        until(lambda: sum(tries) + len(inbox_writer._queue) == 8)
        raise StoreError("it is held")

    monkeypatch.setattr(inbox, "append_many", append_many)
    inbox_writer = GroupCommit(db)

    def refused(n: int) -> bool:
        with pytest.raises(StoreError, match="it is held"):
            inbox_writer.file(1, "A", {"n": n})
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(refused, range(8)))
    assert len(tries) <= 2


def test_a_frozen_writer_of_arrays_is_waited_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neat_backend.store.arrays.LOCK_SECONDS", 0.05)
    arrays = ProjectArrays(tmp_path, 7)
    arrays.folder("features")
    with frozen(arrays.root / ".lock"), pytest.raises(StoreError, match="is one stopped"):
        in_time(lambda: arrays.load("features"))
