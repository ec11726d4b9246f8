"""The worker's threads: leases, making room, and what is shown when something is wrong."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from neat_backend import connection
from neat_backend.errors import (
    EncoderError,
    LabelStudioError,
    LabelStudioRefused,
    LabelStudioUnavailable,
    SettingsError,
)
from neat_backend.labelstudio.events import parse_webhook
from neat_backend.records import COMPARE, SYNC
from neat_backend.stopping import Stopping
from neat_backend.store import inbox, projects, rounds, schema, tasks
from neat_backend.store.sql import clock as database_clock
from neat_backend.worker import upkeep
from neat_backend.worker import worker as worker_module
from neat_backend.worker.steps import backoff
from neat_backend.worker.steps.bulk import Bulk
from neat_backend.worker.steps.data_manager import Tabs
from neat_backend.worker.steps.publishing import Publishing
from neat_backend.worker.steps.serving import Serving
from neat_backend.worker.steps.step import Step
from neat_backend.worker.worker import Worker
from tests.conftest import Clock
from tests.fake_label_studio import BACKEND_URL, CONFIG, NOTHING_TO_CHOOSE, WITHOUT_INVALID, FakeLabelStudio
from tests.living import PROJECT, Backend, engine_of, label_studio_of, live_of, state, take_in
from tests.waiting import HANGS, Gate, until


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (
        ("LOOK_SECONDS", 0.05),
        ("REST_SECONDS", 0.0),
        ("FIRST_BACKOFF_SECONDS", 0.05),
        ("LONGEST_BACKOFF_SECONDS", 0.2),
        ("LEASE_SECONDS", HANGS),
        ("JOIN_SECONDS", HANGS),  # no lease is lost because the machine is busy
    ):
        monkeypatch.setattr(worker_module, name, seconds)
    monkeypatch.setattr(Bulk, "rest_seconds", 0.05)
    monkeypatch.setattr(upkeep, "FIRST_BACKOFF_SECONDS", 0.05)
    monkeypatch.setattr(upkeep, "LONGEST_BACKOFF_SECONDS", 0.2)


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of(6)


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    with closing(Backend(tmp_path, server)) as made:
        yield made


class Workers:
    """Starts workers in threads of this process, each as if it were on a host of its own."""

    def __init__(self) -> None:
        self.running: dict[Worker, tuple[Stopping, threading.Thread]] = {}
        self.looks: Counter[Worker] = Counter()  # how often each has looked for projects to take up

    def make(self, backend: Backend, **fields: Any) -> Worker:
        made = Worker(backend.settings.model_copy(update=fields), backend.database)
        made.owner = f"host{len(self.running)}:1:{id(made):x}"
        made._connect = lambda project: cast(Any, backend.server)  # type: ignore[method-assign]
        made._shared_encoder = lambda: cast(Any, backend.encoder)  # type: ignore[method-assign]
        take_up = made._take_up

        def counted() -> None:
            take_up()
            self.looks[made] += 1

        made._take_up = counted  # type: ignore[method-assign]
        return made

    def start(self, backend: Backend, **fields: Any) -> Worker:
        return self.run(self.make(backend, **fields))

    def run(self, worker: Worker) -> Worker:
        stopping = Stopping()
        thread = threading.Thread(target=worker.run, args=(stopping,), daemon=True)
        self.running[worker] = stopping, thread
        thread.start()
        return worker

    def let_look(self, worker: Worker) -> None:
        """Wait until it has looked for projects again, from beginning to end."""
        before = self.looks[worker]
        until(lambda: self.looks[worker] >= before + 2)

    def stop(self, worker: Worker, release: bool = True) -> None:
        """release False: it is gone without a word, its lease runs on."""
        stopping, thread = self.running.pop(worker)
        stopping.set()
        thread.join(HANGS)
        if release:
            worker.stop()
            return
        for running in worker.running.values():
            running.stop()
            running.join(HANGS)


@pytest.fixture
def workers() -> Iterator[Workers]:
    workers = Workers()
    yield workers
    for worker in list(workers.running):
        workers.stop(worker)


def holder(backend: Backend, number: int = PROJECT) -> str | None:
    with backend.database.read() as conn:
        return projects.lease_owner(conn, number)


def run_out(backend: Backend, owner: str) -> None:
    """The owner's leases end now."""
    with backend.database.begin() as conn:
        table = schema.projects
        ended = database_clock(conn) - timedelta(seconds=1)
        conn.execute(sa.update(table).where(table.c.lease_owner == owner).values(lease_until=ended))


def shown(backend: Backend, number: int = PROJECT) -> str:
    return backend.project(number).state


def ready(backend: Backend, number: int = PROJECT) -> Callable[[], bool]:
    def is_ready() -> bool:
        project = backend.project(number)
        return project.state == projects.READY and bool(backend.server.served(number))

    return is_ready


def test_a_label_comes_out_as_a_new_order(server: FakeLabelStudio, backend: Backend, workers: Workers) -> None:
    workers.start(backend)
    until(ready(backend))
    first = server.served(PROJECT)
    assert sorted(first) == [1, 2, 3, 4, 5, 6]
    event = backend.deliver(server.annotate(first[0], "dog"))
    until(lambda: backend.project().published_event == event)
    assert set(server.served(PROJECT)) == set(first[1:])


def test_a_clean_stop_gives_the_lease_back(backend: Backend, workers: Workers) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    assert holder(backend) == worker.owner
    threads = [thread for running in worker.running.values() for thread in running.threads]
    workers.stop(worker)
    assert holder(backend) is None
    assert not any(thread.is_alive() for thread in threads)


def test_of_two_workers_one_works_and_the_other_takes_over_when_it_stops(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    one = workers.start(backend)
    until(ready(backend))
    two = workers.start(backend)
    workers.let_look(two)
    assert holder(backend) == one.owner
    assert (len(one.running), len(two.running)) == (1, 0)
    event = backend.deliver(server.annotate(1, "dog"))
    until(lambda: backend.project().published_event == event)
    workers.stop(one)
    until(lambda: holder(backend) == two.owner)
    event = backend.deliver(server.annotate(2, "dog"))
    until(lambda: backend.project().published_event == event)


def test_a_worker_that_is_gone_without_a_word_is_succeeded_when_its_lease_runs_out(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    one = workers.start(backend)
    until(ready(backend))
    workers.stop(one, release=False)
    event = backend.deliver(server.annotate(1, "dog"))
    two = workers.start(backend)
    workers.let_look(two)
    assert holder(backend) == one.owner
    run_out(backend, one.owner)
    until(lambda: backend.project().published_event == event)
    assert holder(backend) == two.owner


def test_the_lease_of_a_dead_process_of_this_host_is_taken_over_at_once(backend: Backend, workers: Workers) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with backend.database.begin() as conn:
        assert projects.acquire_lease(conn, PROJECT, f"{worker_module._host()}:{dead.pid}:abc", 600)
    worker = workers.start(backend)
    until(lambda: holder(backend) == worker.owner)


@pytest.mark.parametrize("owner", [f"elsewhere:{2**22 + 1}:abc", f"{worker_module._host()}:1:abc", "nonsense"])
def test_the_lease_of_a_process_that_may_live_is_left_alone(backend: Backend, workers: Workers, owner: str) -> None:
    with backend.database.begin() as conn:
        assert projects.acquire_lease(conn, PROJECT, owner, 600)
    workers.let_look(workers.start(backend))
    assert holder(backend) == owner


def test_a_process_of_another_machine_with_our_name_is_not_known_to_be_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = f"{2**22 + 1}:abc"
    here = worker_module._host()
    monkeypatch.setattr(worker_module, "BOOT_ID", tmp_path / "boot_id")
    (tmp_path / "boot_id").write_text("another\n")
    there = worker_module._host()
    assert there != here
    assert worker_module._is_dead(f"{there}:{gone}")
    assert not worker_module._is_dead(f"{here}:{gone}")
    (tmp_path / "boot_id").unlink()  # no Linux
    assert worker_module._is_dead(f"{worker_module._host()}:{gone}")
    monkeypatch.setattr(worker_module.uuid, "getnode", lambda: 4711)
    assert not worker_module._is_dead(f"{there}:{gone}")


def test_an_earlier_process_with_our_number_is_dead() -> None:
    assert worker_module._is_dead(f"{worker_module._host()}:{os.getpid()}:abc")
    assert not worker_module._is_dead(f"{worker_module._host()}:{os.getppid()}:abc")


def test_a_worker_whose_lease_ran_out_starts_afresh(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    """As after a suspended machine: nobody took the project, and the first label finds the lease expired."""
    worker = workers.start(backend)
    until(ready(backend))
    live = live_of(worker)
    with backend.database.begin() as conn:
        projects.release_lease(conn, PROJECT, worker.owner)
    event = backend.deliver(server.annotate(1, "dog"))
    until(lambda: backend.project().published_event == event)
    assert live_of(worker) is not live
    assert holder(backend) == worker.owner


def test_a_project_taken_by_another_worker_is_let_go(
    backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "HEARTBEATS", HANGS / 0.05)
    worker = workers.start(backend)
    until(ready(backend))
    with backend.database.begin() as conn:
        projects.release_lease(conn, PROJECT, worker.owner)
        assert projects.acquire_lease(conn, PROJECT, "elsewhere:1:abc", 600)
    until(lambda: not worker.running)
    assert holder(backend) == "elsewhere:1:abc"


# making room


@pytest.fixture
def three(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    for number in (8, 9):
        server.add_project(number)
        server.import_tasks(number, 3)
    backend = Backend(tmp_path, server, numbers=(PROJECT, 8, 9))
    yield backend
    backend.close()


def test_the_project_not_needed_for_longest_makes_room_and_comes_back(
    server: FakeLabelStudio, three: Backend, workers: Workers
) -> None:
    worker = workers.start(three, max_live_projects=2)
    until(lambda: all(ready(three, number)() for number in (PROJECT, 8, 9)))
    assert len(worker.running) <= 2
    for task in (1, 7, 10, 2, 8):
        event = three.deliver(server.annotate(task, "dog"))
        number = PROJECT if task < 7 else 8 if task < 10 else 9
        until(lambda number=number, event=event: three.project(number).published_event == event)  # type: ignore[misc]
        assert len(worker.running) <= 2
    until(lambda: set(worker.running) == {PROJECT, 8})
    assert holder(three, 9) is None


def test_a_project_needed_just_now_is_not_put_away_unless_another_has_waited_as_long(
    server: FakeLabelStudio, backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "REST_SECONDS", HANGS)
    worker = workers.start(backend)
    until(ready(backend))
    event = backend.deliver(server.annotate(1, "dog"))
    until(lambda: backend.project().published_event == event)
    live = live_of(worker)
    until(lambda: not live.is_busy())
    stopping, thread = workers.running[worker]
    stopping.set()
    thread.join(HANGS)
    assert not worker._make_room(0.0)
    assert worker._make_room(HANGS)


def test_a_process_reads_each_project_as_a_whole_once_however_often_it_makes_room(
    server: FakeLabelStudio, three: Backend, workers: Workers
) -> None:
    worker = workers.start(three, max_live_projects=2)
    until(lambda: all(ready(three, number)() for number in (PROJECT, 8, 9)))
    for task in (1, 7, 10, 2, 8, 11, 3, 9, 12):
        number = PROJECT if task < 7 else 8 if task < 10 else 9
        event = three.deliver(server.annotate(task, "dog"))
        until(lambda number=number, event=event: three.project(number).published_event == event)  # type: ignore[misc]
        lost = server.annotate(task, "cat")["annotation"]["id"]  # a second word, whose webhook is lost
        server.change_annotation(lost, "dog")
    whole = [project for _, project in server.called("tasks")]
    pages = {PROJECT: 3, 8: 2, 9: 2}  # of three tasks, the last one is empty
    assert {number: whole.count(number) for number in pages} == pages
    workers.stop(worker)


MANY = tuple(range(PROJECT, PROJECT + 22))


@pytest.fixture
def many(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    for number in MANY[1:]:
        server.add_project(number)
        server.import_tasks(number, 2)
    with closing(Backend(tmp_path, server, numbers=MANY)) as backend:
        yield backend


def test_what_no_webhook_has_told_is_found_in_every_project_in_memory_or_not(
    server: FakeLabelStudio, many: Backend, workers: Workers
) -> None:
    workers.start(many, max_live_projects=8, reconcile_seconds=0.2)
    until(lambda: all(ready(many, number)() for number in MANY), progress=lambda: many.project(MANY[-1]).compared_at)
    server.calls.clear()
    for number in MANY:
        first, *_, last = sorted(server.projects[number].tasks)
        server.annotate(first, "dog")
        server.change_image(last, number)

    def found(number: int) -> bool:
        counts = many.counts(number)
        exchanged = server.projects[number].tasks[max(server.projects[number].tasks)]["data"]["image"]
        with many.database.read() as conn:
            images = {image for _, image, _ in tasks.task_images(conn, number)}
        return counts.annotations == 1 and exchanged in images and ready(many, number)()

    left = set(MANY)

    def all_found() -> bool:
        left.difference_update([number for number in left if found(number)])
        return not left

    until(all_found, progress=lambda: len(left))
    assert server.called("tasks") == [], "nothing was read as a whole again"


def test_when_each_project_was_last_compared_is_known_in_memory_or_not(
    server: FakeLabelStudio, three: Backend, workers: Workers
) -> None:
    worker = workers.start(three, max_live_projects=1, reconcile_seconds=0.1)
    until(lambda: all(ready(three, number)() for number in (PROJECT, 8, 9)))
    before = {number: three.project(number).compared_at for number in (PROJECT, 8, 9)}
    until(lambda: all(three.project(number).compared_at != moment for number, moment in before.items()))
    until(lambda: len(worker.running) == 1)


def test_a_difference_that_cannot_be_explained_is_read_once_though_the_project_is_put_away(
    server: FakeLabelStudio, three: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers.start(three, max_live_projects=1, reconcile_seconds=0.05)
    until(lambda: all(ready(three, number)() for number in (PROJECT, 8, 9)))
    asked = server.project
    monkeypatch.setattr(
        server, "project", lambda number: replace(asked(number), annotation_count=1000)
    )  # of tasks that only others see
    compared = len(server.called("changed_tasks"))
    until(lambda: len(server.called("changed_tasks")) > compared + 60, progress=lambda: len(server.calls))
    pages = {PROJECT: 3, 8: 2, 9: 2}
    for number, of_one in pages.items():
        assert [project for _, project in server.called("tasks")].count(number) <= 2 * of_one


def test_a_project_that_is_forgotten_while_it_is_put_away_is_read_as_a_whole_when_it_comes_back(
    server: FakeLabelStudio, three: Backend, workers: Workers
) -> None:
    server._now += timedelta(hours=1)  # so that nothing of it has changed lately
    worker = workers.start(three, max_live_projects=1)
    until(lambda: all(ready(three, number)() for number in (PROJECT, 8, 9)))
    until(lambda: PROJECT not in worker.running)
    connection.forget(three.database, three.settings.data_dir, None, PROJECT)
    stray(server, three, 1)
    until(adopted(three))
    assert three.counts().tasks == 6


def test_a_put_away_project_whose_connection_is_gone_is_shown_as_disconnected(
    server: FakeLabelStudio, three: Backend, workers: Workers
) -> None:
    workers.start(three, max_live_projects=1, reconcile_seconds=0.1)
    until(lambda: all(ready(three, number)() for number in (PROJECT, 8, 9)))
    for number in (PROJECT, 8, 9):
        server.disconnect(number)
    until(lambda: all(shown(three, number) == projects.DISCONNECTED for number in (PROJECT, 8, 9)))


def test_projects_that_cannot_go_on_do_not_keep_others_out_for_ever(
    server: FakeLabelStudio, three: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "STUCK_SECONDS", 0.3)
    gone = server.projects.pop(PROJECT), server.projects.pop(8)
    workers.start(three, max_live_projects=2)
    until(ready(three, 9))
    for number in (PROJECT, 8):
        until(lambda number=number: shown(three, number) == projects.DISCONNECTED)  # type: ignore[misc]
    server.projects |= {there.id: there for there in gone}
    until(lambda: ready(three)() and ready(three, 8)())


def test_a_project_that_is_disconnected_is_put_away(backend: Backend, workers: Workers) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    with backend.database.begin() as conn:
        projects.delete(conn, PROJECT)
    until(lambda: not worker.running)


def test_a_project_that_is_connected_anew_is_started_anew(backend: Backend, workers: Workers) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    assert live_of(worker).context.settings.k == 2
    with backend.database.begin() as conn:
        projects.save_connection(conn, PROJECT, extra_params={"k": 5})
    until(lambda: PROJECT in worker.running and live_of(worker).context.settings.k == 5)
    with backend.database.begin() as conn:
        projects.save_connection(conn, PROJECT, extra_params={"no such thing": 5})
    until(lambda: PROJECT in worker.running and live_of(worker).context.settings.k == 2)
    until(ready(backend))


# connections


def stray(server: FakeLabelStudio, backend: Backend, task: int) -> int:
    """Somebody labels a task, and the webhook that was left behind tells us at the address that it was made with."""
    webhook = parse_webhook(server.annotate(task, "dog"))
    return backend.file(webhook.action, {**webhook.payload, "backend_url": BACKEND_URL}, webhook.project)


def dropped(backend: Backend, event: int, number: int = PROJECT) -> Callable[[], bool]:
    def is_dropped() -> bool:
        with backend.database.read() as conn:
            return all(waiting.id > event for waiting in inbox.pending(conn, number))

    return is_dropped


def adopted(backend: Backend) -> Callable[[], bool]:
    def is_adopted() -> bool:
        with backend.database.read() as conn:
            known = projects.get(conn, PROJECT) is not None
        return known and ready(backend)()

    return is_adopted


def settings_of(server: FakeLabelStudio) -> tuple[Any, ...]:
    there = server.projects[PROJECT]
    return there.sampling, there.model_version, dict(there.webhooks), server.titles(PROJECT)


def forget(backend: Backend) -> None:
    connection.forget(backend.database, backend.settings.data_dir, None, PROJECT)


def test_a_forgotten_project_is_not_taken_up_again_by_a_webhook_that_was_left_behind(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    workers.start(backend)
    until(ready(backend))
    server.disconnect(PROJECT)
    forget(backend)
    server.projects[PROJECT].sampling = "Sequential sampling"
    left = settings_of(server)
    until(dropped(backend, stray(server, backend, 1)))
    with backend.database.read() as conn:
        assert projects.all(conn) == []
    assert settings_of(server) == left


def test_a_project_that_is_still_connected_is_taken_up_with_the_extra_params_of_its_connection(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    """As after a lost database: /setup has never come, or its answer was lost."""
    server.disconnect(PROJECT)
    server.connect(PROJECT, k=5, configure_project=False)
    forget(backend)
    worker = workers.start(backend)
    event = stray(server, backend, 1)
    until(adopted(backend))
    until(lambda: backend.project().published_event >= event)
    assert live_of(worker).context.settings.k == 5
    assert server.projects[PROJECT].sampling == "Sequential sampling"
    assert server.titles(PROJECT) == []


def test_a_connection_to_another_backend_does_not_make_a_project_ours(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    forget(backend)
    server.disconnect(PROJECT)
    server.connect(PROJECT, "http://another:9090")
    workers.start(backend)
    until(dropped(backend, stray(server, backend, 1)))
    with backend.database.read() as conn:
        assert projects.all(conn) == []


def test_what_comes_for_an_unknown_project_waits_while_label_studio_is_away(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    forget(backend)
    event = stray(server, backend, 1)
    server.failing = LabelStudioUnavailable("can't reach Label Studio")
    workers.start(backend)
    until(lambda: len(server.called("project")) > 1)
    assert not dropped(backend, event)()
    server.failing = None
    until(adopted(backend))


@pytest.mark.parametrize("at", ["start", "comparison"])
def test_a_connection_that_is_gone_is_shown_and_nothing_is_published_or_set_from_then_on(
    server: FakeLabelStudio, backend: Backend, workers: Workers, at: str
) -> None:
    worker = workers.start(backend, reconcile_seconds=0.1 if at == "comparison" else 0)
    until(ready(backend))
    if at == "start":
        workers.stop(worker)
    server.disconnect(PROJECT)
    server.projects[PROJECT].webhooks.clear()
    if at == "start":
        worker = workers.start(backend)
    until(lambda: shown(backend) == projects.DISCONNECTED)
    until(lambda: not worker.running)
    assert "neat-backend forget 7" in backend.project().detail
    left = settings_of(server)
    until(dropped(backend, stray(server, backend, 1)))
    backend.file(SYNC)
    until(dropped(backend, stray(server, backend, 2)))
    assert settings_of(server) == left
    assert shown(backend) == projects.DISCONNECTED


@pytest.mark.parametrize("told", [True, False])
def test_a_project_that_is_connected_again_is_configured_again_and_has_the_labels_of_the_time_between(
    server: FakeLabelStudio, backend: Backend, workers: Workers, told: bool
) -> None:
    worker = workers.start(backend, reconcile_seconds=0.1)
    until(ready(backend))
    server.disconnect(PROJECT)
    until(lambda: shown(backend) == projects.DISCONNECTED)
    server.annotate(1, "dog")
    server.projects[PROJECT].sampling = "Sequential sampling"
    server.connect(PROJECT)
    if told:  # else an instance of Label Studio that was away is back
        with backend.database.begin() as conn:
            projects.update(conn, PROJECT, state=projects.CONNECTING)
    until(ready(backend))
    assert server.projects[PROJECT].sampling == "Uncertainty sampling"
    live = live_of(worker)
    until(lambda: set(engine_of(live).labels()) == {1})


def test_a_connection_made_anew_between_two_looks_is_configured_though_its_id_is_the_old_one(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    workers.start(backend)
    until(ready(backend))
    (before,) = server.ml_backends(PROJECT)
    server.disconnect(PROJECT)
    server.projects[PROJECT].sampling = "Sequential sampling"
    server.projects[PROJECT].webhooks.clear()
    assert server.connect(PROJECT).id == before.id
    backend.file(COMPARE)  # as /setup does
    until(lambda: server.projects[PROJECT].sampling == "Uncertainty sampling")
    until(lambda: server.projects[PROJECT].webhooks, "it has no webhook")
    assert shown(backend) == projects.READY


def test_the_sampling_that_somebody_has_chosen_outlives_a_restart(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    workers.stop(workers.start(backend, reconcile_seconds=0))
    worker = workers.start(backend)
    until(ready(backend))
    server.change_project(PROJECT, sampling="Sequential sampling")
    workers.stop(worker)
    workers.start(backend)
    until(lambda: backend.project().sampling == "Sequential sampling")
    until(ready(backend))
    assert server.projects[PROJECT].sampling == "Sequential sampling"


def test_a_project_read_by_an_earlier_version_is_not_configured_again(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    workers.stop(worker)
    server.projects[PROJECT].sampling = "Sequential sampling"
    with backend.database.begin() as conn:
        projects.update(conn, PROJECT, connection=None, created_at=None)
    workers.start(backend)
    until(lambda: bool(backend.project().connection))
    assert server.projects[PROJECT].sampling == "Sequential sampling"


def test_a_connection_whose_extra_params_were_changed_is_followed(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    server.disconnect(PROJECT)
    server.connect(PROJECT, k=5)
    backend.file(COMPARE)
    until(lambda: PROJECT in worker.running and live_of(worker).context.settings.k == 5)
    until(ready(backend))


def test_another_project_of_the_same_number_begins_anew(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    """Label Studio was set up anew, or another one stands behind the same URL."""
    worker = workers.start(backend, reconcile_seconds=0.1)
    until(ready(backend))
    event = backend.deliver(server.annotate(1, "dog"))
    backend.deliver(server.press_train(PROJECT))
    until(lambda: backend.project().published_event > event)
    made = server.projects[PROJECT].created_at
    old = set(server.projects[PROJECT].tasks)
    server.add_project(PROJECT)
    server.import_tasks(PROJECT, 3)
    until(lambda: backend.project().created_at not in (None, datetime.fromisoformat(made)))
    until(ready(backend))
    with backend.database.read() as conn:
        assert set(tasks.task_ids(conn, PROJECT).tolist()) == set(server.projects[PROJECT].tasks)
        assert rounds.all(conn, PROJECT) == []
    live = live_of(worker)
    assert engine_of(live).labels() == {}
    assert not old & set(engine_of(live).tasks())
    assert set(server.served(PROJECT)) == set(server.projects[PROJECT].tasks)


# what is shown


def test_a_refused_key_blocks_the_project_with_the_remedy_until_it_is_right(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    server.failing = LabelStudioRefused("Label Studio refused us (401); check LABEL_STUDIO_API_KEY")
    workers.start(backend)
    until(lambda: shown(backend) == projects.BLOCKED)
    assert "check LABEL_STUDIO_API_KEY" in backend.project().detail
    server.failing = None
    until(ready(backend))
    assert backend.project().detail == ""


def test_a_missing_key_blocks_the_project_and_names_the_settings(backend: Backend, workers: Workers) -> None:
    worker = workers.make(backend)
    del worker._connect  # type: ignore[method-assign]
    workers.run(worker)
    until(lambda: shown(backend) == projects.BLOCKED)
    assert "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY" in backend.project().detail
    with pytest.raises(SettingsError):
        worker._connect(backend.project())


def test_label_studio_down_is_shown_as_away_and_recovers_with_labels_taken_in_meanwhile(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    on = server.projects[PROJECT].model_version
    server.failing = LabelStudioUnavailable("can't reach Label Studio", retry_after_seconds=0.1)
    event = backend.deliver(server.annotate(server.served(PROJECT)[1], "dog"))
    event = backend.deliver(server.annotate(server.served(PROJECT)[0], "invalid"))
    backend.file(SYNC)
    until(lambda: shown(backend) == projects.AWAY)
    live = live_of(worker)
    until(lambda: len(engine_of(live).labels()) == 2)
    assert server.projects[PROJECT].model_version == on
    server.failing = None
    until(lambda: backend.project().published_event > event)
    until(ready(backend))
    assert backend.project().detail == ""


def test_a_project_deleted_in_label_studio_says_so(server: FakeLabelStudio, backend: Backend, workers: Workers) -> None:
    del server.projects[PROJECT]
    workers.start(backend)
    until(lambda: shown(backend) == projects.DISCONNECTED)
    assert "deleted, or not visible to the API key's user" in backend.project().detail


def test_missing_weights_block_the_project_until_they_are_there(
    backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object) -> Any:
        raise EncoderError("NEAT_ENCODER: no weights; set NEAT_ENCODER_WEIGHTS")

    monkeypatch.setattr(worker_module, "build_encoder", build)
    worker = workers.make(backend)
    del worker._shared_encoder  # type: ignore[method-assign]
    workers.run(worker)
    until(lambda: shown(backend) == projects.BLOCKED)
    assert backend.project().detail == "NEAT_ENCODER: no weights; set NEAT_ENCODER_WEIGHTS"
    monkeypatch.setattr(worker_module, "build_encoder", lambda *_: backend.encoder)
    until(ready(backend))


def test_a_label_config_without_choices_blocks_until_it_is_repaired(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    server.change_project(PROJECT, label_config=NOTHING_TO_CHOOSE)
    with backend.database.begin() as conn:
        projects.update(conn, PROJECT, label_config=NOTHING_TO_CHOOSE)
    workers.start(backend)
    until(lambda: shown(backend) == projects.BLOCKED)
    assert "no Choices tag" in backend.project().detail
    server.change_project(PROJECT, label_config=CONFIG)
    until(ready(backend))


@pytest.mark.parametrize("step", ["bulk", "learn", "rounds", "tidy", "publish"])
def test_a_fault_in_one_step_does_not_stop_the_others(
    server: FakeLabelStudio, backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    live = live_of(worker)
    (kind,) = [type(one) for one in live.steps if one.name == step]
    original = kind.step
    broken = True

    def fail(self: Step) -> bool:
        if broken:
            raise ValueError("a fault of ours")
        return original(self)

    workers.stop(worker)
    monkeypatch.setattr(kind, "step", fail)
    worker = workers.start(backend)
    until(lambda: shown(backend) == projects.BLOCKED)
    assert backend.project().detail == f"internal error in {step}: a fault of ours; see the log"
    event = backend.deliver(server.annotate(1, "dog"))
    live = live_of(worker)
    until(lambda: live.followed.applied == event and len(engine_of(live).labels()) == 1)
    broken = False
    until(ready(backend))
    until(lambda: backend.project().published_event == event)


def test_a_part_that_fails_is_tried_ever_less_often_though_the_others_work(
    server: FakeLabelStudio, backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tabs that are looked at every minute must not make each failure of the rest the first one."""
    waits: list[float] = []
    failed = backoff.Backoff.failed
    monkeypatch.setattr(backoff.Backoff, "failed", lambda self: waits.append(failed(self)) or waits[-1])  # type: ignore[func-returns-value]
    monkeypatch.setattr(Tabs, "step", lambda *_: True)
    monkeypatch.setattr(Publishing, "background_step", refuse)
    workers.start(backend)
    until(lambda: len(waits) >= 5)
    assert waits[:5] == [0.05, 0.1, 0.2, 0.2, 0.2]


def refuse(*_: object) -> bool:
    raise LabelStudioError("Label Studio answered 400")


def test_publishing_waits_without_spinning(
    server: FakeLabelStudio, backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []  # in the thread that publishes
    publish, rest = Serving.step, Serving.rest

    def noted_step(self: Serving) -> bool:
        done.append("step")
        return publish(self)

    def noted_rest(self: Serving, stopping: threading.Event) -> None:
        done.append("rest")
        rest(self, stopping)

    monkeypatch.setattr(Serving, "step", noted_step)
    monkeypatch.setattr(Serving, "rest", noted_rest)
    worker = workers.start(backend, publish_interval_seconds=1000)
    until(ready(backend))
    order = server.served(PROJECT)
    live = live_of(worker)
    until(lambda: not live.is_busy())
    live.publishing._served_sampling = "another"  # so that the next order has to be published
    backend.deliver(server.annotate(order[2], "invalid"))
    until(lambda: backend.project().applied_event == 1)
    done.clear()
    until(lambda: len(done) >= 10)
    assert all(one != two for one, two in itertools.pairwise(done))
    assert backend.project().published_event < 1


def test_a_slow_label_studio_does_not_hold_up_labels(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    live = live_of(worker)
    until(lambda: not live.is_busy())
    gate = server.gates["import_predictions"] = Gate()
    live.publishing._served_sampling = "another"
    backend.deliver(server.annotate(1, "dog"))
    until(gate.reached.is_set)
    event = backend.deliver(server.annotate(2, "cat"))
    until(lambda: live.followed.applied == event)
    assert not gate.opened.is_set()
    gate.opened.set()
    until(lambda: backend.project().published_event == event)


def test_whatever_pours_in_while_all_threads_work_the_state_is_that_of_a_project_read_anew(
    server: FakeLabelStudio, workers: Workers, tmp_path: Path
) -> None:
    backend = Backend(tmp_path, server, batch_size=1000, encode_batch_size=2)
    worker = workers.start(backend)
    rng = random.Random(0)
    for _ in range(150):
        there = server.projects[PROJECT]
        task, annotations = rng.choice(sorted(there.tasks)), sorted(there.annotations)
        body = rng.choice(
            [
                lambda: server.import_tasks(PROJECT, 2, annotated=["cat"] * rng.randrange(2)),
                lambda: server.annotate(task, rng.choice(["dog", "cat", "invalid"])),  # noqa: B023
                lambda: server.change_image(task, rng.randrange(10**6)),  # noqa: B023
                lambda: server.delete_annotation(rng.choice(annotations)) if annotations else None,  # noqa: B023
                lambda: server.delete_tasks(task) if len(there.tasks) > 20 else None,  # noqa: B023
                lambda: server.change_project(PROJECT, label_config=rng.choice([CONFIG, WITHOUT_INVALID])),
            ]
        )()
        if body is not None:
            last = backend.deliver(body)
        time.sleep(0.002)
    until(lambda: backend.project().published_event == last and shown(backend) == projects.READY)
    live = live_of(worker)
    until(lambda: not live.is_busy())
    anew = Backend(tmp_path / "anew", server, batch_size=1000)
    read = anew.live()
    take_in(read)
    assert state(live) == state(read)
    served = server.served(PROJECT)
    answered = {
        a["task"] for a in server.projects[PROJECT].annotations.values()
    }  # some with what is no choice any more
    assert served == [t for t in engine_of(read).head() if t not in answered]
    workers.stop(worker)
    anew.close()
    backend.close()


def test_a_project_that_is_slow_to_stop_does_not_cost_the_others_their_leases(
    backend: Backend, workers: Workers, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    stuck = SimpleNamespace(join=lambda timeout: clock.sleep(timeout))  # a thread that takes all the time it gets
    worker.running[PROJECT].threads += [cast(threading.Thread, stuck)] * 6
    monkeypatch.setattr(worker_module, "JOIN_SECONDS", 5.0)
    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "time", SimpleNamespace(monotonic=clock))
        worker.stop()
    assert clock.now == 5.0


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        ("version 1.23.2, legacy token of ann@example.com", "INFO", "http://there: version 1.23.2"),
        (LabelStudioRefused("check LABEL_STUDIO_API_KEY"), "WARNING", "can't be used yet: check LABEL_STUDIO_API_KEY"),
    ],
)
def test_at_its_start_it_says_whether_label_studio_is_there_and_takes_the_key(
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    answer: str | Exception,
    level: str,
    words: str,
) -> None:
    def who_answers(url: str, key: str, timeout_seconds: float) -> str:
        asked.append((url, key))
        if isinstance(answer, Exception):
            raise answer
        return answer

    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(worker_module.inspection, "who_answers", who_answers)
    there = {"label_studio_url": "http://there", "label_studio_api_key": SecretStr("ours")}
    with caplog.at_level("INFO"):
        worker_module._greet(backend.settings.model_copy(update=there))
    assert asked == [("http://there", "ours")]
    assert [(one.levelname, words in one.getMessage()) for one in caplog.records] == [(level, True)]


def test_at_its_start_it_names_what_is_not_set(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    worker_module._greet(backend.settings)
    assert "LABEL_STUDIO_URL is not set" in caplog.text
    assert "LABEL_STUDIO_API_KEY is not set" in caplog.text


def test_old_tombstones_are_pruned_all_of_them(
    server: FakeLabelStudio, backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    take_in(backend.live())
    backend.deliver(server.delete_tasks(1, 2, 3))
    take_in(backend.live())
    worker = workers.make(backend)

    def kept() -> int:
        with backend.database.read() as conn:
            return conn.execute(sa.select(sa.func.count()).select_from(schema.tasks)).scalar_one()

    worker._prune_tombstones()
    assert kept() == 6  # they are of today
    monkeypatch.setattr(worker_module, "KEEP_TOMBSTONES_SECONDS", -60.0)
    monkeypatch.setattr(worker_module, "PRUNE_AT_ONCE", 2)
    worker._prune_tombstones()
    assert kept() == 3
    assert backend.counts().tasks == 3


def test_old_events_are_pruned_all_of_them(backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "PRUNE_AT_ONCE", 2)
    with backend.database.begin() as conn:
        ids = inbox.append_many(conn, [(PROJECT, SYNC, {})] * 5)
        inbox.mark_applied(conn, ids)
    monkeypatch.setattr(worker_module, "KEEP_EVENTS_SECONDS", -60)
    workers.make(backend)._prune()
    with backend.database.read() as conn:
        assert not inbox.applied_since(conn, PROJECT, SYNC, datetime.now(timezone.utc) - timedelta(days=1))


def test_the_key_goes_only_to_the_url_that_came_with_it(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody who reaches /setup can name a server there."""
    made: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "neat_backend.labelstudio.client.LabelStudioClient", lambda url, key, timeout, hosts: made.append((url, key))
    )
    there = replace(backend.project(), label_studio_url="http://elsewhere", access_token="theirs")
    for url, key in (("", "ours"), ("http://here", "ours"), ("http://here", ""), ("", "")):
        settings = backend.settings.model_copy(update={"label_studio_url": url, "label_studio_api_key": SecretStr(key)})
        worker = Worker(settings, backend.database)
        with contextlib.suppress(SettingsError):
            worker._connect(there)
    assert made == [("http://here", "ours"), ("http://here", "theirs"), ("http://elsewhere", "theirs")]
