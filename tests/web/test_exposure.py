"""Nobody on another machine is served without credentials, unless that is wanted."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from neat_backend.cli.supervisor import serve
from neat_backend.demo.ports import free_port
from neat_backend.errors import SettingsError
from neat_backend.settings import Settings
from neat_backend.web import exposure
from neat_backend.web.app import create_app
from tests.serving import make_database, make_settings, setup_body
from tests.waiting import HANGS, until

ROOT = Path(__file__).parents[2]
OWN_NAME = socket.gethostname()
PAIR = {"basic_auth_user": "ann", "basic_auth_pass": "pass"}


def client_of(folder: Path, **fields: Any) -> FlaskClient:
    settings = make_settings(folder, **fields)
    return create_app(settings, make_database(settings)).test_client()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7"])
def test_it_does_not_start_where_others_could_reach_it_and_says_what_to_do(tmp_path: Path, host: str) -> None:
    settings = Settings.from_env({}, data_dir=tmp_path / "data", host=host, port=0)
    with pytest.raises(SettingsError) as caught:
        serve(settings)
    for remedy in ("BASIC_AUTH_USER", "BASIC_AUTH_PASS", "HOST=127.0.0.1", "NEAT_ALLOW_ANONYMOUS=1"):
        assert remedy in str(caught.value)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "0.0.0.0", **PAIR},
        {"host": "0.0.0.0", "allow_anonymous": True},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.53"},
        {"host": "::1"},
        {"host": "localhost"},
        {},
    ],
)
def test_it_starts_with_credentials_on_this_machine_alone_or_when_told_to(fields: dict[str, Any]) -> None:
    settings = Settings.from_env({}, **fields)
    exposure.check(settings, exposure.addresses_of(settings.host))


def test_gunicorn_does_not_serve_the_app_of_wsgi_to_others_either(tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name not in Settings.variables()}
    env["NEAT_DATA_DIR"] = str(tmp_path / "data")
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", "-b", f"0.0.0.0:{free_port()}", "_wsgi:app"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode != 0
    assert "other machines could reach 0.0.0.0 without credentials" in done.stderr
    assert "NEAT_ALLOW_ANONYMOUS=1" in done.stderr


def test_what_the_process_listens_at_is_seen() -> None:
    with socket.create_server(("127.0.0.3", 0)) as server:
        assert "127.0.0.3" in exposure.listened_at()
        with socket.create_connection(server.getsockname()) as caller:
            server.accept()[0].close()
            assert caller.getsockname()[0] == "127.0.0.1"
    assert "127.0.0.3" not in exposure.listened_at()


class TestRequestsWithoutCredentials:
    @pytest.mark.parametrize("caller", ["127.0.0.1", "::1", "::ffff:127.0.0.1", ""])
    @pytest.mark.parametrize(
        "host", ["localhost:9090", "127.0.0.1:9090", "[::1]:9090", OWN_NAME, "host.docker.internal:9090"]
    )
    def test_of_this_machine_are_served(self, tmp_path: Path, caller: str, host: str) -> None:
        answer = client_of(tmp_path).get("/api/projects", headers={"Host": host}, environ_base={"REMOTE_ADDR": caller})
        assert answer.status_code == 200

    @pytest.mark.parametrize("caller", ["192.0.2.9", "10.0.0.1", "::ffff:10.0.0.1", "fe80::1%eth0", "2001:db8::1"])
    def test_of_others_are_not_but_for_health(self, tmp_path: Path, caller: str) -> None:
        client = client_of(tmp_path)
        for method, path in (("get", "/"), ("get", "/metrics"), ("post", "/webhook"), ("post", "/setup")):
            answer = getattr(client, method)(path, environ_base={"REMOTE_ADDR": caller})
            assert answer.status_code == 403
            assert "NEAT_ALLOW_ANONYMOUS=1" in answer.json["error"]
        assert client.get("/health", environ_base={"REMOTE_ADDR": caller}).status_code == 200

    @pytest.mark.parametrize(
        "headers",
        [
            {"X-Forwarded-For": "192.0.2.9"},
            {"X-Forwarded-For": "127.0.0.1, 192.0.2.9"},
            {"X-Forwarded-For": "192.0.2.9, 127.0.0.1"},
            {"X-Forwarded-For": "unknown"},
            {"X-Real-IP": "192.0.2.9"},
            {"Forwarded": "for=192.0.2.9;proto=http"},
            {"Forwarded": 'for=127.0.0.1, For="[2001:db8::1]:4711"'},
        ],
    )
    def test_of_a_stranger_by_way_of_a_proxy_on_this_machine_are_not(
        self, tmp_path: Path, headers: dict[str, str]
    ) -> None:
        answer = client_of(tmp_path).get("/api/projects", headers=headers)
        assert answer.status_code == 403
        assert "NEAT_ALLOW_ANONYMOUS=1" in answer.json["error"]

    @pytest.mark.parametrize(
        "headers", [{"X-Forwarded-For": "127.0.0.1, ::1"}, {"Forwarded": 'for="[::1]";proto=http'}, {"X-Real-IP": ""}]
    )
    def test_of_this_machine_by_way_of_its_own_proxy_are_served(self, tmp_path: Path, headers: dict[str, str]) -> None:
        assert client_of(tmp_path).get("/api/projects", headers=headers).status_code == 200

    @pytest.mark.parametrize(
        "host", ["evil.example:9090", "127.0.0.1.evil.example", "evil.example.", "10.0.0.1", "evil", "evil.", "wpad:80"]
    )
    def test_of_a_page_whose_name_was_turned_to_this_machine_are_not(self, tmp_path: Path, host: str) -> None:
        answer = client_of(tmp_path).post("/setup", json=setup_body(), headers={"Host": host})
        assert answer.status_code == 403

    def test_are_served_from_anywhere_when_told_to(self, tmp_path: Path) -> None:
        client = client_of(tmp_path, allow_anonymous=True)
        answer = client.get("/api/projects", headers={"Host": "neat.example"}, environ_base={"REMOTE_ADDR": "10.0.0.1"})
        assert answer.status_code == 200


def test_credentials_still_count_where_anonymous_callers_are_allowed(tmp_path: Path) -> None:
    client = client_of(tmp_path, allow_anonymous=True, **PAIR)
    assert client.get("/api/projects").status_code == 401
    assert client.get("/api/projects", auth=("ann", "pass"), headers={"Host": "neat.example"}).status_code == 200


def test_a_real_server_without_credentials_answers_this_machine(tmp_path: Path) -> None:
    port = free_port()
    env = {name: value for name, value in os.environ.items() if name not in Settings.variables()}
    env |= {"NEAT_DATA_DIR": str(tmp_path / "data"), "PORT": str(port)}
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "neat_backend.cli", "web"], env=env, cwd=tmp_path, stdout=file, stderr=file
        )
    try:

        def is_answered() -> bool:
            with contextlib.suppress(httpx.TransportError):  # it is not up yet
                url = f"http://localhost:{port}/api/projects"
                return httpx.get(url, timeout=HANGS, trust_env=False).raise_for_status().is_success
            return False

        until(is_answered, output.read_text)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{port}/api/projects", headers={"Host": "evil.example"}),
                timeout=HANGS,
            )
        assert caught.value.code == 403
    finally:
        process.terminate()
        process.wait(HANGS)
