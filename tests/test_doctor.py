"""`neat-backend doctor` without a Label Studio; tests/e2e/test_doctor.py has a real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from neat_backend.cli import app
from neat_backend.doctor import FAILED, OK, WARNING, Finding, examine, installation
from neat_backend.settings import Settings


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.variables():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NEAT_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(installation, "_encoder", lambda settings: "there")


class Server:
    """Answers every question alike."""

    def __init__(self) -> None:
        self.status, self.body, self.headers = 200, b"{}", dict[str, str]()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(outer.status)
                for name, value in {**outer.headers, "Content-Length": str(len(outer.body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(outer.body)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.place = f"127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.server.shutdown()
    made.server.server_close()


def finding(check: str, tmp_path: Path, **variables: str) -> Finding:
    found = examine({"NEAT_DATA_DIR": str(tmp_path), **variables})
    return next(one for one in found if one.check == check)


def test_each_check_is_told_as_it_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    printed: list[str] = []

    def encoder(settings: Settings) -> str:  # it may take minutes
        printed.append(capsys.readouterr().out)
        return "there"

    monkeypatch.setattr(installation, "_encoder", encoder)
    app(["doctor"], standalone_mode=False)
    lines = printed[0].splitlines()
    assert [line.split(":")[0][2:] for line in lines] == ["settings", "database", "data folder", "disk space"]
    assert "encoder weights: there" in capsys.readouterr().out


def test_as_json_it_is_one_list(capsys: pytest.CaptureFixture[str]) -> None:
    app(["doctor", "--json"], standalone_mode=False)
    assert {"settings", "Label Studio"} <= {one["check"] for one in json.loads(capsys.readouterr().out)}


def test_every_misspelt_variable_is_named(tmp_path: Path) -> None:
    found = finding("settings", tmp_path, NEAT_BATCHSIZE="5", NEAT_ENCODERS="clip", NEAT_K="5")
    assert found.state == WARNING
    assert all(name in found.said for name in ("NEAT_BATCHSIZE", "NEAT_ENCODERS"))
    assert found.remedy == "did you mean NEAT_BATCH_SIZE, NEAT_ENCODER?"


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"{}"), (200, b"<html>Welcome to nginx</html>"), (404, b"no such page"), (401, b"{}")]
)
def test_something_else_at_label_studios_address_is_called_that(
    server: Server, tmp_path: Path, status: int, body: bytes
) -> None:
    server.status, server.body = status, body
    found = finding("Label Studio", tmp_path, LABEL_STUDIO_URL=f"http://{server.place}")
    assert found.state == FAILED
    assert f"something else than Label Studio answers at http://{server.place} ({status}" in found.said
    assert "LABEL_STUDIO_URL" in found.remedy


def test_a_redirect_tells_where_label_studio_is(server: Server, tmp_path: Path) -> None:
    server.status, server.headers = 301, {"Location": "https://ls.example/api/version"}
    found = finding("Label Studio", tmp_path, LABEL_STUDIO_URL=f"http://{server.place}")
    assert (found.state, "redirects to https://ls.example" in found.said) == (FAILED, True)


def test_a_label_studio_that_fails_is_not_called_something_else(server: Server, tmp_path: Path) -> None:
    server.status = 502
    assert "answers 502" in finding("Label Studio", tmp_path, LABEL_STUDIO_URL=f"http://{server.place}").said


@pytest.mark.parametrize(("status", "state"), [(200, OK), (404, FAILED), (502, FAILED), (301, FAILED)])
def test_a_password_in_label_studios_url_is_not_shown(server: Server, tmp_path: Path, status: int, state: str) -> None:
    server.status, server.body = status, b'{"release": "1.23.2"}'
    if status == 404:
        server.body = b"none"
    found = finding("Label Studio", tmp_path, LABEL_STUDIO_URL=f"http://ann:secret@{server.place}")
    assert found.state == state
    assert "secret" not in found.said
    assert server.place in found.said


def test_a_database_password_that_is_a_common_word_is_masked_in_the_url_alone(tmp_path: Path) -> None:
    url = "postgresql://postgres:connection@127.0.0.1:1/neat"
    found = finding("database", tmp_path, DATABASE_URL=url)
    assert found.state == FAILED
    assert "postgres:***@127.0.0.1:1/neat" in found.said
    assert "connection failed" in found.said
    assert ":connection@" not in found.said
