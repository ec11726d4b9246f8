"""Processes that are there at once: forked from one that has imported everything and done nothing else.

Importing PyTorch costs seconds of a processor, and a campaign starts hundreds of workers. What is forked runs the
same module as `python -m MODULE` would, as a process of its own: nothing is shared but the code in memory. A nursery
forks itself before it has any thread, and is asked over a socket by those that have many.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
PRELOADED = (
    "neat_backend.worker.worker",
    "neat_backend.cli.supervisor",
    "neat_backend.models.classifier",
    "neat_backend.worker.steps.training",
    "neat_backend.web.app",
    "neat_backend.cli.running",
    "gunicorn.app.wsgiapp",
    "gunicorn.workers.gthread",
    "gunicorn.arbiter",
    "tests.chaos.backend",
)


def preload() -> None:
    for name in PRELOADED:
        __import__(name)


def run_module(command: Sequence[str]) -> int:
    """Do what `command`, [python, -m, MODULE, …], does; its exit status."""
    assert command[1] == "-m", command
    sys.argv = [command[2], *command[3:]]
    try:
        # Preloaded, the module's code is there twice: nothing in it is to be run at import.
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1 if error.code else 0
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def fork(
    command: Sequence[str],
    env: Mapping[str, str],
    output: int | None = None,
    before: Callable[[], None] | None = None,
    keep: Sequence[int] = (),
) -> int:
    """A child process, in a session of its own, that runs the command; its id. For processes without threads alone.

    output: a file descriptor, None = where this process's output goes. keep: descriptors that stay open.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if output is not None:
            os.dup2(output, 1)
            os.dup2(output, 2)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, 0)
        for number in _open_files() - {0, 1, 2, nothing, *keep}:
            # What subprocess.Popen closes with an exec. But here its objects are still there, and close the number
            # once more as they are collected: by then it would be another file's.
            os.dup2(nothing, number)
        root = logging.getLogger()
        for handler in list(root.handlers):
            root.removeHandler(handler)
        os.environ.clear()
        os.environ.update(env)
        time.tzset()
        if before is not None:
            before()
        with contextlib.suppress(OSError):  # what /proc says that it is
            Path("/proc/self/comm").write_text(command[3] if len(command) == 4 else command[2].split(".")[-1])
        status = run_module(command)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
    raise AssertionError


def _open_files() -> set[int]:
    found = {int(name) for name in os.listdir("/proc/self/fd")}
    return {number for number in found if Path(f"/proc/self/fd/{number}").exists()}  # not the one that has listed them


class ForkedPopen:
    """What `serve` needs of subprocess.Popen, for a process without other threads."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        preexec_fn: Callable[[], None] | None = None,
        **_: Any,
    ) -> None:
        self.pid = fork(command, env, before=preexec_fn, keep=pass_fds)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            with contextlib.suppress(ChildProcessError):
                done, status = os.waitpid(self.pid, os.WNOHANG)
                if done:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        return _wait(self, timeout)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """Asks its child, which has this process's memory of the moment of the fork and no other thread."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        """before: done by the child first."""
        self._near, far = socket.socketpair()
        self._lock = threading.Lock()
        self.pid = os.fork()
        if not self.pid:
            try:
                self._near.close()
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)  # it ends when nobody can ask any more
                before()
                _serve(far)
            finally:
                os._exit(0)
        far.close()
        self._file = self._near.makefile("rw")

    def popen(self, command: Sequence[str], env: Mapping[str, str], output: Path | str) -> Process:
        return Process(self, self.ask(what="fork", command=list(command), env=dict(env), output=str(output)))

    def ask(self, **question: Any) -> Any:
        with self._lock:
            self._file.write(json.dumps(question) + "\n")
            self._file.flush()
            line = self._file.readline()
        if not line:
            raise OSError("the nursery is gone")
        return json.loads(line)

    def close(self) -> None:
        self._file.close()
        self._near.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


class Process:
    """One that a nursery has forked, as far as subprocess.Popen is used."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery, self.pid = nursery, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._nursery.ask(what="poll", pid=self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        return _wait(self, timeout)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _wait(process: ForkedPopen | Process, timeout: float | None) -> int:
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        code = process.poll()
        if code is not None:
            return code
        if deadline is not None and time.monotonic() > deadline:
            raise subprocess.TimeoutExpired(str(process.pid), timeout or 0)
        time.sleep(0.01)


def _serve(far: socket.socket) -> None:
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # what a killed supervisor leaves behind is ours, and can be found
    file = far.makefile("rw")
    codes: dict[int, int] = {}
    while line := _line(file):
        question = json.loads(line)
        answer: Any = None
        if question["what"] == "fork":
            output = os.open(question["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            answer = fork(question["command"], question["env"], output)
            os.close(output)
        else:
            with contextlib.suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])
            answer = codes.get(question["pid"])
        file.write(json.dumps(answer) + "\n")
        file.flush()
    for pid in descendants(os.getpid()):  # nobody is left who could
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _line(file: IO[str]) -> str:
    try:
        return file.readline()
    except OSError:  # the other side was killed with a question on its way
        return ""


def processes() -> tuple[dict[int, int], dict[int, str]]:
    """All processes that are not dead: their parents, and what they call themselves."""
    parents, names = {}, {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                name, _, rest = Path(entry.path, "stat").read_text().partition("(")[2].rpartition(")")
                state, parent = rest.split()[:2]
                if state not in "ZX":
                    parents[int(entry.name)], names[int(entry.name)] = int(parent), name
    return parents, names


def ticks(pid: int) -> int:
    """What a process has had of a processor, 0 once it is gone."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    return 0


def descendants(root: int) -> list[int]:
    """The living processes below this one."""
    parents, _ = processes()
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found[1:]
