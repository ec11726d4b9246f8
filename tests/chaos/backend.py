"""The backend's processes as a campaign runs them: `python -m tests.chaos.backend serve|worker`.

They are the real ones, but for what would make a campaign last for days: images are encoded by the tests' encoder of
colours, processes are forked from one that has its imports done (nursery.py), and the supervisor pauses for no more
than half a second. And for what a campaign needs: a clock that can be set, and on SIGUSR1 the worker writes its
state, neighbours and all, beside its data.
"""

from __future__ import annotations

import json
import mmap
import os
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from neat_backend.cli import supervisor, terminal
from neat_backend.compute.inference import Inference
from neat_backend.compute.inference_process import InferenceProcess
from neat_backend.labelstudio import transport
from neat_backend.service import service
from neat_backend.settings import Settings
from neat_backend.store import segments, sql
from neat_backend.worker import live, worker
from neat_backend.worker.steps import training
from tests.chaos.nursery import ForkedPopen, Nursery
from tests.living import FakeEncoder

CLOCK = "CHAOS_CLOCK"  # names a file with the seconds that the clock is off, a double
LONGEST_PAUSE_SECONDS = 0.5


def main() -> int:
    settings = Settings.from_env()
    terminal.set_up_logging(settings)
    set_clock(Path(os.environ[CLOCK]))
    if sys.argv[1] == "serve":
        return supervise(settings)
    return work(settings)


def supervise(settings: Settings) -> int:
    supervisor.subprocess = _subprocess(ForkedPopen)  # type: ignore[assignment]
    supervisor.LONGEST_PAUSE_SECONDS = LONGEST_PAUSE_SECONDS
    return supervisor.serve(settings, worker_command=[sys.executable, "-m", "tests.chaos.backend", "worker"])


def work(settings: Settings) -> int:
    nursery = Nursery(_named_training)  # now, while this is the only thread

    def popen(command: list[str], stdout: Any, env: dict[str, str], **_: Any) -> Any:
        *start, _ = command
        assert start[-1] == "--parent"
        return nursery.popen([*start, str(nursery.pid)], env, stdout.name)  # which ends with the worker

    training.subprocess = _subprocess(popen)  # type: ignore[assignment]
    inference = Inference("", None, "cpu")  # in this process: one that imports PyTorch after each kill takes seconds
    InferenceProcess.classify = lambda _, path, images: inference.classify(path, images)  # type: ignore[method-assign]
    worker.Worker = _Watched  # type: ignore[misc]
    worker.run(settings)
    return 0


def _named_training() -> None:
    Path("/proc/self/comm").write_text("nursery")


def _subprocess(popen: Any) -> SimpleNamespace:
    return SimpleNamespace(Popen=popen, DEVNULL=None, STDOUT=None, TimeoutExpired=subprocess.TimeoutExpired)


class _Watched(worker.Worker):
    """Writes its projects' state on request."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        requests: queue.SimpleQueue[None] = queue.SimpleQueue()
        signal.signal(signal.SIGUSR1, lambda *_: requests.put(None))
        threading.Thread(target=self._tell, args=(requests,), daemon=True).start()

    def _shared_encoder(self) -> Any:
        return FakeEncoder()

    def _tell(self, requests: queue.SimpleQueue[None]) -> None:
        while True:
            requests.get()
            path = state_file(self.settings.data_dir, os.getpid())
            states = {}
            for number, running in list(self.running.items()):
                if running.live is not None:
                    with running.live.engine() as engine:
                        states[str(number)] = engine_state(engine)
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps(states))
            temporary.replace(path)


def state_file(data: Path, pid: int) -> Path:
    return data / f"state-{pid}.json"


def engine_state(engine: Any) -> dict[str, Any]:
    """Everything that an engine holds and that follows from its tasks, labels and probabilities; JSON-ready."""
    ranking = engine.ranking()
    columns = {name: getattr(ranking, name).tolist() for name in vars(ranking) if name != "classes"}
    return {
        "classes": list(ranking.classes),
        "ranking": columns,
        "neighbours": {str(task): [list(each) for each in engine.neighbours(task)] for task in engine.tasks()},
        "labels": {
            str(task): [label.choice, label.invalid]
            for task, label in sorted(engine.labels().items())
            if label.choice is not None or label.invalid
        },
    }


def set_clock(path: Path) -> None:
    """Let this process read the time as the host's clock plus what stands in the file, at any moment."""
    with path.open("rb") as file:
        off = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)

    def seconds_off() -> float:
        return float(struct.unpack("d", off[:8])[0])

    class Kind(type):
        def __instancecheck__(cls, value: object) -> bool:
            return isinstance(value, datetime)

    class Stepped(datetime, metaclass=Kind):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=seconds_off())

    for module in (live, worker, service, sql, transport):
        module.datetime = Stepped  # type: ignore[attr-defined]
    stepped = SimpleNamespace(**vars(time))
    stepped.time = lambda: time.time() + seconds_off()
    segments.time = stepped  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(main())
