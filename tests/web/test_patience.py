"""Callers who send or read very slowly don't hold the server's threads; on a real gunicorn."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neat_backend.cli.listening import listen
from neat_backend.cli.supervisor import web_command
from neat_backend.demo.ports import free_port
from neat_backend.settings import Settings
from neat_backend.web.patience import PatientWorker
from tests.store.test_locks import frozen
from tests.waiting import HANGS, until

ROOT = Path(__file__).parents[2]
THREADS = 2
SILENT = 1000
START_TRAINING = b'{"action": "START_TRAINING", "project": {"id": 7}}'
STARTS = {
    "head": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
    "body": b"POST /webhook HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 5000\r\n\r\n{",
}


class HastyWorker(PatientWorker):
    """The same, in a hurry: the command below names it."""

    head_seconds = 0.6
    body_seconds = 1.2
    look_seconds = 0.1


class EndlessWorker(PatientWorker):
    """One that waits for silent callers for longer than a test lasts."""

    head_seconds = body_seconds = linger_seconds = 10 * HANGS


@pytest.fixture(scope="class")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings.from_env({}, data_dir=tmp_path_factory.mktemp("web"), port=free_port(), threads=THREADS)


@pytest.fixture(scope="class")
def port(settings: Settings, request: pytest.FixtureRequest) -> Iterator[int]:
    """A web with the test's worker class (default: HastyWorker)."""
    worker = getattr(request, "param", HastyWorker)
    with listen(settings.host, settings.port) as listener:
        command = web_command(settings, listener.fileno())
        command[command.index("--worker-class") + 1] = f"{__name__}.{worker.__name__}"
        command[-1] = "neat_backend.web.app:create_app()"
        env = {name: value for name, value in os.environ.items() if name not in Settings.variables()}
        env |= {"NEAT_DATA_DIR": str(settings.data_dir), "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, env=env, cwd=ROOT, pass_fds=(listener.fileno(),))
    try:
        until(lambda: is_healthy(settings.port))
        yield settings.port
    finally:
        process.terminate()
        process.wait(HANGS)


def is_healthy(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=HANGS) as it:
        return bool(it.status == 200)
    return False


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_slow_senders_lose_their_threads(port: int, start: bytes) -> None:
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(THREADS)]
    try:
        for one in slow:
            one.sendall(start)
        with socket.create_connection(("127.0.0.1", port)) as other:
            other.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

            def is_answered() -> bool:
                for one in slow:  # a byte now and then, so that no single wait is long
                    with contextlib.suppress(OSError):
                        one.sendall(b"a")
                return bool(select.select([other], [], [], 0)[0])

            until(is_answered, every=0.1)
            assert other.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        for one in slow:
            one.close()


def test_a_slow_answer_is_not_cut_short(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as one:
        one.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        time.sleep(1.6)  # longer than it may take to arrive
        text = b""
        while part := one.recv(65536):
            text += part
    head, _, body = text.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body.rstrip().endswith(b"neat_projects gauge") or b"neat_acknowledge_seconds_count" in body


@pytest.mark.parametrize("port", [EndlessWorker], indirect=True)
class TestHealth:
    """It is answered while every one of the others is still waited for."""

    def test_silent_connections_take_no_thread(self, port: int, record_property: Callable[[str, object], None]) -> None:
        with open_connections(port, SILENT) as silent:
            began = time.perf_counter()
            assert is_healthy(port)
            record_property("health_seconds", round(time.perf_counter() - began, 4))
            assert answer(port, b"GET /api/projects HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert not any(is_closed(one) for one in silent)
            silent[0].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")  # it was only late
            assert silent[0].recv(100).startswith(b"HTTP/1.1 200")

    @pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
    def test_nor_does_it_wait_for_those_who_are_in_the_middle_of_a_request(self, port: int, start: bytes) -> None:
        with open_connections(port, 3 * THREADS) as slow:
            for one in slow:
                one.sendall(start)
            for _ in range(THREADS):
                assert is_healthy(port)
            assert not any(is_closed(one) for one in slow)

    def test_nor_for_those_who_have_their_answer_and_do_not_hang_up(self, port: int) -> None:
        with open_connections(port, 200) as served:  # gunicorn's main loop gives two seconds to each
            for one in served:
                one.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert is_healthy(port)
            assert all(one.recv(100).startswith(b"HTTP/1.1 200") for one in served)

    def test_nor_for_a_worker_that_is_stopped_with_the_database_in_its_hands(
        self, port: int, settings: Settings
    ) -> None:
        webhook = (
            b"POST /webhook HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(START_TRAINING), START_TRAINING)
        )
        with (
            frozen(settings.data_dir / "neat.sqlite3.turn") as worker,
            open_connections(port, 2 * THREADS) as senders,
        ):
            for one in senders:
                one.sendall(webhook)
            assert is_healthy(port)
            for one in senders:
                said = one.recv(1000)
                assert said.startswith(b"HTTP/1.1 503")
                assert b"\r\nRetry-After: " in said
            assert is_healthy(port)
            worker.send_signal(signal.SIGCONT)
            worker.communicate(b"")
            assert answer(port, webhook).startswith(b"HTTP/1.1 201")

    def test_a_web_that_is_full_closes_the_connection_that_has_been_silent_longest(self, port: int) -> None:
        command = web_command(Settings.from_env({}), 3)
        most = int(command[command.index("--worker-connections") + 1])
        with open_connections(port, most) as silent:
            assert is_healthy(port)
            assert is_closed(silent[0])
            assert not is_closed(silent[-1])


@contextlib.contextmanager
def open_connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]


def answer(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=HANGS) as one:
        one.sendall(request)
        return one.recv(100)


def is_closed(one: socket.socket) -> bool:
    """By the other end."""
    poll = select.poll()
    poll.register(one, select.POLLIN)
    return bool(poll.poll(0)) and not one.recv(1, socket.MSG_PEEK)
