"""Log lines for programs: one JSON object each, with the ids of what they are about."""

from __future__ import annotations

import json
import logging
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from neat_backend import logs
from neat_backend.cli.listening import listen
from neat_backend.cli.supervisor import environment, web_command
from neat_backend.demo.ports import free_port
from neat_backend.settings import Settings
from neat_backend.web.app import create_app
from tests.serving import annotation_created, make_database, make_settings
from tests.waiting import HANGS


def line(message: str, *args: object, error: BaseException | None = None) -> dict[str, Any]:
    info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("neat_backend.worker.live", logging.WARNING, __file__, 1, message, args, info)
    text = logs.JsonLines().format(record)
    assert "\n" not in text
    loaded: dict[str, Any] = json.loads(text)
    return loaded


@pytest.fixture(autouse=True)
def _about_nothing() -> None:
    logs.about()


def ids(entry: dict[str, Any]) -> dict[str, int]:
    return {name: entry[name] for name in logs.IDS if name in entry}


def test_a_line_says_when_how_bad_where_and_what() -> None:
    entry = line("project %d: %d images embedded, %d failed, %.1f images/s", 3, 5, 0, 12.34)
    assert entry["message"] == "project 3: 5 images embedded, 0 failed, 12.3 images/s"
    assert (entry["level"], entry["logger"], entry["thread"]) == ("WARNING", "neat_backend.worker.live", "MainThread")
    assert entry["time"].endswith("Z")
    assert len(entry["time"]) == len("2026-11-26T09:12:24.518Z")


@pytest.mark.parametrize(
    ("message", "args", "expected"),
    [
        ("project %d: loaded, %d tasks with features", (3, 12), {"project": 3}),
        ("project %d, task %d: image failed: %s", (3, 1204, "404"), {"project": 3, "task": 1204}),
        ("project %d: event %d (%s) set aside: %s", (3, 9, "X", "y"), {"project": 3, "event": 9}),
        ("%5.1f %% done, project %d", (50.0, 4), {"project": 4}),
        ("%-*s of project %d", (8, "name", 4), {"project": 4}),
        ("project %s belongs to another worker", ("three",), {}),
        ("project %d", (), {}),
        ("nothing is named", (), {}),
    ],
)
def test_a_line_has_the_ids_that_its_message_names(message: str, args: tuple[Any, ...], expected: Any) -> None:
    record = logging.LogRecord("x", logging.INFO, __file__, 1, message, args, None)
    assert logs.named(record) == expected


def test_a_thread_that_works_on_a_project_says_so_where_the_message_does_not() -> None:
    entry: list[dict[str, int]] = []

    def work() -> None:
        logs.about(project=7)
        entry.append(ids(line("Label Studio took too long")))
        entry.append(ids(line("project %d: another one", 8)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert entry == [{"project": 7}, {"project": 8}]
    assert ids(line("of nothing")) == {}, "another thread's"


def test_an_error_comes_with_its_traceback_on_the_same_line() -> None:
    try:
        raise ValueError("so")
    except ValueError as error:
        entry = line("broken\nover two lines", error=error)
    assert entry["message"] == "broken\nover two lines"
    assert entry["error"].endswith("ValueError: so")


def test_the_plain_form_is_for_people() -> None:
    record = logging.LogRecord("neat", logging.INFO, __file__, 1, "project %d: ready", (3,), None)
    assert logs.formatter("plain").format(record).endswith("INFO    neat: project 3: ready")


@pytest.mark.parametrize(
    "text", ["a\n2026-11-30 INFO    x: forged", "\r", "\x1b[2Jc", "\x85", "\u2028", "\u202e", "\x00\t"]
)
def test_a_name_from_outside_forges_no_plain_line(text: str) -> None:
    """A class may be named with a line end, or with what moves a terminal's cursor."""
    record = logging.LogRecord("neat", logging.INFO, __file__, 1, "project %d: class %s", (3, text), None)
    entry = logs.formatter("plain").format(record)
    assert entry.isprintable()
    assert entry.endswith("project 3: class " + text.encode("unicode_escape").decode())


def test_a_tracebacks_lines_are_indented_in_the_plain_form() -> None:
    try:
        raise ValueError("so\n2026-11-30 INFO    x: forged \x1b[2J")
    except ValueError as error:
        record = logging.LogRecord("neat", 40, __file__, 1, "broken", (), (type(error), error, error.__traceback__))
    first, *rest = logs.formatter("plain").format(record).splitlines()
    assert first.endswith("neat: broken")
    assert rest[-1] == r"    2026-11-30 INFO    x: forged \x1b[2J"
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


def test_a_refused_webhook_is_logged_with_its_project(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise RuntimeError("broken")

    settings = make_settings(tmp_path)
    database = make_database(settings)
    app = create_app(settings, database)
    monkeypatch.setattr(app.extensions["neat"], "accept", broken)
    caplog.handler.setFormatter(logs.JsonLines())
    client = app.test_client()
    assert client.post("/webhook", json=annotation_created(1)).status_code == 500
    assert client.get("/nowhere").status_code == 404
    database.dispose()
    entry = json.loads(caplog.text.splitlines()[-1])
    assert (entry["message"], entry["project"]) == ("POST /webhook failed", 7)
    assert "RuntimeError: broken" in entry["error"]
    assert ids(line("the next request of this thread")) == {}


def test_every_line_of_the_web_process_is_json_gunicorns_too(tmp_path: Path) -> None:
    settings = Settings.from_env({}, data_dir=tmp_path, log_format="json", host="127.0.0.1", port=free_port())
    with listen("127.0.0.1", settings.port) as listener:
        process = subprocess.Popen(
            web_command(settings, listener.fileno()),
            pass_fds=(listener.fileno(),),
            env=environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
        )
        assert process.stdout is not None
        lines = []
        for text in process.stdout:
            lines.append(json.loads(text))
            if "Booting worker" in text:
                process.terminate()
        process.wait(HANGS)
    assert {"Listening", "Booting", "Shutting"} <= {one["message"].split()[0] for one in lines}
