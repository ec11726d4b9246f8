"""What becomes of every way in which a server can fail; without Label Studio."""

from __future__ import annotations

import contextlib
import socket
import stat
import threading
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from neat_backend.demo.label_studio import LabelStudioServer, find_label_studio
from neat_backend.errors import (
    ImageError,
    LabelStudioError,
    LabelStudioRefused,
    LabelStudioUnavailable,
    NotFoundInLabelStudio,
    PredictionsRejected,
)
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.labelstudio.inspection import version
from neat_backend.labelstudio.organizer import is_up
from neat_backend.labelstudio.transport import LONGEST_RETRY_AFTER_SECONDS
from tests.waiting import HANGS

KEY = "0123456789abcdef0123456789abcdef01234567"


class Server:
    def __init__(self):
        self.reset()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.requests += 1
                outer.sent = dict(self.headers)
                outer.go_on.wait(HANGS)
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response_only(outer.status)
                for name, value in {"Content-Length": str(len(outer.body)), **outer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(outer.body)

            do_POST = do_PATCH = do_DELETE = do_GET

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def reset(self):
        self.status, self.body, self.headers = 200, b"{}", {}
        self.go_on = threading.Event()
        self.go_on.set()
        self.requests, self.sent = 0, {}

    def stop(self):
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def one_server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def client(one_server):
    return LabelStudioClient(one_server.url, KEY, timeout_seconds=HANGS)


@pytest.fixture
def server(one_server):
    one_server.reset()
    return one_server


CALLS = {
    "whoami": lambda client: client.whoami(),
    "project": lambda client: client.project(1),
    "tasks": lambda client: list(client.tasks(1, "image")),
    "annotations": lambda client: list(client.annotations(1)),
    "import": lambda client: client.import_predictions(1, [{"task": 1}]),
    "count": lambda client: client.prediction_count(1, "v"),
    "tabs": lambda client: client.tabs(1),
    "tab": lambda client: client.create_tab(1, {"title": "t"}),
    "column": lambda client: client.set_column(1, [1], "neat_class", "dog"),
    "ml backends": lambda client: client.ml_backends(1),
    "webhook": lambda client: client.ensure_webhook(1, "http://a/webhook", {}),
    "no webhook": lambda client: client.delete_webhooks(1, {"http://a/webhook"}),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, LabelStudioRefused),
        (403, LabelStudioRefused),
        (404, NotFoundInLabelStudio),
        (429, LabelStudioUnavailable),
        (500, LabelStudioUnavailable),
        (502, LabelStudioUnavailable),
        (418, LabelStudioError),
    ],
)
def test_every_status_becomes_one_of_our_errors(server, client, call, status, error):
    server.status, server.body = status, b"<html>secret</html>"
    with pytest.raises(error) as caught:
        CALLS[call](client)
    assert KEY not in str(caught.value)
    assert "<html>" not in str(caught.value)
    # nothing is tried again behind the caller's back
    assert server.requests == 1


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("body", [b"<html>log in</html>", b'{"tasks": [{"id"', b"[3]", b"null", b"\xff\xfe", b""])
def test_an_answer_that_is_not_label_studios_counts_as_unavailable(server, client, call, body):
    server.body = body
    with pytest.raises(LabelStudioUnavailable):
        CALLS[call](client)


class Pages:
    """Answers that come one after the other; the last one again and again."""

    def __init__(self, monkeypatch, client, *answers, task_count=0):
        self.calls = 0
        self._answers, self._task_count = answers, task_count
        monkeypatch.setattr(client.transport, "send", self.send)

    def send(self, method, path, body=None, **_):
        if path.startswith("/api/projects/"):
            return {
                "id": 1,
                "created_at": "2026-11-23T07:00:00Z",
                "task_number": self._task_count,
                "total_annotations_number": 0,
                "skipped_annotations_number": 0,
            }
        self.calls += 1
        assert self.calls < 100, "endless paging"
        return self._answers[min(self.calls, len(self._answers)) - 1]


def page_of(*ids, total):
    tasks = [{"id": number, "data": {"image": "a.png"}, "annotations": []} for number in ids]
    return {"tasks": tasks, "total": total}


READINGS = {
    "tasks": lambda client: list(client.tasks(1, "image")),
    "task ids": lambda client: list(client.task_ids(1)),
    "annotations": lambda client: list(client.annotations(1)),
    "annotations of tasks": lambda client: list(client.annotations(1, [1, 2])),
    "changed tasks": lambda client: list(client.changed_tasks(1, "image", datetime.now(timezone.utc))),
    "existing tasks": lambda client: client.existing_tasks(1, [1, 2]),
    "predicted tasks": lambda client: client.tasks_with_prediction(1, "v", [1, 2]),
}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([page_of(1, 2, total=9)], id="the same page again"),
        pytest.param([page_of(3, total=9), page_of(1, 2, total=8)], id="the page before again"),
        pytest.param([page_of(2, 1, total=2)], id="not by id"),
        pytest.param([page_of(total=2)], id="empty, of two"),
        pytest.param([page_of(1, total=3), page_of(total=2)], id="then empty, of two"),
        pytest.param([page_of(1, 2, total=1)], id="more than there are"),
        pytest.param([page_of(1, 2, total=-1)], id="fewer than none"),
        pytest.param([{"tasks": [{"id": 1}]}], id="without total"),
        pytest.param([{"tasks": [{"id": None}], "total": 1}], id="without id"),
    ],
)
def test_a_page_that_cannot_be_true_ends_the_reading(monkeypatch, client, reading, answers):
    """A cache before Label Studio may give such a page: else it is read for ever, or tasks are taken for deleted."""
    Pages(monkeypatch, client, *answers)
    with pytest.raises(LabelStudioUnavailable, match="not Label Studio's"):
        READINGS[reading](client)


def test_no_task_where_the_project_counts_some_is_not_believed(monkeypatch, client):
    for reading in ("tasks", "task ids"):
        Pages(monkeypatch, client, page_of(total=0), task_count=9)
        with pytest.raises(LabelStudioUnavailable, match="counts 9 tasks"):
            READINGS[reading](client)
        Pages(monkeypatch, client, page_of(total=0), task_count=0)
        assert READINGS[reading](client) == []


def test_a_task_that_is_listed_for_each_of_its_annotations_rises_all_the_same(monkeypatch, client):
    pages = Pages(monkeypatch, client, page_of(1, 1, 2, total=5), page_of(3, 3, total=2))
    assert READINGS["annotations"](client) == [[], []]
    assert pages.calls == 2


def test_a_cache_before_label_studio_is_told_to_ask_it_each_time(server, client):
    server.body = b"{}"
    client.model_versions(1)
    assert server.sent["Cache-Control"] == "no-cache"


@contextlib.contextmanager
def dripping(part):
    """The URL of a server that sends head or body a byte at a time: each wait is short, no single time-out ends it."""
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip():
            caller = server.accept()[0]
            with caller, contextlib.suppress(OSError):
                caller.recv(1000)
                caller.sendall(b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 90000\r\n\r\n" if part == "body" else b""))
                for _ in range(300):
                    caller.sendall(b"a")
                    if ended.wait(0.1):
                        return

        threading.Thread(target=drip, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        ended.set()


@pytest.mark.parametrize("part", ["head", "body"])
def test_an_api_answer_that_drips_has_one_deadline(part):
    with dripping(part) as url, pytest.raises(LabelStudioUnavailable, match="too long"):
        LabelStudioClient(url, KEY, timeout_seconds=0.4).project(1)


@pytest.mark.parametrize("part", ["head", "body"])
def test_the_question_for_the_version_has_one_deadline_too(part):
    with dripping(part) as url, pytest.raises(LabelStudioUnavailable, match="does not answer"):
        version(url, timeout_seconds=0.4)
    with dripping(part) as url:
        assert not is_up(url, timeout_seconds=0.4)


def test_an_answer_that_breaks_off(server, client):
    server.headers, server.body = {"Content-Length": "1000"}, b'{"id": 1'
    with pytest.raises(LabelStudioUnavailable):
        client.project(1)
    with pytest.raises(ImageError) as caught:
        client.fetch_bytes("/data/upload/a.png", 10_000)
    assert caught.value.transient


def test_too_slow_or_not_there(server):
    client = LabelStudioClient(server.url, KEY, timeout_seconds=0.5)
    server.go_on.clear()
    with pytest.raises(LabelStudioUnavailable, match="too long"):
        client.project(1)
    with pytest.raises(ImageError) as caught:
        client.fetch_bytes("/a.png", 100)
    assert caught.value.transient
    server.go_on.set()
    with pytest.raises(LabelStudioUnavailable, match="LABEL_STUDIO_URL"):
        LabelStudioClient("http://127.0.0.1:1", KEY).whoami()


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        ("-3", 0),
        ("Thu, 26 Nov 2026 08:00:40 GMT", 40),
        ("Thu, 26 Nov 2026 07:00:00 GMT", 0),
        ("86400", LONGEST_RETRY_AFTER_SECONDS),
        ("inf", LONGEST_RETRY_AFTER_SECONDS),
        ("1e400", LONGEST_RETRY_AFTER_SECONDS),
        ("nan", None),
        ("soon", None),
        ("", None),
    ],
)
def test_a_busy_server_says_when_to_come_back(server, client, said, seconds):
    """In seconds or as a moment of its own clock, and never so late that a thread would sleep for days."""
    server.status, server.headers = 429, {"Retry-After": said, "Date": "Thu, 26 Nov 2026 08:00:00 GMT"}
    with pytest.raises(LabelStudioUnavailable) as caught:
        client.project(1)
    assert caught.value.retry_after_seconds == seconds


def test_a_bad_call_says_what_label_studio_said(server, client):
    server.status = 400
    server.body = b'{"detail": "Validation error", "validation_errors": {"model_version": ["no such"]}}'
    with pytest.raises(LabelStudioError, match="no such"):
        client.set_model_version(1, "v")
    with pytest.raises(PredictionsRejected, match="no such"):
        client.import_predictions(1, [{"task": 1}])


def test_a_redirect_is_a_wrong_url_not_a_place_to_take_the_key_to(server, client):
    server.status, server.headers = 301, {"Location": "https://other.example/"}
    with pytest.raises(LabelStudioError, match="LABEL_STUDIO_URL"):
        client.project(1)


@pytest.mark.parametrize("url", ["", "label-studio:8080", "ftp://a", "http://"])
def test_a_url_that_cannot_be_one(url):
    with pytest.raises(LabelStudioError, match="LABEL_STUDIO_URL"):
        LabelStudioClient(url, KEY)


def test_an_expired_personal_access_token_is_refused_at_once():
    # {"token_type": "refresh", "exp": 1}
    expired = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCIsImV4cCI6MX0.c2ln"
    with pytest.raises(LabelStudioRefused, match="expired"):
        LabelStudioClient("http://127.0.0.1:1", expired)


def test_a_file_that_says_it_is_too_large_is_not_read(server, client):
    server.body = b"x" * 2000
    assert client.fetch_bytes("/a", 2000) == server.body
    with pytest.raises(ImageError, match="larger"):
        client.fetch_bytes("/a", 1999)


def test_paths_below_a_label_studio_that_is_below_a_path():
    client = LabelStudioClient("https://host.example/ls/", KEY)
    assert client.files.absolute("/data/upload/a") == "https://host.example/ls/data/upload/a"
    assert client.files.absolute("/ls/data/upload/a") == "https://host.example/ls/data/upload/a"
    assert client.files.absolute("http://x/a") == "http://x/a"


# --- the demo's server


def test_a_program_that_dies_shows_its_last_words(tmp_path, monkeypatch):
    program = tmp_path / "label-studio"
    program.write_text("#!/bin/sh\necho the database is on fire\nexit 3\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("NEAT_LABEL_STUDIO", str(program))
    assert find_label_studio() == program
    with pytest.raises(LabelStudioError, match=r"(?s)status 3.*on fire"), LabelStudioServer(tmp_path / "data"):
        pass


def test_a_program_that_never_answers_is_given_up_and_ended(tmp_path):
    program = tmp_path / "label-studio"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "label_studio.sqlite3").touch()
    shown = []
    server = LabelStudioServer(
        tmp_path / "data",
        program=program,
        timeout_seconds=0.5,
        progress=lambda activity, left: shown.append((activity, left)),
    )
    with pytest.raises(LabelStudioError, match="did not answer"), server:
        pass
    assert server._process is None
    assert shown[0][0] == "Starting Label Studio"


def test_without_label_studio_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("NEAT_LABEL_STUDIO", str(tmp_path / "none"))
    assert find_label_studio() is None
    with pytest.raises(LabelStudioError, match="NEAT_LABEL_STUDIO"), LabelStudioServer(tmp_path / "data"):
        pass
