"""A worker that is cut off from PostgreSQL without a word: another takes its projects, it writes nothing more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from neat_backend.store import inbox, projects
from neat_backend.store.database import Database
from neat_backend.worker import worker as worker_module
from tests.cable import Cable
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, live_of, state, take_in
from tests.store.conftest import empty_postgres, postgres_server  # noqa: F401 - fixtures
from tests.worker.workers import Workers, ready, run_out, short_pauses, until, workers  # noqa: F401 - fixtures


@pytest.fixture
def cable(empty_postgres: str) -> Iterator[tuple[Cable, str]]:  # noqa: F811
    url = sa.make_url(empty_postgres)
    cable = Cable(url.host or "127.0.0.1", url.port or 5432)
    yield cable, url.set(host="127.0.0.1", port=cable.port).render_as_string(hide_password=False)
    cable.cut.clear()
    cable.close()


def test_a_worker_that_is_cut_off_is_succeeded_and_writes_nothing_more(
    cable: tuple[Cable, str],
    empty_postgres: str,  # noqa: F811
    tmp_path: Path,
    workers: Workers,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_module, "LEASE_SECONDS", 2.0)
    way, through_cable = cable
    server = FakeLabelStudio()
    server.add_project(PROJECT)
    server.import_tasks(PROJECT, 6)
    direct = Database(empty_postgres)
    direct.migrate()
    far = Backend(tmp_path, server, database=Database(through_cable))
    near = Backend(tmp_path, server, database=direct)
    one = workers.start(far)
    until(ready(near))
    left = live_of(one)
    until(lambda: not left.is_busy())
    renewed = left.owned.leased_until
    # A transaction that is cut keeps its rows locked here, as the cable acknowledges what it loses.
    until(lambda: left.owned.leased_until != renewed, every=0.005)

    way.cut.set()
    event = near.deliver(server.annotate(1, "dog"))
    two = workers.start(near)
    until(lambda: near.project().published_event == event)
    with direct.read() as conn:
        assert projects.lease_owner(conn, PROJECT) == two.owner
    until(left.owned.lease_may_be_over)

    way.cut.clear()  # it learns that it lost the lease, and leaves the project alone
    until(lambda: not one.running)
    last = near.deliver(server.annotate(2, "cat"))
    until(lambda: near.project().published_event == last)
    with direct.read() as conn:
        assert projects.lease_owner(conn, PROJECT) == two.owner
        assert inbox.pending(conn, PROJECT) == []
    anew = Backend(tmp_path / "anew", server)
    read = anew.live()
    take_in(read)
    assert state(live_of(two)) == state(read)
    for each in (anew, near, far):
        each.close()


def test_two_workers_share_the_projects_and_one_goes_on_with_all_when_the_other_dies(
    empty_postgres: str,  # noqa: F811
    tmp_path: Path,
    workers: Workers,  # noqa: F811
) -> None:
    numbers = (7, 8, 9, 10)
    server = FakeLabelStudio()
    tasks = {}
    for number in numbers:
        server.add_project(number)
        tasks[number] = [task["id"] for task in server.import_tasks(number, 6)["tasks"]]
    database = Database(empty_postgres)
    database.migrate()
    here = Backend(tmp_path, server, database=database, numbers=numbers)

    def owners() -> dict[int, str | None]:
        with database.read() as conn:
            return {number: projects.lease_owner(conn, number) for number in numbers}

    def all_published(choice: str, at: int) -> None:
        events = {n: here.deliver(server.annotate(tasks[n][at], choice)) for n in numbers}
        for number, event in events.items():
            until(lambda number=number, event=event: here.project(number).published_event == event)  # type: ignore[misc]

    one = workers.start(here, max_live_projects=2)
    until(lambda: list(owners().values()).count(one.owner) == 2)
    both = [one, workers.start(here, max_live_projects=4)]
    until(lambda: {worker.owner for worker in both} <= set(owners().values()))
    for number in numbers:
        until(ready(here, number))
    all_published("dog", 0)
    assert set(owners().values()) <= {None, *(worker.owner for worker in both)}
    for worker in both * 2:  # at no moment does one project have two
        assert not set(both[0].running) & {n for n, owner in owners().items() if owner == both[1].owner}
        workers.let_look(worker)

    workers.stop(both[0], release=False)
    run_out(here, both[0].owner)
    all_published("cat", 1)
    all_published("dog", 2)
    assert set(owners().values()) <= {both[1].owner, None}
    for number in numbers:
        assert set(server.served(number)) == set(tasks[number][3:])
    here.close()
