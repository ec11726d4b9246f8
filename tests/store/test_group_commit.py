"""Group commit: every acknowledged event is in the inbox, however many arrive at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection

from neat_backend.errors import DataRefused
from neat_backend.store import inbox
from neat_backend.store.group_commit import GroupCommit
from tests.serving import make_database, make_settings
from tests.waiting import HANGS, until


@pytest.fixture
def database(tmp_path: Path) -> Any:
    database = make_database(make_settings(tmp_path))
    yield database
    database.dispose()


def filed(database: Any, project: int) -> dict[int, dict[str, Any]]:
    with database.read() as conn:
        return {event.id: dict(event.payload) for event in inbox.pending(conn, project, 10_000)}


def test_every_event_gets_its_own_id_and_those_of_a_sender_keep_their_order(database: Any) -> None:
    inbox_writer = GroupCommit(database)

    def send(sender: int) -> list[int]:
        return [inbox_writer.file(1 + sender % 2, "A", {"sender": sender, "n": n}) for n in range(25)]

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(send, range(8)))
    assert len({event for sent in ids for event in sent}) == 200
    held = {**filed(database, 1), **filed(database, 2)}
    for sender, sent in enumerate(ids):
        assert sent == sorted(sent)
        assert [held[event] for event in sent] == [{"sender": sender, "n": n} for n in range(25)]


def test_those_who_wait_are_filed_in_one_transaction(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()
    transactions = []

    def append_many(conn: Connection, events: Any) -> list[int]:
        transactions.append(len(events))
        begun.set()
        go.wait(HANGS)
        return filing(conn, events)

    filing = inbox.append_many
    monkeypatch.setattr(inbox, "append_many", append_many)
    inbox_writer = GroupCommit(database)
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(inbox_writer.file, 1, "A", {})
        begun.wait(HANGS)
        rest = [pool.submit(inbox_writer.file, 1, "A", {"n": n}) for n in range(19)]
        until(lambda: len(inbox_writer._queue) == 19)
        go.set()
        ids = {first.result(), *(one.result() for one in rest)}
    assert len(ids) == 20
    assert transactions == [1, 19]


def test_one_that_can_not_be_filed_takes_no_other_with_it(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = threading.Event(), threading.Event()

    def append_many(conn: Connection, events: Any) -> list[int]:
        begun.set()
        go.wait(HANGS)
        if any(project == 13 for project, _, _ in events):
            raise ValueError("not this one")
        return filing(conn, events)

    filing = inbox.append_many
    monkeypatch.setattr(inbox, "append_many", append_many)
    inbox_writer = GroupCommit(database)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(inbox_writer.file, 1, "A", {})
        begun.wait(HANGS)
        good = [pool.submit(inbox_writer.file, 1, "A", {"n": n}) for n in range(3)]
        bad = pool.submit(inbox_writer.file, 13, "A", {})
        until(lambda: len(inbox_writer._queue) == 4)
        go.set()
        ids = {first.result(), *(one.result() for one in good)}
        with pytest.raises(ValueError, match="not this one"):
            bad.result()
    assert set(filed(database, 1)) == ids
    assert filed(database, 13) == {}


def test_the_pieces_of_one_webhook_are_filed_in_order_all_or_none(database: Any) -> None:
    inbox_writer = GroupCommit(database)
    last = inbox_writer.file(1, "A", *({"n": n} for n in range(5)))
    assert [payload["n"] for payload in filed(database, 1).values()] == list(range(5))
    assert max(filed(database, 1)) == last
    with pytest.raises(DataRefused):
        inbox_writer.file(1, "A", {"n": 5}, {"n": object()}, {"n": 6})
    assert len(filed(database, 1)) == 5
