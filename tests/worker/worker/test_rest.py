"""A worker at rest: no step runs, and notices wake it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from neat_backend.errors import StoreError
from neat_backend.store import projects, requests
from neat_backend.store.database import Database
from neat_backend.worker import worker as worker_module
from neat_backend.worker.steps.bulk import Bulk
from neat_backend.worker.steps.step import Step
from neat_backend.worker.worker import Worker
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, live_of
from tests.store.conftest import empty_postgres, postgres_server  # noqa: F401 - fixtures
from tests.waiting import HANGS, until
from tests.worker.workers import Workers, holder, ready


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest, server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    database = None
    if request.param == "postgresql":
        database = Database(request.getfixturevalue("empty_postgres"))
        database.migrate()
    with closing(Backend(tmp_path, server, database)) as made:
        yield made


@pytest.fixture
def no_looks(short_pauses: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is found by notices alone."""
    monkeypatch.setattr(worker_module, "REST_LOOK_SECONDS", 2 * HANGS)


def at_rest(worker: Worker) -> None:
    """Wait until the project has nothing to do."""
    live = live_of(worker)
    until(lambda: worker._listener.is_listening)
    until(lambda: not live.is_busy())


@pytest.mark.usefixtures("no_looks")
def test_a_label_is_served_though_the_worker_never_looks_for_it(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    for task in (1, 2, 3):
        at_rest(worker)
        event = backend.deliver(server.annotate(task, "dog"))
        until(lambda event=event: backend.project().published_event == event)  # type: ignore[misc]


@pytest.mark.usefixtures("no_looks")
def test_a_request_of_a_person_is_answered_though_the_worker_never_looks_for_it(
    backend: Backend, workers: Workers
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    at_rest(worker)
    with backend.database.begin() as conn:
        requests.ask(conn, PROJECT, requests.TEXT, "a dog", "a dog")

    def is_answered() -> bool:
        with backend.database.read() as conn:
            found = requests.get(conn, PROJECT, requests.TEXT, "a dog")
        return found is not None and "text side" in found.error

    until(is_answered)


@pytest.mark.usefixtures("no_looks")
def test_a_project_that_is_connected_or_given_back_is_taken_up_though_the_worker_never_looks_for_it(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    one = workers.start(backend)
    until(ready(backend))
    two = workers.start(backend)
    until(lambda: two._listener.is_listening)
    workers.stop(one)
    until(lambda: holder(backend) == two.owner)
    server.add_project(8)
    server.import_tasks(8, 3)
    with backend.database.begin() as conn:
        projects.save_connection(
            conn, 8, label_config=server.projects[8].label_config, backend_url=backend.project().backend_url
        )
    until(ready(backend, 8))


def test_no_step_runs_while_nothing_happens(
    server: FakeLabelStudio, backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that looked for work by themselves would do so twenty times a second."""
    last = [0.0]

    def noted(kind: type[Step]) -> None:
        original = kind.step

        def step(self: Step) -> bool:
            last[0] = time.monotonic()
            return original(self)

        monkeypatch.setattr(kind, "step", step)

    monkeypatch.setattr(Bulk, "rest_seconds", 0.5)
    worker = workers.start(backend)
    until(ready(backend))
    live = live_of(worker)
    for kind in {type(step) for step in live.steps}:
        noted(kind)
    for task in (1, 2):
        event = backend.deliver(server.annotate(task, "dog"))
        until(lambda event=event: backend.project().published_event == event)  # type: ignore[misc]
        until(lambda: not live.is_busy())
        until(lambda: time.monotonic() - last[0] > 3.0, "the steps go on and on")


def test_without_notices_work_is_found_by_looking(
    server: FakeLabelStudio,
    backend: Backend,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(worker_module, "REST_LOOK_SECONDS", 2 * HANGS)

    def refuse(*_: object) -> None:
        raise StoreError("this system has no named pipes")

    monkeypatch.setattr(Database, "listen", refuse)
    workers.start(backend)
    until(ready(backend))
    event = backend.deliver(server.annotate(1, "dog"))
    until(lambda: backend.project().published_event == event)
    assert len([one for one in caplog.records if "no notices of new work" in one.getMessage()]) == 1


@pytest.mark.usefixtures("no_looks")
def test_notices_that_were_interrupted_are_made_up_for(
    server: FakeLabelStudio, backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    at_rest(worker)
    may_listen = threading.Event()
    listen = backend.database.listen

    def later() -> object:
        if not may_listen.is_set():
            raise StoreError("not now")
        return listen()

    monkeypatch.setattr(worker_module, "LOOK_SECONDS", 2 * HANGS)  # nor does it look meanwhile
    monkeypatch.setattr(backend.database, "listen", later)
    listening = worker._listener._listening
    assert listening is not None
    monkeypatch.setattr(listening, "wait", lambda seconds: later())
    listening.interrupt()
    until(lambda: not worker._listener.is_listening)
    event = backend.deliver(server.annotate(1, "dog"))
    may_listen.set()
    until(lambda: backend.project().published_event == event)
