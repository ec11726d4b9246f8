"""What holds for every route: auth, errors, headers, metrics, and what the process must not import."""

from __future__ import annotations

import base64
import subprocess
import sys
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from neat_backend.errors import SettingsError
from neat_backend.web.app import create_app
from tests.serving import annotation_created, make_database, make_settings, setup_body

KEPT_OUT = ("torch", "faiss", "label_studio_sdk", "label_studio_ml", "sklearn", "pandas")


class TestBasicAuth:
    @pytest.fixture
    def client(self, tmp_path: Path) -> FlaskClient:
        settings = make_settings(tmp_path, basic_auth_user="ann", basic_auth_pass="pä:ss")
        return create_app(settings, make_database(settings)).test_client()

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("get", "/"),
            ("post", "/setup"),
            ("post", "/webhook"),
            ("post", "/predict"),
            ("post", "/train"),
            ("get", "/versions"),
            ("get", "/metrics"),
            ("get", "/api/projects"),
            ("post", "/api/projects/7/train"),
            ("get", "/no/such/page"),
        ],
    )
    def test_guards_everything_but_health(self, client: FlaskClient, method: str, path: str) -> None:
        answer = getattr(client, method)(path)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic ")
        assert answer.json["error"]
        assert client.get("/health").status_code == 200

    def test_lets_the_right_ones_in(self, client: FlaskClient) -> None:
        assert client.get("/api/projects", auth=("ann", "pä:ss")).status_code == 200

    @pytest.mark.parametrize(
        "header",
        [
            "Basic " + base64.b64encode(b"ann:wrong").decode(),
            "Basic " + base64.b64encode("bob:pä:ss".encode()).decode(),
            "Basic " + base64.b64encode(b"ann").decode(),
            "Basic !!!",
            "Basic",
            "Bearer ann",
            "Digest username=ann",
        ],
    )
    def test_keeps_the_others_out(self, client: FlaskClient, header: str) -> None:
        assert client.get("/api/projects", headers={"Authorization": header}).status_code == 401

    def test_half_of_it_is_refused_at_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="BASIC_AUTH_PASS"):
            make_settings(tmp_path, basic_auth_user="ann")


class TestErrors:
    def test_an_unknown_page_is_json(self, client: FlaskClient) -> None:
        answer = client.get("/no/such/page")
        assert answer.status_code == 404
        assert set(answer.json or {}) == {"error", "field"}

    def test_a_wrong_method_says_which_are_right(self, client: FlaskClient) -> None:
        answer = client.get("/setup")
        assert answer.status_code == 405
        assert "POST" in answer.headers["Allow"]

    @pytest.mark.parametrize(
        "headers",
        [
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
        ],
    )
    def test_pages_of_other_sites_cannot_post(self, client: FlaskClient, headers: dict[str, str]) -> None:
        answer = client.post("/api/projects/7/train", headers=headers)
        assert answer.status_code == 403

    @pytest.mark.parametrize("headers", [{}, {"Sec-Fetch-Site": "same-origin"}, {"Origin": "http://localhost"}])
    def test_our_pages_and_programs_can_post(self, client: FlaskClient, headers: dict[str, str]) -> None:
        assert client.post("/api/projects/7/train", headers=headers).status_code != 403

    def test_headers_that_cost_nothing(self, client: FlaskClient) -> None:
        headers = client.get("/api/projects").headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "SAMEORIGIN"
        assert headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert headers["Cache-Control"] == "no-store"


class TestMetrics:
    def test_count_events_and_show_the_queue(self, client: FlaskClient) -> None:
        client.post("/setup", json=setup_body())
        client.post("/webhook", json=annotation_created(1))
        client.post("/webhook", json={"action": "SOMETHING_NEW", "project": {"id": 7}})
        client.post("/webhook", json={"action": "ANNOTATION_CREATED"})
        answer = client.get("/metrics")
        assert answer.content_type.startswith("text/plain")
        lines = answer.text.splitlines()
        assert 'neat_events_total{action="ANNOTATION_CREATED",outcome="accepted"} 1.0' in lines
        assert 'neat_events_total{action="other",outcome="ignored"} 1.0' in lines
        assert 'neat_events_total{action="other",outcome="rejected"} 1.0' in lines
        assert "neat_acknowledge_seconds_count 3.0" in lines
        assert 'neat_inbox_events{project="7"} 2.0' in lines
        assert 'neat_projects{state="connecting"} 1.0' in lines

    def test_need_no_connected_project(self, client: FlaskClient) -> None:
        assert client.get("/metrics").status_code == 200

    def test_two_apps_in_one_process_do_not_collide(self, app: Flask, tmp_path: Path) -> None:
        settings = make_settings(tmp_path / "other")
        assert create_app(settings, make_database(settings)).test_client().get("/metrics").status_code == 200


class TestImports:
    @pytest.mark.parametrize("module", ["neat_backend.web", "neat_backend.web.app", "neat_backend.service.service"])
    def test_of_the_web_leave_the_heavy_ones_out(self, module: str) -> None:
        code = f"import {module}, sys; print(sorted(set({KEPT_OUT!r}) & set(sys.modules)))"
        assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"

    def test_nor_are_they_imported_by_using_it(self, tmp_path: Path) -> None:
        code = f"""
import sys
from pathlib import Path
from neat_backend.web.app import create_app
from tests.serving import *
settings = make_settings(Path({str(tmp_path)!r}))
app = create_app(settings)
client = app.test_client()
assert client.post("/setup", json=setup_body()).status_code == 200
make_ready(app.extensions["neat"].database)
write_ranking(settings)
requests = [("POST", "/webhook", annotation_created(1)), ("POST", "/webhook", tasks_created(1)),
         ("POST", "/predict", predict_body(1, 99)), ("POST", "/train", {{"project": 7}}),
         ("POST", "/versions", {{"project": 7}}), ("POST", "/job_status", {{}})]
rules = [(method, rule.rule.replace("<int:project>", "7"), None) for rule in app.url_map.iter_rules()
         for method in rule.methods & {{"GET", "POST"}} if "<path:" not in rule.rule]
for method, path, body in requests + rules:
    answer = client.open(path, method=method, json=body)
    assert answer.status_code < 500 or path == "/health/ready", (path, answer.text)  # 503: no worker
import resource
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, "MiB")
print(sorted(set({KEPT_OUT!r}) & set(sys.modules)))
"""
        output = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=Path(__file__).parents[2])
        assert output.splitlines()[-1] == "[]"

    def test_importing_builds_nothing(self, tmp_path: Path) -> None:
        code = "import neat_backend.web.app, neat_backend.cli.supervisor, neat_backend.service.service"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
        assert list(tmp_path.iterdir()) == []
