"""PostgreSQL goes away and comes back while labels pour in: each is acknowledged or honestly refused, none is lost."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from neat_backend.store import projects
from neat_backend.store.database import Database
from neat_backend.web.app import create_app
from tests.fake_label_studio import FakeLabelStudio
from tests.faults.harness import assert_whole
from tests.living import PROJECT, Backend, engine_of, live_of
from tests.store.conftest import empty_postgres, postgres_server  # noqa: F401 - fixtures
from tests.worker.workers import Workers, ready, short_pauses, until, workers  # noqa: F401 - fixtures


class Doorway:
    """The way to the server. While it restarts, what is connected is cut off and who knocks is refused."""

    def __init__(self, host: str, port: int) -> None:
        self.target = host, port
        self._pairs: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(self.target)
                self._pairs += [near, far]
                threading.Thread(target=self._pass, args=(near, far), daemon=True).start()

    def _pass(self, near: socket.socket, far: socket.socket) -> None:
        with near, far, contextlib.suppress(OSError, ValueError):
            while True:
                for one in select.select([near, far], [], [], 1)[0]:
                    data = one.recv(65536)
                    if not data:
                        return
                    (far if one is near else near).sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        pairs, self._pairs = self._pairs, []
        for one in pairs:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def open_again(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()


@pytest.fixture
def doorway(empty_postgres: str) -> Iterator[tuple[Doorway, str]]:  # noqa: F811
    url = sa.make_url(empty_postgres)
    doorway = Doorway(url.host or "127.0.0.1", url.port or 5432)
    yield doorway, url.set(host="127.0.0.1", port=doorway.port).render_as_string(hide_password=False)
    with contextlib.suppress(OSError):
        doorway.close()


@pytest.fixture
def end_connections(empty_postgres: str) -> Iterator[Callable[[], None]]:  # noqa: F811
    """As a restart, a fail-over or an administrator does it, in the middle of whatever they are at."""
    url = sa.make_url(empty_postgres)
    engine = sa.create_engine(url.set(database="postgres"), isolation_level="AUTOCOMMIT")
    every = sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name")

    def end() -> None:
        with engine.connect() as conn:
            conn.execute(every, {"name": url.database})

    yield end
    engine.dispose()


@pytest.mark.parametrize("how", ["its connections are ended", "nobody answers there"])
def test_labels_pour_in_while_the_database_restarts(
    how: str,
    doorway: tuple[Doorway, str],
    end_connections: Callable[[], None],
    tmp_path: Path,
    workers: Workers,  # noqa: F811
) -> None:
    way, url = doorway
    server = FakeLabelStudio()
    server.add_project(PROJECT)
    server.import_tasks(PROJECT, 30)
    database = Database(url)
    database.migrate()
    backend = Backend(tmp_path, server, database=database, batch_size=1000)
    web = create_app(backend.settings, Database(url)).test_client()
    worker = workers.start(backend, reconcile_seconds=0.3)
    until(ready(backend))

    answers = []
    for number in range(40):
        if number % 8 == 4:
            if how == "nobody answers there":
                way.close()
            else:
                end_connections()
        if number % 8 == 6 and how == "nobody answers there":
            way.open_again()
        task = 1 + number * 7 % 30
        body = server.annotate(task, ("dog", "cat", "invalid")[number % 3], annotator=1 + number // 30)
        answers.append(web.post("/webhook", json=body))
        time.sleep(0.02)
    assert {answer.status_code for answer in answers} <= {201, 503}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(answer.headers["Retry-After"] and "database" in answer.get_json()["error"] for answer in refused)
    assert len(refused) >= 5 or how != "nobody answers there"
    if how == "its connections are ended":
        assert len(refused) <= 5, "a connection that is dead by now is no reason to refuse"

    def settled() -> bool:
        return len(engine_of(live_of(worker)).labels()) == 30

    until(settled)
    until(lambda: backend.project().state == projects.READY and backend.project().detail == "")
    live = live_of(worker)
    until(lambda: not live.is_busy() and backend.project().published_event >= backend.project().applied_event)
    assert_whole(backend, live)
    workers.stop(worker)
    backend.close()
