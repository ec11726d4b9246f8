"""This backend as a process of its own, started and used as by a user; for the demo and the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from neat_backend.errors import NeatError
from neat_backend.settings import Settings
from neat_backend.settings.sources import ENV_FILE

HANGS_SECONDS = 300.0  # a longer wait counts as a hang, also on a busy machine
SOON_SECONDS, RARELY_SECONDS = 3.0, 0.25  # see wait_until


class Backend:
    """`neat-backend serve` (or `web`) on 127.0.0.1, with the given settings and none of this process's."""

    def __init__(self, port: int, log_file: Path, settings: Mapping[str, str], command: str = "serve") -> None:
        self.port, self.log_file = port, log_file
        self.url = f"http://127.0.0.1:{port}"
        self._settings, self._command = dict(settings), command
        self._process: subprocess.Popen[bytes] | None = None
        user, password = self._settings.get("BASIC_AUTH_USER", ""), self._settings.get("BASIC_AUTH_PASS", "")
        auth = httpx.BasicAuth(user, password) if user else None
        self._http = httpx.Client(base_url=self.url, timeout=HANGS_SECONDS, trust_env=False, auth=auth)

    def start(self) -> None:
        """Start it and wait until it answers. Raises NeatError naming the log when it doesn't."""
        env = {name: value for name, value in os.environ.items() if name not in Settings.variables()}
        env |= {**self._settings, "HOST": "127.0.0.1", "PORT": str(self.port), ENV_FILE: os.devnull}
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "neat_backend.cli", self._command],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + HANGS_SECONDS
        while not self._answers():
            if not self.is_running or time.monotonic() > deadline:
                raise NeatError(f"the backend did not start; its log is {self.log_file}")
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return self._http.get("/health").status_code == 200
        except httpx.HTTPError:
            return False

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The supervisor's process id. Raises NeatError where it was not started."""
        if self._process is None:
            raise NeatError("the backend was not started")
        return self._process.pid

    def stop(self) -> int | None:
        """Ask it to stop, as Ctrl-C or `docker stop` does; its exit code."""
        if self._process is None:
            return None
        self._process.terminate()
        try:
            return self._process.wait(HANGS_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise NeatError(f"the backend did not stop within {HANGS_SECONDS:.0f} s") from None

    def children(self, command: str) -> list[int]:
        """Processes of the supervisor whose command line contains `command` (Linux)."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (OSError, ValueError):
                continue
            if self._process is not None and int(fields[1]) == self._process.pid and command in line:
                found.append(int(entry.name))
        return found

    def kill(self) -> None:
        """Send SIGKILL to the supervisor and all its processes, as if the machine lost power."""
        pids = self.children("") + ([self._process.pid] if self._process is not None else [])
        for pid in pids:
            os.killpg(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait(HANGS_SECONDS)

    def ask(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """The JSON of one of the API's routes."""
        answer = self._http.request(method, path, json=body)
        answer.raise_for_status()
        return answer.json()

    def text(self, path: str) -> str:
        """The answer of a route that gives no JSON."""
        answer = self._http.get(path)
        answer.raise_for_status()
        return answer.text

    def projects(self) -> list[dict[str, Any]]:
        return list(self.ask("/api/projects")["projects"])

    def status(self, project: int) -> dict[str, Any]:
        return dict(self.ask(f"/api/projects/{project}"))

    def ranking(self, project: int, limit: int = 1000) -> list[dict[str, Any]]:
        """The tasks to label next, best first."""
        return list(self.ask(f"/api/projects/{project}/ranking?limit={limit}")["ranking"])

    def ranked_first(self, project: int) -> int | None:
        return next((int(one["task"]) for one in self.ranking(project, 1)), None)

    def wait_until(
        self, project: int, done: Callable[[dict[str, Any]], bool], seconds: float = 600, every_seconds: float = 0.02
    ) -> dict[str, Any]:
        """Poll the status until `done` is true. Raises NeatError with the last status when it takes too long.

        After SOON_SECONDS it polls every RARELY_SECONDS, since polling uses processor time that the work needs.
        """
        began = time.monotonic()
        while True:
            status = self.status(project)
            if done(status):
                return status
            waited = time.monotonic() - began
            if waited > seconds:
                raise NeatError(f"not there after {seconds:.0f} s: {status}; see {self.log_file}")
            time.sleep(every_seconds if waited < SOON_SECONDS else max(every_seconds, RARELY_SECONDS))


def is_ranked(status: Mapping[str, Any], read_after: str = "") -> bool:
    """Whether all is read and embedded, and the served order reflects every event.

    read_after: the `synced_at` of an earlier status; the project must have been read since.
    """
    settled = (
        status["state"] == "ready" and status["tasks"]["pending"] == 0 and (status["synced_at"] or "") > read_after
    )
    return settled and bool(status["caught_up"]) and status["model_version"] != "neat"


def labelled(status: Mapping[str, Any]) -> int:
    return int(status["labelled"]["known"]) + int(status["labelled"]["invalid"])


def trained(status: Mapping[str, Any]) -> int:
    """Rounds that are done."""
    return sum(one["state"] == "done" for one in status["rounds"])
