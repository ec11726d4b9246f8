"""No secret comes out: a whole run at the chattiest level, with a Label Studio that throws back what it is sent."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from neat_backend.demo.backend import Backend
from neat_backend.demo.ports import free_port
from neat_backend.errors import LabelStudioError
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.settings import Settings
from neat_backend.store import webhook_secret
from neat_backend.web.app import create_app
from tests.serving import annotation_created, make_database, make_settings, setup_body, tasks_created
from tests.waiting import HANGS, until
from tests.web.test_guard import every_route

CANARIES = {
    "LABEL_STUDIO_API_KEY": "canary-of-the-api-key-0123456789abcdef",
    "BASIC_AUTH_PASS": "canary-of-the-password",
}
SENT_TOKEN = "canary-of-the-token-that-label-studio-sends"
IN_AN_ADDRESS = "canary-of-a-password-in-an-image-address"
PAIR = ("ann", CANARIES["BASIC_AUTH_PASS"])


@pytest.fixture
def echo() -> Iterator[str]:
    """A server that answers everything with an error, and in it all headers that it got."""
    statuses = iter((401, 500, 400, 403, 404, 429, *([500] * 100_000)))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"you sent: {dict(self.headers)}".encode()
            self.send_response(next(statuses))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PATCH = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def forms(secret: str) -> set[str]:
    """How a secret could be written down."""
    pair = base64.b64encode(f"ann:{secret}".encode()).decode()
    return {secret, base64.b64encode(secret.encode()).decode().rstrip("="), pair.rstrip("=")}


def test_what_label_studio_throws_back_is_not_passed_on(echo: str) -> None:
    client = LabelStudioClient(echo, CANARIES["LABEL_STUDIO_API_KEY"])
    said = []
    for _ in range(6):
        with pytest.raises(LabelStudioError) as caught:
            client.project(1)
        said.append(str(caught.value))
    assert any("you sent" in words for words in said)
    assert not any(CANARIES["LABEL_STUDIO_API_KEY"] in words for words in said)


def test_no_secret_is_in_logs_answers_commands_or_the_process_list(echo: str, tmp_path: Path) -> None:
    place = {"LABEL_STUDIO_URL": echo, "NEAT_DATA_DIR": str(tmp_path / "data"), "BASIC_AUTH_USER": PAIR[0]}
    variables = {**CANARIES, **place, "LOG_LEVEL": "DEBUG", "NEAT_ENCODER": "efficientnet_lite0"}
    log_file = tmp_path / "log"
    backend = Backend(free_port(), log_file, variables)
    output: dict[str, str] = {}
    backend.start()
    try:
        output["process list"] = "\n".join(command_lines())
        task = tasks_created(1)
        task["tasks"][0]["data"]["image"] = f"http://ann:{IN_AN_ADDRESS}@127.0.0.1:1x/a.png"
        with httpx.Client(base_url=backend.url, timeout=HANGS, trust_env=False) as http:
            assert http.post("/setup", json=setup_body(access_token=SENT_TOKEN), auth=PAIR).status_code == 200
            for body in (task, annotation_created(1), {"action": "nonsense"}, {"action": None}):
                http.post("/webhook", json=body, auth=PAIR)
            # The worker has spoken with Label Studio.
            until(lambda: http.get("/api/projects/7", auth=PAIR).json()["state"] in ("blocked", "away"), every=0.2)
            settings = make_settings(tmp_path / "routes")
            app = create_app(settings, make_database(settings))
            for auth in (PAIR, ("ann", "wrong"), None):
                for method, path in every_route(app):
                    answer = http.request(method, path, auth=auth, json={"project": 7}, headers={"Accept": "text/html"})
                    output[f"{method} {path} {auth}"] = f"{answer.headers} {answer.text}"
        env = {name: value for name, value in os.environ.items() if name not in Settings.variables()} | variables
        for words in (("status", "--json"), ("status", "7"), ("config",), ("doctor", "7", "--json"), ("rank", "7")):
            done = subprocess.run(
                [sys.executable, "-m", "neat_backend.cli", *words],
                env=env,
                capture_output=True,
                text=True,
                timeout=HANGS,
                check=False,
            )
            output[" ".join(words)] = done.stdout + done.stderr
    finally:
        backend.stop()
    output["log"] = log_file.read_text()
    assert "DEBUG" in output["log"]
    assert "you sent" in output["log"] + output["GET /api/projects ('ann', 'canary-of-the-password')"]
    secrets = [*CANARIES.values(), SENT_TOKEN, webhook_secret.token(tmp_path / "data", 7).partition(".")[2]]
    found = [
        (where, secret)
        for secret in secrets
        for form in forms(secret)
        for where, text in output.items()
        if form in text
    ]
    assert found == []
    # The address itself is what people who may see the task see anyway; the log is for others.
    assert IN_AN_ADDRESS not in output["log"]


def command_lines() -> Iterator[str]:
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue


def test_a_fault_of_ours_is_not_explained_to_callers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = make_settings(tmp_path)
    app = create_app(settings, make_database(settings))

    def fails() -> None:
        raise RuntimeError(CANARIES["LABEL_STUDIO_API_KEY"])

    monkeypatch.setattr(app.extensions["neat"], "projects", fails)
    for accept in ("text/html", "application/json"):
        answer = app.test_client().get("/api/projects", headers={"Accept": accept})
        assert answer.status_code == 500
        assert "canary" not in answer.text
        assert "Traceback" not in answer.text
