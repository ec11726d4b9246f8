"""Workers on two hosts, PostgreSQL and Label Studio on a third: one host's network goes, the other goes on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from neat_backend.store import inbox, projects
from neat_backend.store.database import Database
from tests.cable import Cable
from tests.fake_label_studio import FakeLabelStudio
from tests.far import served
from tests.living import PROJECT, Backend, state, take_in
from tests.namespaces import Host, hosts
from tests.store.conftest import empty_postgres, postgres_server  # noqa: F401 - fixtures

ROOT = Path(__file__).parents[1]
PUBLISHING = {"import_predictions", "set_model_version", "delete_model_version"}
LIMIT_SECONDS = 180.0  # two interpreters with PyTorch have to start


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def until(true: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.timeout(600)
def test_a_host_that_is_cut_off_is_succeeded_and_publishes_nothing_more(
    empty_postgres: str,  # noqa: F811
    tmp_path: Path,
    processes: list[subprocess.Popen[bytes]],
    record_property: Callable[[str, object], None],
) -> None:
    label_studio = FakeLabelStudio()
    label_studio.add_project(PROJECT)
    label_studio.import_tasks(PROJECT, 6)
    database = Database(empty_postgres)
    database.migrate()
    here = Backend(tmp_path, label_studio, database=database)
    url = sa.make_url(empty_postgres)
    with hosts(2) as (router, both), served(label_studio, router) as (address, calls):
        way = Cable(url.host or "127.0.0.1", url.port or 5432, listen_on=router)
        reached = url.set(host=router, port=way.port).render_as_string(hide_password=False)

        def start(host: Host) -> None:
            command = [sys.executable, "-m", "tests.far", host.name, reached, str(here.settings.data_dir), address]
            processes.append(subprocess.Popen(host.run(*command), cwd=ROOT))

        def owner() -> str:
            with database.read() as conn:
                return (projects.lease_owner(conn, PROJECT) or "").partition(":")[0]

        def published(event: int) -> Callable[[], bool]:
            return lambda: here.project().published_event == event

        for host in both:
            start(host)
        until(lambda: here.project().state == projects.READY and label_studio.served(PROJECT), "nothing is published")
        until(lambda: {(host.name, "now") for host in both} <= set(calls), "they don't start")
        first, second = sorted(both, key=lambda host: host.name != owner())
        assert owner() == first.name
        event = here.deliver(label_studio.annotate(1, "dog"))
        until(published(event), "the first does not publish")

        first.pull_out()
        cut_at, before = time.monotonic(), len(calls)
        event = here.deliver(label_studio.annotate(2, "cat"))
        until(published(event), "the second does not take over")
        taken_over = time.monotonic() - cut_at
        assert owner() == second.name

        first.plug_in()
        again = len(calls)
        event = here.deliver(label_studio.annotate(3, "dog"))
        until(published(event), "the second does not go on")
        time.sleep(8)  # more than a lease: what the first had in mind, it would have done by now
        assert owner() == second.name
        assert [process.poll() for process in processes] == [None, None]
        publishers = {name for name, method in calls[before:] if method in PUBLISHING}
        assert publishers == {second.name}
        assert not [call for call in calls[again:] if call[0] == first.name and call[1] in PUBLISHING]
        way.close()

    served_now = label_studio.projects[PROJECT].predictions[label_studio.projects[PROJECT].model_version]
    assert all(len(found) == 1 for found in served_now.values())
    with database.read() as conn:
        assert inbox.pending(conn, PROJECT) == []
    anew = Backend(tmp_path / "anew", label_studio)
    read = anew.live()
    take_in(read)
    assert set(label_studio.served(PROJECT)) == {4, 5, 6}
    assert state(here.live()) == state(read)
    record_property("seconds_from_cut_to_published", round(taken_over, 1))
    print(f"{taken_over:.1f} s from the cut to the next order published by the other host")
    for each in (anew, here):
        each.close()
