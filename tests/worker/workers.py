"""Workers in threads of the test's process, with short pauses."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, cast

import pytest
import sqlalchemy as sa

from neat_backend.stopping import Stopping
from neat_backend.store import projects, schema
from neat_backend.store.sql import clock as database_clock
from neat_backend.worker import attempts, upkeep
from neat_backend.worker import worker as worker_module
from neat_backend.worker.steps.bulk import Bulk
from neat_backend.worker.worker import Worker
from tests.living import PROJECT, Backend
from tests.waiting import HANGS, until


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (
        ("LOOK_SECONDS", 0.05),
        ("REST_LOOK_SECONDS", 0.05),
        ("LOOK_AGAIN_SECONDS", 0.05),
        ("REST_SECONDS", 0.0),
        ("LEASE_SECONDS", HANGS),
        ("JOIN_SECONDS", HANGS),  # no lease is lost because the machine is busy
    ):
        monkeypatch.setattr(worker_module, name, seconds)
    for name, seconds in (("FIRST_BACKOFF_SECONDS", 0.05), ("LONGEST_BACKOFF_SECONDS", 0.2)):
        monkeypatch.setattr(worker_module, name, seconds)
        monkeypatch.setattr(attempts, name, seconds)
    monkeypatch.setattr(Bulk, "rest_seconds", 0.05)
    monkeypatch.setattr(upkeep, "FIRST_BACKOFF_SECONDS", 0.05)
    monkeypatch.setattr(upkeep, "LONGEST_BACKOFF_SECONDS", 0.2)


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
