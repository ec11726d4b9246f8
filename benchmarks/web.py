"""The web process as `neat-backend serve` starts it, without a worker, and the webhooks that it gets."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from neat_backend.demo.ports import free_port


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[str, int]]:
    """Inside it, the web answers at the URL; with the process id of its supervisor. Data goes to `folder`."""
    import httpx

    port = free_port()
    env = {
        **os.environ,
        "NEAT_DATA_DIR": str(folder),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "DATABASE_URL": "",
        "BASIC_AUTH_USER": "",
        "BASIC_AUTH_PASS": "",
        "LOG_LEVEL": "WARNING",
    }
    code = (
        "from neat_backend import settings; from neat_backend.cli import supervisor;"
        " supervisor.serve(settings.Settings.from_env(), worker_command=())"
    )
    server = subprocess.Popen([sys.executable, "-c", code], env=env, stdin=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: httpx.get(url + "/health", timeout=5, trust_env=False).status_code == 200, 180)
        yield url, server.pid
    finally:
        server.terminate()
        server.wait(30)


def wait_for(ready: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except Exception:  # not up yet, whatever the reason
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready within {seconds:.0f} s")
        time.sleep(0.1)


def webhook(number: int) -> dict[str, Any]:
    """A body such as Label Studio sends when an annotation is submitted."""
    result = [{"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": ["dog"]}}]
    moment = "2026-01-01T00:00:00.000000Z"
    return {
        "action": "ANNOTATION_CREATED",
        "annotation": {
            "id": number,
            "task": number,
            "project": 1,
            "result": result,
            "was_cancelled": False,
            "ground_truth": False,
            "completed_by": 1,
            "created_at": moment,
            "updated_at": moment,
        },
        "task": {"id": number, "data": {"image": f"/data/upload/1/{number}.png"}, "updated_at": moment},
        "project": {"id": 1, "title": "bench", "label_config": "<View/>", "sampling": "Sequential sampling"},
    }
