from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from neat_backend.errors import StoreError
from neat_backend.store import inbox, projects, schema
from neat_backend.store.database import Database
from tests.waiting import HANGS, until

LATER = datetime.now(timezone.utc) + timedelta(days=1)


def test_events_come_back_as_they_were_in_the_order_of_their_ids(db: Database) -> None:
    payload = {"task": {"id": 2**40, "data": {"image": "s3://bücket/🐕.jpg"}}, "nan": float("inf"), "none": None}
    with db.begin() as conn:
        first = inbox.append(conn, 1, "ANNOTATION_CREATED", payload)
        others = inbox.append_many(conn, [(1, f"A{i}", {"i": i}) for i in range(700)])
        assert others == sorted(others)
        assert first < others[0]
    with db.read() as conn:
        events = inbox.pending(conn, 1)
        assert [event.id for event in events] == [first, *others[:499]]
        assert events[0].payload == payload
        assert abs((events[0].received_at - datetime.now(timezone.utc)).total_seconds()) < 60
        assert events[0].attempts == 0
        every = inbox.pending(conn, 1, limit=1000)
        assert [event.payload["i"] for event in every[1:]] == list(range(700))
        assert inbox.pending(conn, 2) == []


def test_projects_share_ids_but_not_events(db: Database) -> None:
    with db.begin() as conn:
        a, b, c = inbox.append_many(conn, [(2, "A", {}), (1, "B", {}), (2, "C", {})])
        assert a < b < c
        assert [event.id for event in inbox.pending(conn, 2)] == [a, c]
        assert (inbox.received_through(conn, 1), inbox.received_through(conn, 2)) == (b, c)
        assert inbox.projects_with_work(conn) == [1, 2]
        inbox.mark_applied(conn, [a, c])
        assert inbox.projects_with_work(conn) == [1]


def test_an_event_of_a_project_not_yet_connected_is_kept(db: Database) -> None:
    with db.begin() as conn:
        id = inbox.append(conn, 99, "TASKS_CREATED", {})
        assert [event.id for event in inbox.pending(conn, 99)] == [id]


def test_nothing_to_append_is_nothing(db: Database) -> None:
    with db.begin() as conn:
        assert inbox.append_many(conn, []) == []
        inbox.mark_applied(conn, [])


TRANSITIONS: dict[str, tuple[Callable[[Connection, int], object], str]] = {
    "mark_applied": (lambda conn, id: inbox.mark_applied(conn, [id]), "queued"),
    "record_attempt": (lambda conn, id: inbox.record_attempt(conn, id, "no"), "queued"),
    "set_aside": (lambda conn, id: inbox.set_aside(conn, id, "no"), "queued"),
    "requeue": (inbox.requeue, "set_aside"),
}


@pytest.mark.parametrize("name", TRANSITIONS)
@pytest.mark.parametrize("state", ["queued", "applied", "set_aside", "missing"])
def test_a_transition_from_the_wrong_state_is_refused(db: Database, name: str, state: str) -> None:
    transition, wanted = TRANSITIONS[name]
    with db.begin() as conn:
        id = inbox.append(conn, 1, "X", {})
        if state == "applied":
            inbox.mark_applied(conn, [id])
        if state == "set_aside":
            inbox.set_aside(conn, id, "no")
        if state == "missing":
            id += 1000
        if state == wanted:
            transition(conn, id)
        else:
            with pytest.raises(StoreError, match=wanted):
                transition(conn, id)


def test_marking_several_is_all_or_none(db: Database) -> None:
    with db.begin() as conn:
        ids = inbox.append_many(conn, [(1, "X", {})] * 2500)
        inbox.mark_applied(conn, ids[-1:])
        with pytest.raises(StoreError, match=f"{ids[-1]} is applied"):
            inbox.mark_applied(conn, ids)
        assert inbox.depth(conn).count == 2499
        inbox.mark_applied(conn, ids[:-1])
        assert inbox.depth(conn).count == 0


def test_attempts_are_counted_and_start_anew_when_requeued(db: Database) -> None:
    with db.begin() as conn:
        bad, good = inbox.append_many(conn, [(1, "BAD", {}), (1, "GOOD", {})])
        assert [inbox.record_attempt(conn, bad, "KeyError: 'task'") for _ in range(3)] == [1, 2, 3]
        assert inbox.pending(conn, 1)[0].attempts == 3
        inbox.set_aside(conn, bad, "KeyError: 'task'")
        assert [event.id for event in inbox.pending(conn, 1)] == [good]
        [(event, error)] = inbox.set_aside_events(conn, 1)
        assert (event.id, event.attempts, error) == (bad, 3, "KeyError: 'task'")
        assert inbox.set_aside_events(conn, 2) == []
        inbox.requeue(conn, bad)
        assert [(event.id, event.attempts) for event in inbox.pending(conn, 1)] == [(bad, 0), (good, 0)]


def test_depth_counts_what_waits_and_how_long(db: Database) -> None:
    with db.begin() as conn:
        assert inbox.depth(conn) == inbox.QueueDepth(0, 0.0, 0)
        first, *_ = inbox.append_many(conn, [(1, "X", {}), (1, "X", {}), (2, "Y", {})])
        aside = inbox.append(conn, 2, "Y", {})
        inbox.set_aside(conn, aside, "no")
        aged = datetime.now(timezone.utc) - timedelta(hours=1)
        conn.execute(sa.update(schema.events).values(received_at=aged).where(schema.events.c.id == first))
    with db.read() as conn:
        one, two, both = inbox.depth(conn, 1), inbox.depth(conn, 2), inbox.depth(conn)
        assert (one.count, two.count, both.count) == (2, 1, 3)
        assert (one.set_aside, two.set_aside, both.set_aside) == (0, 1, 1)
        assert two.oldest_seconds < 3600 <= one.oldest_seconds <= both.oldest_seconds < 7200
        assert inbox.has_pending(conn, 1, "X")
        assert not inbox.has_pending(conn, 2, "X")


def test_pruning_forgets_applied_events_only_and_not_how_far_the_inbox_was(db: Database) -> None:
    with db.begin() as conn:
        applied, aside, queued, last = inbox.append_many(conn, [(1, "X", {})] * 4)
        inbox.mark_applied(conn, [applied, last])
        inbox.set_aside(conn, aside, "no")
        assert inbox.prune(conn, datetime.now(timezone.utc) - timedelta(hours=1)) == 0
        assert inbox.prune(conn, LATER, limit=1) == 1
        assert inbox.prune(conn, LATER) == 1
        assert [event.id for event in inbox.pending(conn, 1)] == [queued]
        assert len(inbox.set_aside_events(conn, 1)) == 1
        assert inbox.received_through(conn, 1) == last
        assert inbox.append(conn, 1, "X", {}) > last


def test_settled_is_what_was_applied_long_ago_and_has_nothing_left_before_it(db: Database) -> None:
    with db.begin() as conn:
        assert inbox.settled_through(conn, 1, LATER) == 0
        first, other, waiting, last = inbox.append_many(conn, [(1, "X", {}), (2, "X", {}), (1, "X", {}), (2, "X", {})])
        inbox.mark_applied(conn, [first, other, last])
        assert inbox.settled_through(conn, 1, datetime.now(timezone.utc) - timedelta(hours=1)) == 0
        assert inbox.settled_through(conn, 1, LATER) == other  # the next of this project waits
        assert inbox.settled_through(conn, 2, LATER) == last
        inbox.set_aside(conn, waiting, "it fails")
        assert inbox.settled_through(conn, 1, LATER) == other


def test_ids_are_not_used_again_when_all_events_are_gone(db: Database) -> None:
    with db.begin() as conn:
        id = inbox.append(conn, 1, "X", {})
        inbox.mark_applied(conn, [id])
        inbox.prune(conn, LATER)
    with db.begin() as conn:
        assert inbox.append(conn, 2, "X", {}) > id


def test_four_threads_append_while_another_transaction_is_open(db: Database) -> None:
    ids: dict[int, list[int]] = {n: [] for n in range(4)}
    begun: list[int] = []
    failed: list[BaseException] = []

    def append(n: int) -> None:
        begun.append(n)
        try:
            for i in range(25):
                with db.begin() as conn:
                    ids[n].append(inbox.append(conn, 1 + i % 2, f"T{n}", {"i": i}))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=append, args=(n,)) for n in ids]
    with db.read() as reader:
        assert inbox.pending(reader, 1) == []
        with db.begin() as worker:
            projects.update(worker, 1, detail="working")
            for thread in threads:
                thread.start()
            until(lambda: len(begun) == len(threads))
        for thread in threads:
            thread.join(HANGS)
        assert inbox.pending(reader, 1) == []
    assert failed == []
    with db.read() as conn:
        events = inbox.pending(conn, 1) + inbox.pending(conn, 2)
        for n, mine in ids.items():
            assert mine == sorted(mine)
            assert {event.id for event in events if event.action == f"T{n}"} == set(mine)
        assert len({event.id for event in events}) == 100


def test_no_event_appears_below_one_that_was_seen(db: Database) -> None:
    """A reader that goes on from the highest id it saw must not miss one that was committed later."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def append() -> None:
        try:
            while not stop.is_set():
                with db.begin() as conn:
                    inbox.append(conn, 1, "X", {})
                    time.sleep(0.001)  # the longer a transaction, the likelier another overtakes it
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=append) for _ in range(4)]
    for thread in threads:
        thread.start()
    seen: list[int] = []
    while len(seen) < 200 and not failed:
        with db.read() as conn:
            now = [event.id for event in inbox.pending(conn, 1, limit=100_000)]
            assert inbox.received_through(conn, 1) == (now[-1] if now else 0)
        assert now[: len(seen)] == seen
        seen = now
    stop.set()
    for thread in threads:
        thread.join(HANGS)
    assert failed == []


def test_a_worker_in_the_middle_of_a_project_does_not_hold_up_its_webhooks(db: Database) -> None:
    if db.shown.startswith("sqlite"):
        pytest.skip("SQLite has one writer at a time")
    with db.begin() as worker:
        projects.update(worker, 1, detail="working")
        projects.acquire_lease(worker, 1, "w", 60)
        with db.begin() as web:
            web.execute(sa.text("SET LOCAL lock_timeout = '2s'"))
            inbox.append(web, 1, "X", {})


QUERIES = ("pending", "projects_with_work", "depth", "depth of one", "has_pending", "set_aside_events", "prune")


@pytest.mark.parametrize("name", QUERIES)
def test_what_the_worker_asks_all_the_time_does_not_look_at_applied_events(db: Database, name: str) -> None:
    ask: dict[str, Callable[[Connection], object]] = {
        "pending": lambda conn: inbox.pending(conn, 1),
        "projects_with_work": inbox.projects_with_work,
        "depth": inbox.depth,
        "depth of one": lambda conn: inbox.depth(conn, 1),
        "has_pending": lambda conn: inbox.has_pending(conn, 1, "X"),
        "set_aside_events": lambda conn: inbox.set_aside_events(conn, 1),
        "prune": lambda conn: inbox.prune(conn, LATER),
    }
    statements: list[tuple[str, object]] = []

    def note(_conn: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        statements.append((statement, parameters))

    with db.begin() as conn:
        inbox.append_many(conn, [(1, "X", {})] * 3)
        sa.event.listen(conn, "before_cursor_execute", note)
        ask[name](conn)
        sa.event.remove(conn, "before_cursor_execute", note)
        statements = [(text, values) for text, values in statements if "FROM events" in text]
        assert statements
        explain = "EXPLAIN QUERY PLAN " if conn.dialect.name == "sqlite" else "EXPLAIN "
        if conn.dialect.name == "postgresql":
            conn.execute(sa.text("SET LOCAL enable_seqscan = off"))
        for text, values in statements:
            plan = "\n".join(str(row) for row in conn.exec_driver_sql(explain + text, values))  # type: ignore[arg-type]
            assert "ix_events_" in plan, plan


def test_large_events_are_taken_a_few_at_a_time_in_their_order(db: Database) -> None:
    """An import of a million tasks comes as events of thousands each: not all of them at once into memory."""
    with db.begin() as conn:
        small = inbox.append_many(conn, [(1, "A", {"task": {"id": n}}) for n in range(20)])
        large = inbox.append_many(conn, [(1, "B", {"tasks": [{"id": n} for n in range(300)]}) for _ in range(10)])
        huge = inbox.append(conn, 1, "B", {"tasks": [{"id": n} for n in range(5000)]})
    taken = []
    with db.begin() as conn:
        while events := [event.id for event in inbox.pending(conn, 1, items=1000)]:
            taken.append(events)
            inbox.mark_applied(conn, events)
    assert [event for events in taken for event in events] == [*small, *large, huge]
    assert [len(events) for events in taken] == [24, 4, 3]
