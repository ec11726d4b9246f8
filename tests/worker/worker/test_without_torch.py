"""A worker's own process imports neither PyTorch, OpenVINO nor FAISS, whatever a project needs of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.waiting import HANGS

WORK = """
import sys
import threading
from pathlib import Path

from neat_backend.compute import inference_process
from neat_backend.stopping import Stopping
from neat_backend.store import projects
from neat_backend.worker.worker import Worker
from tests.living import PROJECT, Backend, engine_of, label_studio_of, live_of
from tests.waiting import HANGS, until

inference_process.REST_SECONDS = HANGS
server = label_studio_of(12, annotated=["dog", "cat", "dog", "cat"])
backend = Backend(
    Path(sys.argv[1]), server, encoder="efficientnet_lite0", encoder_backend="torch", classifier="linear", seed=1
)


def run(work):
    worker, stopping = Worker(backend.settings, backend.database), Stopping()
    worker._connect = lambda project: server
    thread = threading.Thread(target=worker.run, args=(stopping,))
    thread.start()
    live = live_of(worker)
    until(lambda: len(engine_of(live)) == 12 and server.served(PROJECT))
    work(worker, live)
    pid = worker._inference.pid
    stopping.set()
    thread.join(HANGS)
    worker.stop()
    return pid


def annotate(worker, live):
    labelled = len(engine_of(live).labels())
    event = backend.deliver(server.annotate(server.served(PROJECT)[0], "dog"))
    until(lambda: backend.project().published_event >= event)
    assert len(engine_of(live).labels()) == labelled + 1


assert run(annotate), "the images were encoded by a process of its own"
assert run(annotate) is None, "what has been encoded needs no such process"
loaded = {"torch", "openvino", "faiss"} & set(sys.modules)
assert not loaded, loaded
"""


def test_a_worker_encodes_and_serves_without_them(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", WORK, str(tmp_path)], timeout=2 * HANGS).returncode == 0
