"""Workers on two hosts, PostgreSQL, Label Studio and S3 on a third: one host's network goes, the other goes on.

The hosts share no folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from neat_backend.store import inbox, projects
from neat_backend.store.database import Database
from neat_backend.store.listed import listing
from tests.cable import Cable
from tests.fake_label_studio import FakeLabelStudio
from tests.far import served
from tests.living import PROJECT, Backend, state, take_in
from tests.namespaces import Host, hosts
from tests.s3 import s3_at
from tests.store.conftest import empty_postgres, postgres_server  # noqa: F401 - fixtures
from tests.waiting import until

ROOT = Path(__file__).parents[1]
PUBLISHING = {"import_predictions", "set_model_version", "delete_model_version"}


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


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
    url = sa.make_url(empty_postgres)
    with (
        hosts(2) as (router, both),
        served(label_studio, router) as (address, calls),
        s3_at(router) as (bucket, variables),
    ):
        here = Backend(tmp_path, label_studio, database=database, arrays_url=bucket)
        way = Cable(url.host or "127.0.0.1", url.port or 5432, listen_on=router)
        reached = url.set(host=router, port=way.port).render_as_string(hide_password=False)

        def start(host: Host) -> None:
            words = (host.name, reached, str(tmp_path / host.name), bucket, address)
            command = host.run(sys.executable, "-m", "tests.far", *words)
            processes.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, **variables}))

        def owner() -> str:
            with database.read() as conn:
                return (projects.lease_owner(conn, PROJECT) or "").partition(":")[0]

        def is_on_the_store(host: Host) -> bool:
            with database.read() as conn:
                found = listing(conn, PROJECT)
            root = tmp_path / host.name / "projects" / str(PROJECT)
            here = {
                path.relative_to(root).as_posix()
                for kind in ("features", "images")
                for path in root.rglob(f"{kind}/**/*.npz")
            }
            return found is not None and here <= set(found.files)

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
        until(lambda: is_on_the_store(first), "the features are not on the store")

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
        until(lambda: (first.name, "now") in calls[before:], "the first does not let the project go")
        assert owner() == second.name
        assert [process.poll() for process in processes] == [None, None]
        publishers = {name for name, method in calls[before:] if method in PUBLISHING}
        assert publishers == {second.name}
        assert not [call for call in calls[again:] if call[0] == first.name and call[1] in PUBLISHING]
        assert {name for name, method in calls if method == "fetch_bytes"} == {first.name}  # nothing is encoded twice
        way.close()
        anew = Backend(tmp_path / "anew", label_studio)
        read = anew.live()
        take_in(read)
        assert set(label_studio.served(PROJECT)) == {4, 5, 6}
        assert state(here.live()) == state(read)
        assert here.encoder.encoded == 0

    served_now = label_studio.projects[PROJECT].predictions[label_studio.projects[PROJECT].model_version]
    assert all(len(found) == 1 for found in served_now.values())
    with database.read() as conn:
        assert inbox.pending(conn, PROJECT) == []
    record_property("seconds_from_cut_to_published", round(taken_over, 1))
    print(f"{taken_over:.1f} s from the cut to the next order published by the other host")
    for each in (anew, here):
        each.close()
