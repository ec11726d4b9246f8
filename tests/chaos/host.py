"""The machine that the backend runs on, as a campaign sees it: what is started, killed, frozen, cut off.

It keeps `serve` and a second worker running as an init system would, half a second after they end.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import httpx

from neat_backend.demo.ports import free_port
from neat_backend.settings import Settings
from tests.chaos import backend
from tests.chaos.nursery import Nursery, Process, descendants, processes, ticks
from tests.waiting import HANGS, until

RESTART_SECONDS = 0.5
VICTIMS = ("worker", "second worker", "web", "web process", "supervisor", "training", "all")
WEIGHTS = (35, 20, 12, 8, 10, 5, 10)


class Host:
    def __init__(self, nursery: Nursery, folder: Path, settings: Mapping[str, str], second: Mapping[str, str]) -> None:
        """second: what the second worker's settings have otherwise."""
        self.nursery, self.folder, self.data = nursery, folder, Path(settings["NEAT_DATA_DIR"])
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "backend.log"
        self.starts: Counter[str] = Counter()
        clock = folder / "clock"
        clock.write_bytes(bytes(8))
        with clock.open("r+b") as file:
            self._clock = mmap.mmap(file.fileno(), 8)
        env = {name: value for name, value in os.environ.items() if name not in Settings.variables()}
        env |= {**settings, "HOST": "127.0.0.1", "PORT": str(self.port), backend.CLOCK: str(clock)}
        self._envs = {"serve": env, "worker": {**env, **second}}
        self._processes: dict[str, Process] = {}
        self._due: dict[str, float] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._watch = threading.Thread(target=self._keep_running, daemon=True)
        auth = httpx.BasicAuth(settings["BASIC_AUTH_USER"], settings["BASIC_AUTH_PASS"])
        self.http = httpx.Client(base_url=self.url, auth=auth, timeout=HANGS, trust_env=False)

    def start(self) -> None:
        self._watch.start()

    def close(self) -> None:
        """Nothing of it is left."""
        self._stopping.set()
        self._watch.join()
        until(self._is_empty)
        self.http.close()

    def _is_empty(self) -> bool:
        left = descendants(self.nursery.pid)
        for pid in left:
            _signal(pid, signal.SIGKILL)
        for process in self._processes.values():
            process.poll()  # the nursery buries what has ended
        return not left

    def _keep_running(self) -> None:
        while not self._stopping.wait(0.05):
            with self._lock:
                for name, env in self._envs.items():
                    process = self._processes.get(name)
                    if process is not None and process.poll() is None:
                        continue
                    now = time.monotonic()
                    if process is not None and now < self._due.setdefault(name, now + RESTART_SECONDS):
                        continue
                    self._due.pop(name, None)
                    command = [sys.executable, "-m", "tests.chaos.backend", name]
                    self._processes[name] = self.nursery.popen(command, env, self.log)
                    self.starts[name] += 1

    # who is there

    def pids(self, name: str) -> list[int]:
        """The processes of a victim's name that run now."""
        with self._lock:
            tops = {name: p.pid for name, p in self._processes.items() if p.returncode is None}
        parents, names = processes()
        mine = [pid for pid, parent in parents.items() if parent == tops.get("serve")]
        webs = [pid for pid in mine if names[pid] == "gunicorn"]
        found = {
            "supervisor": [tops["serve"]] if "serve" in tops else [],
            "second worker": [tops["worker"]] if "worker" in tops else [],
            "worker": [pid for pid in mine if names[pid] == "worker"],
            "web": webs,
            "web process": [pid for pid, parent in parents.items() if parent in webs],
            "training": [pid for pid in descendants(self.nursery.pid) if names.get(pid) == "training"],
            "all": descendants(self.nursery.pid),
        }
        return found[name]

    def training_ticks(self) -> int:
        """How much of a processor the trainings that run now have had."""
        return sum(map(ticks, self.pids("training")))

    # what is done to it

    def kill(self, name: str) -> bool:
        """SIGKILL; False when there is none of it now. all: everything, at one moment, as in a power cut."""
        with self._lock if name == "all" else contextlib.nullcontext():  # nothing may be started meanwhile
            killed = [_signal(pid, signal.SIGKILL) for pid in self._targets(name)]
        return any(killed)

    def _targets(self, name: str) -> list[int]:
        return descendants(self.nursery.pid) if name == "all" else self.pids(name)

    def freeze(self, pid: int) -> bool:
        return _signal(pid, signal.SIGSTOP)

    def thaw(self, pid: int) -> bool:
        return _signal(pid, signal.SIGCONT)

    def set_clock(self, seconds_off: float) -> None:
        self._clock[:8] = struct.pack("d", seconds_off)


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
