"""How many projects a worker keeps in memory, and which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from neat_backend import connection
from neat_backend.store import projects, tasks
from neat_backend.worker import worker as worker_module
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, live_of
from tests.waiting import HANGS, until
from tests.worker.worker.test_connections import adopted, stray
from tests.worker.workers import Workers, holder, ready, shown


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
    assert not worker._free_slot(0.0)
    assert worker._free_slot(HANGS)


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
    original = server.project
    monkeypatch.setattr(
        server, "project", lambda number: replace(original(number), annotation_count=1000)
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


def test_a_project_that_is_connected_anew_is_started_anew(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    def connect(**extra_params: Any) -> None:
        server.disconnect(PROJECT)
        server.connect(PROJECT, **extra_params)
        with backend.database.begin() as conn:
            projects.save_connection(conn, PROJECT, extra_params=extra_params)

    worker = workers.start(backend)
    until(ready(backend))
    assert live_of(worker).context.settings.k == 2
    connect(k=5)
    until(lambda: PROJECT in worker.running and live_of(worker).context.settings.k == 5)
    connect(**{"no such thing": 5})
    until(lambda: PROJECT in worker.running and live_of(worker).context.settings.k == 2)
    until(ready(backend))
