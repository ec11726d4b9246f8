"""Callers who send or read very slowly don't hold the server's threads; on a real gunicorn."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from neat_backend.ports import free_port
from neat_backend.serve import listen, web_command
from neat_backend.settings import Settings
from neat_backend.web.patience import PatientWorker
from tests.waiting import HANGS, until

ROOT = Path(__file__).parents[2]
THREADS = 2


class HastyWorker(PatientWorker):
    """The same, in a hurry: the command below names it."""

    head_seconds = 0.6
    body_seconds = 1.2
    look_seconds = 0.1


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    settings = Settings.from_env({}, data_dir=tmp_path / "data", port=free_port(), threads=THREADS)
    with listen(settings.host, settings.port) as listener:
        command = web_command(settings, listener.fileno())
        command[command.index("--worker-class") + 1] = f"{__name__}.{HastyWorker.__name__}"
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


@pytest.mark.parametrize(
    "start",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        b"POST /webhook HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{",
    ],
    ids=["head", "body"],
)
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
