"""A real Label Studio behind something that fails: labels go on being taken in, and afterwards all is as it should be.

Webhooks reach us directly, as in a set-up where only our way to Label Studio is broken; all calls of the worker go
through `Between`. What takes minutes in life takes a second here, by the settings.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image
from werkzeug.serving import make_server

from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from neat_backend.demo.ports import free_port
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.store import inbox, projects
from neat_backend.store.database import Database
from neat_backend.web.app import create_app
from neat_backend.worker import attempts
from neat_backend.worker import worker as worker_module
from neat_backend.worker.live import LiveProject
from neat_backend.worker.worker import Worker
from tests.labelstudio.server import CONFIG, shared_label_studio
from tests.living import Backend, engine_of, live_of, state, take_in
from tests.waiting import HANGS
from tests.worker.workers import Workers, until

PAGE = b"<!DOCTYPE html><html><body>Please log in</body></html>"


class Between:
    """Stands before a server and passes everything on, unless a fault is set."""

    def __init__(self, target: str) -> None:
        self.target = target.partition("://")[2]
        self.fault = ""  # one of FAULTS, "" = none
        self.go_on = threading.Event()  # lets the slow answers go
        self.hit: list[tuple[float, str, str]] = []  # when, method and path of what was failed
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"  # one call a connection

            def do_GET(self) -> None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    outer.answer(self)

            do_POST = do_PATCH = do_DELETE = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, call: BaseHTTPRequestHandler) -> None:
        fault = self.fault
        if fault:
            self.hit.append((time.monotonic(), call.command, call.path.partition("?")[0]))
        body = call.rfile.read(int(call.headers.get("Content-Length", 0)))
        if fault == "down":
            return  # the connection is closed without a word
        if fault.isdigit():
            headers = {"Retry-After": "1.5"} if fault == "429" else {}
            return self.send(call, int(fault), PAGE, headers)
        if fault == "an HTML page with 200":
            return self.send(call, 200, PAGE, {"Content-Type": "text/html"})
        if fault == "slow":
            self.go_on.wait(HANGS)
        status, answer, headers = self.passed_on(call, body)
        if fault == "the answer is lost":  # after the deed
            return None
        if fault == "truncated JSON":
            return self.send(call, status, answer[: len(answer) // 2], headers)
        if fault == "breaks off":
            return self.send(call, status, answer[: len(answer) // 2], headers, length=len(answer))
        return self.send(call, status, answer, headers)

    def passed_on(self, call: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        there = http.client.HTTPConnection(self.target, timeout=HANGS)
        headers = {name: value for name, value in call.headers.items() if name.lower() not in ("host", "connection")}
        there.request(call.command, call.path, body or None, {**headers, "Host": self.target})
        response = there.getresponse()
        answer = response.read()
        there.close()
        kept = ("content-type", "date", "location")
        return response.status, answer, {n: v for n, v in response.getheaders() if n.lower() in kept}

    def send(
        self, call: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], length: int | None = None
    ) -> None:
        call.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(body) if length is None else length)}.items():
            call.send_header(name, value)
        call.end_headers()
        call.wfile.write(body)

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()


class Site:
    """A project of twelve images in Label Studio, the web that takes its webhooks, and the way between."""

    def __init__(self, server: LabelStudioServer, folder: Path) -> None:
        self.server, self.annotator = server, Annotator(server.url, server.token)
        self.project = self.annotator.create_project("faults", CONFIG)
        images = []
        for number in range(12):
            path = folder / f"{number:02d}.png"
            colour = ((number * 83) % 256, (number * 151) % 256, (number * 211) % 256)
            Image.new("RGB", (8, 8), colour).save(path)
            images.append(path)
        self.tasks = sorted(self.annotator.upload_images(self.project, images))
        self.truth: dict[int, str] = {}
        self.between = Between(server.url)
        port = free_port()
        self.backend = self.made(folder, f"http://127.0.0.1:{port}", publish_interval_seconds=0.05)
        self.client = LabelStudioClient(server.url, server.token)
        web = create_app(self.backend.settings, Database(self.backend.settings.sqlalchemy_url))
        self._web = make_server("127.0.0.1", port, web, threaded=True)
        threading.Thread(target=self._web.serve_forever, daemon=True).start()
        self.annotator.connect_backend(self.project, f"http://127.0.0.1:{port}")

    def made(self, folder: Path, url: str, **fields: Any) -> Backend:
        there = SimpleNamespace(projects={self.project: SimpleNamespace(label_config=CONFIG)})
        made = Backend(folder, cast(Any, there), numbers=(self.project,), batch_size=1000, **fields)
        with made.database.begin() as conn:
            projects.update(conn, self.project, backend_url=url)
        return made

    def worker(self, workers: Workers) -> Worker:
        worker = workers.make(self.backend, reconcile_seconds=1)
        connect = LabelStudioClient(self.between.url, self.server.token, timeout_seconds=HANGS)
        worker._connect = lambda project: connect  # type: ignore[method-assign]
        return workers.run(worker)

    def label(self, choice: str) -> int:
        """Label the task that Label Studio serves; people reach it, whatever stands between it and us."""
        task = self.annotator.next_task(self.project)
        assert task is not None
        assert task not in self.truth
        self.annotator.annotate(task, choice)
        self.truth[task] = choice
        return task

    def is_ready(self) -> bool:
        project = self.backend.project(self.project)
        with self.backend.database.read() as conn:
            waiting = inbox.pending(conn, self.project)
        return project.state == projects.READY and not waiting and project.published_event >= project.applied_event

    def assert_whole(self, live: LiveProject) -> None:
        """No label lost, the state of one that reads all of it anew, and annotators get what comes first."""
        labels = {task: label.choice or "invalid" for task, label in engine_of(live).labels().items()}
        assert labels == self.truth
        with tempfile.TemporaryDirectory() as folder:
            anew = self.made(Path(folder), "", configure_project=False)
            anew.server = cast(Any, self.client)
            read = anew.live(self.project)
            take_in(read)
            ours, theirs = state(live), state(read)
            anew.close()
        assert ours[:3] == theirs[:3]
        assert ours[4:] == theirs[4:]
        assert self.client.project(self.project).model_version == live.publishing.version
        assert self.annotator.next_task(self.project) == engine_of(live).head()[0]

    def close(self) -> None:
        self._web.shutdown()
        self.between.close()
        self.backend.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    server = shared_label_studio(tmp_path_factory.mktemp("label-studio"))
    site = Site(server, tmp_path_factory.mktemp("site"))
    yield site
    site.close()


@pytest.fixture(scope="module")
def working(site: Site) -> Iterator[Worker]:
    """One worker, which survives all of it."""
    workers = Workers()
    with pytest.MonkeyPatch.context() as patch:
        hurried = ("FIRST_BACKOFF_SECONDS", 0.2), ("LONGEST_BACKOFF_SECONDS", 0.5)
        for name, seconds in (*hurried, ("LEASE_SECONDS", HANGS), ("JOIN_SECONDS", HANGS)):
            patch.setattr(worker_module if name in ("LEASE_SECONDS", "JOIN_SECONDS") else attempts, name, seconds)
        worker = site.worker(workers)
        yield worker
        workers.stop(worker)


@pytest.fixture
def live(site: Site, working: Worker) -> LiveProject:
    until(lambda: site.project in working.running)
    live = live_of(working, site.project)
    until(lambda: site.is_ready() and not live.is_busy())
    return live


FAULTS = {  # and the message shown meanwhile
    "down": projects.AWAY,
    "500": projects.AWAY,
    "502": projects.AWAY,
    "429": projects.AWAY,
    "401": projects.BLOCKED,
    "truncated JSON": projects.AWAY,
    "breaks off": projects.AWAY,
    "an HTML page with 200": projects.AWAY,
    "the answer is lost": projects.AWAY,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_labels_are_taken_in_while_label_studio_fails_and_nothing_is_lost(
    site: Site, live: LiveProject, fault: str
) -> None:
    engine, publishing = engine_of(live), live.publishing
    assert engine is not None
    assert publishing is not None
    before = publishing.version
    site.between.hit.clear()
    site.between.fault = fault
    # What is served is taken off the top, so that a new order has to be published.
    publishing._served_sampling = "another"
    task = site.label("dog" if len(site.truth) % 2 else "cat")
    until(lambda: task in engine.labels(), "the label waits for Label Studio")
    until(lambda: site.backend.project(site.project).state == FAULTS[fault])
    detail = site.backend.project(site.project).detail
    assert ("LABEL_STUDIO_API_KEY" in detail) == (fault == "401"), detail
    until(lambda: len(site.between.hit) >= 4)
    until(lambda: sum(method == "POST" for _, method, _ in site.between.hit) >= 2, "it is not tried again")
    assert publishing.version == before
    site.between.fault = ""
    until(site.is_ready)
    until(lambda: site.backend.project(site.project).detail == "")
    site.assert_whole(live)
    if fault == "429":  # each thread waits as long as Retry-After says
        by_call: dict[tuple[str, str], list[float]] = {}
        for moment, *call in site.between.hit:
            by_call.setdefault((call[0], call[1]), []).append(moment)
        for (method, _), moments in by_call.items():
            gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
            assert method != "POST" or all(gap >= 1.5 for gap in gaps), by_call


def test_labels_are_taken_in_while_every_answer_takes_its_time(site: Site, live: LiveProject) -> None:
    """30 seconds, or any other time: answers are held back until two labels have been taken in."""
    engine, publishing = engine_of(live), live.publishing
    assert engine is not None
    assert publishing is not None
    site.between.hit.clear()
    site.between.go_on.clear()
    site.between.fault = "slow"
    publishing._served_sampling = "another"
    for choice in ("dog", "invalid"):
        task = site.label(choice)
        until(lambda task=task: task in engine.labels())  # type: ignore[misc]
    until(lambda: any(method == "POST" for _, method, _ in site.between.hit))
    assert not site.between.go_on.is_set()
    site.between.fault = ""
    site.between.go_on.set()
    until(site.is_ready)
    site.assert_whole(live)
