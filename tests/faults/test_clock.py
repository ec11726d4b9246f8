"""The clock on the wall is set forward or back. Waiting rests on clocks that nobody sets; the rest heals."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path

import pytest
import sqlalchemy as sa

import neat_backend
from neat_backend.store import projects, schema
from neat_backend.store.database import Database
from neat_backend.store.sql import clock
from neat_backend.worker import worker as worker_module
from tests.fake_label_studio import FakeLabelStudio
from tests.faults.harness import assert_whole
from tests.living import PROJECT, Backend, engine_of, live_of, settle
from tests.store.conftest import db, migrated_postgres, migrated_sqlite, postgres_server  # noqa: F401 - fixtures
from tests.waiting import HANGS
from tests.worker.workers import Workers, holder, ready, short_pauses, until, workers  # noqa: F401 - fixtures

PACKAGE = Path(neat_backend.__file__).parent
LONG_RUNNING = ("store", "labelstudio", "web", "core", "compute", "doctor")  # and the files beside them
JUMPS = {
    "a day forward": timedelta(days=1),
    "a day back": timedelta(days=-1),
    "a minute forward": timedelta(minutes=1),
    "a minute back": timedelta(minutes=-1),
}


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[timedelta], None]:
    """Sets the wall clock as all of the package sees it, wherever it looks; the monotonic one goes on as it does."""
    offset = timedelta()

    class Wall(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + offset

    found = 0
    for path in (*PACKAGE.glob("*.py"), *(p for name in LONG_RUNNING for p in (PACKAGE / name).rglob("*.py"))):
        text = path.read_text()
        assert "utcnow(" not in text
        if "datetime.now(" in text:
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            monkeypatch.setattr(importlib.import_module(".".join(parts)), "datetime", Wall)
            found += 1
    assert found >= 3
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + offset.total_seconds())

    def jump(by: timedelta) -> None:
        nonlocal offset
        offset += by

    return jump


@pytest.mark.parametrize("jump", JUMPS)
def test_two_workers_go_on_one_at_a_time_and_the_other_takes_over_when_it_dies(
    server: FakeLabelStudio,
    backend: Backend,
    workers: Workers,  # noqa: F811
    set_clock: Callable[[timedelta], None],
    monkeypatch: pytest.MonkeyPatch,
    jump: str,
) -> None:
    monkeypatch.setattr(worker_module, "LEASE_SECONDS", 1.0)
    pair = [workers.start(backend, reconcile_seconds=0.3) for _ in range(2)]
    until(ready(backend))
    backend.deliver(server.annotate(1, "dog"))
    set_clock(JUMPS[jump])
    backend.deliver(server.annotate(2, "cat"))
    server.annotate(3, "dog")  # its webhook is lost: the comparison must come all the same

    def labelled(count: int) -> bool:
        live = [live_of(worker) for worker in pair if PROJECT in worker.running]
        return len(live) == 1 and len(engine_of(live[0]).labels()) == count

    def seconds_left() -> float:
        with backend.database.read() as conn:
            ends = conn.execute(sa.select(schema.projects.c.lease_until)).scalar_one()
            return float((ends - clock(conn)).total_seconds())

    until(lambda: labelled(3))
    until(lambda: holder(backend) in {worker.owner for worker in pair} and 0 < seconds_left() <= 1)  # renewed
    first, other = sorted(pair, key=lambda worker: worker.owner != holder(backend))
    workers.stop(first, release=False)  # without a word
    until(lambda: holder(backend) == other.owner, "the dead one's lease never ends")
    monkeypatch.setattr(worker_module, "LEASE_SECONDS", HANGS)
    first.running.clear()
    event = backend.deliver(server.annotate(4, "invalid"))
    until(lambda: labelled(4) and backend.project().published_event >= event)
    live = live_of(other)
    until(lambda: not live.is_busy())
    assert_whole(backend, live)


@pytest.mark.parametrize("back", [timedelta(hours=1), timedelta(days=400)])
def test_the_lease_of_one_that_died_as_the_clock_was_set_back_ends(
    db: Database,  # noqa: F811
    back: timedelta,
) -> None:
    with db.begin() as conn:
        now = clock(conn)
        assert projects.acquire_lease(conn, 1, "dead", 6.0, now)
        assert not projects.acquire_lease(conn, 1, "other", 6.0, now - timedelta(seconds=5))
        assert projects.lease_owner(conn, 1, now - back) is None
        assert projects.acquire_lease(conn, 1, "other", 6.0, now - back)


def test_leases_in_postgresql_rest_on_the_servers_clock(
    migrated_postgres: str,  # noqa: F811
    set_clock: Callable[[timedelta], None],
) -> None:
    """Workers on machines whose clocks differ by a day agree on who owns a project."""
    database = Database(migrated_postgres)
    with database.begin() as conn:
        projects.save_connection(conn, 4711)
        before = clock(conn)
        assert projects.acquire_lease(conn, 4711, "here", 30.0)
    set_clock(timedelta(days=1))
    with database.begin() as conn:
        assert timedelta() <= clock(conn) - before < timedelta(hours=1)
        assert not projects.acquire_lease(conn, 4711, "a day ahead", 30.0)
        assert projects.lease_owner(conn, 4711) == "here"
        projects.delete(conn, 4711)
    database.dispose()


def test_comparing_with_label_studio_is_due_by_the_monotonic_clock(
    backend: Backend, set_clock: Callable[[timedelta], None]
) -> None:
    backend.settings = backend.settings.model_copy(update={"reconcile_seconds": 60})
    live = backend.live()
    settle(live)
    set_clock(timedelta(days=1))
    assert not live.bulk.syncing.comparison_is_due()
    set_clock(timedelta(days=-2))
    live.bulk.syncing.compare_at = time.monotonic()
    assert live.bulk.syncing.comparison_is_due()
