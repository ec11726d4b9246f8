"""What every request passes: the webhook's secret, sizes and depth of bodies, security headers on every route."""

from __future__ import annotations

import base64
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from flask import Flask
from flask.testing import FlaskClient

from neat_backend import connection
from neat_backend.settings import Settings
from neat_backend.store import webhook_secret
from neat_backend.web import bodies, guard
from neat_backend.web.app import create_app
from neat_backend.web.bodies import MAX_DEPTH
from tests.serving import (
    annotation_created,
    make_database,
    make_ready,
    make_settings,
    predict_body,
    setup_body,
    write_ranking,
)
from tests.waiting import HANGS, Gate

PAIR = ("ann", "pass")


@pytest.fixture
def guarded(tmp_path: Path) -> Settings:
    return make_settings(tmp_path, basic_auth_user=PAIR[0], basic_auth_pass=PAIR[1])


@pytest.fixture
def guarded_client(guarded: Settings) -> FlaskClient:
    client = create_app(guarded, make_database(guarded)).test_client()
    assert client.post("/setup", json=setup_body(), auth=PAIR).status_code == 200
    return client


def every_route(app: Flask) -> list[tuple[str, str]]:
    """Method and path of every route there is."""
    fillers = {"<int:project>": "7", "<int:task>": "5", "<path:filename>": "page.css"}
    found = []
    for rule in app.url_map.iter_rules():
        path = rule.rule
        for part, text in fillers.items():
            path = path.replace(part, text)
        assert "<" not in path, f"say in this test what stands for the variable in {path}"
        found += [(method, path) for method in sorted((rule.methods or set()) - {"OPTIONS"})]
    return found


class TestTheWebhooksSecret:
    def test_opens_the_webhook_for_its_project(self, guarded: Settings, guarded_client: FlaskClient) -> None:
        headers = connection.webhook_headers(guarded, 7)
        answer = guarded_client.post("/webhook", json=annotation_created(1), headers=headers)
        assert answer.status_code == 201

    def test_opens_nothing_else(self, guarded: Settings, guarded_client: FlaskClient) -> None:
        headers = connection.webhook_headers(guarded, 7)
        for method, path in every_route(guarded_client.application):
            if path not in ("/health", "/webhook"):
                answer = guarded_client.open(path, method=method, headers=headers)
                assert answer.status_code == 401, (method, path)
        assert guarded_client.get("/webhook", headers=headers).status_code == 401

    def test_does_not_speak_for_another_project(self, guarded: Settings, guarded_client: FlaskClient) -> None:
        answer = guarded_client.post(
            "/webhook", json=annotation_created(1, project=8), headers=connection.webhook_headers(guarded, 7)
        )
        assert answer.status_code == 403
        assert guarded_client.get("/api/projects/8", auth=PAIR).status_code == 404

    def test_cannot_be_made_up(self, guarded: Settings, guarded_client: FlaskClient, tmp_path: Path) -> None:
        right = webhook_secret.token(guarded.data_dir, 7)
        other = webhook_secret.token(tmp_path / "elsewhere", 7)
        wrong = [
            right[:-1] + ("0" if right[-1] != "0" else "1"),
            right.replace("7.", "8.", 1),
            other,
            "7.",
            "",
            "7",
            right.upper(),
            f"0{right}",
            "7." + "é" * 64,
        ]
        for secret in wrong:
            answer = guarded_client.post(
                "/webhook", json=annotation_created(1), headers={"Authorization": f"Bearer {secret}".encode()}
            )
            assert answer.status_code == 401, secret

    def test_is_the_same_for_all_processes_and_readable_by_the_owner_alone(self, tmp_path: Path) -> None:
        first = webhook_secret.token(tmp_path, 7)
        assert webhook_secret.token(tmp_path, 7) == first
        assert [path.name for path in tmp_path.iterdir()] == [webhook_secret.FILE]
        assert (tmp_path / webhook_secret.FILE).stat().st_mode & 0o777 == 0o600

    def test_tells_nothing_of_the_password(self, guarded: Settings) -> None:
        (secret,) = connection.webhook_headers(guarded, 7).values()
        assert base64.b64encode(b"ann:pass").decode() not in secret
        (same,) = connection.webhook_headers(guarded.model_copy(update={"basic_auth_user": "bob"}), 7).values()
        assert secret == same


class TestCredentials:
    def test_every_route_but_health_asks_for_them_before_it_looks_at_anything(
        self, guarded_client: FlaskClient
    ) -> None:
        for method, path in every_route(guarded_client.application):
            answer = guarded_client.open(path, method=method, data=b"{", content_type="application/json")
            assert answer.status_code == (200 if path == "/health" else 401), (method, path)

    def test_are_compared_in_constant_time(self, guarded_client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
        compared = []
        real = guard.hmac.compare_digest
        monkeypatch.setattr(guard.hmac, "compare_digest", lambda a, b: compared.append(b) or real(a, b))
        for auth in (("ann", "wrong"), ("", ""), ("ann", "pass")):
            compared.clear()
            guarded_client.get("/api/projects", auth=auth)
            assert len(compared) == 2  # both ways of writing the pair, whatever came


class TestBodies:
    def test_have_a_size_that_goes_with_the_route(self, client: FlaskClient) -> None:
        sizes = {
            "/webhook": 64 * guard.MIB,
            "/predict": 64 * guard.MIB,
            "/setup": 8 * guard.MIB,
            "/versions": guard.MIB,
        }
        for path, most in sizes.items():
            answer = client.post(
                path, data=b"", content_type="application/json", environ_overrides={"CONTENT_LENGTH": str(most + 1)}
            )
            assert answer.status_code == 413, path
            assert f"{most // guard.MIB} MiB" in (answer.json or {})["error"]
            fits = json.dumps({"x": "y" * (guard.MIB - 20)})
            assert client.post(path, data=fits, content_type="application/json").status_code == 400

    def test_have_a_depth(self, client: FlaskClient) -> None:
        client.post("/setup", json=setup_body())
        body = annotation_created(1)
        inner: object = "x"
        for _ in range(MAX_DEPTH - 3):
            inner = [inner]
        body["task"]["data"] = {"image": "/a.png", "deep": inner}
        assert client.post("/webhook", json=body).status_code == 201
        body["task"]["data"]["deep"] = [[[[inner]]]]
        answer = client.post("/webhook", json=body)
        assert answer.status_code == 400
        assert "nested" in (answer.json or {})["error"]
        for text in ("[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000):
            assert client.post("/webhook", data=text, content_type="application/json").status_code == 400

    @pytest.mark.parametrize("part", ["{},", "[],", '"",', '{"a":0},', "[[[0]]],", '"{[,:",'])
    @pytest.mark.parametrize("path", ["/webhook", "/setup", "/predict", "/train", "/versions"])
    def test_hold_no_more_values_than_fit_into_memory(
        self, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, path: str, part: str
    ) -> None:
        monkeypatch.setattr(bodies, "MAX_PARTS", 1000)
        parsed = []
        monkeypatch.setattr(bodies, "json", SimpleNamespace(loads=lambda data, **_: parsed.append(data) or {}))
        answer = client.post(path, data="[" + 1001 * part + "0]", content_type="application/json")
        assert answer.status_code == 400
        assert "more than 1,000 values" in (answer.json or {})["error"]
        assert not parsed

    def test_large_ones_are_taken_in_one_after_the_other(
        self, app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client.post("/setup", json=setup_body())
        gate, service = Gate(), app.extensions["neat"]
        accept = service.accept
        monkeypatch.setattr(service, "accept", lambda *args: (gate(), accept(*args))[1])
        monkeypatch.setattr(bodies, "WAIT_SECONDS", 0.01)
        large = {**annotation_created(1), "bulk": "x" * bodies.LARGE_BYTES}
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(lambda: app.test_client().post("/webhook", json=large).status_code)
            assert gate.reached.wait(HANGS)
            second = client.post("/webhook", json=large)
            assert second.status_code == 503
            assert int(second.headers["Retry-After"]) > 0
            assert client.post("/setup", json=setup_body()).status_code == 200  # a small one
            gate.opened.set()
            assert first.result() == 201
        for body in (large, {**large, "project": "nonsense"}, large):  # each lets the next one at its own
            assert client.post("/webhook", json=body).status_code in (201, 400)

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
    def test_hold_numbers_that_json_has(self, client: FlaskClient, number: str) -> None:
        text = json.dumps(annotation_created(1)).replace('"completed_by": 1', f'"completed_by": {number}')
        answer = client.post("/webhook", data=text, content_type="application/json")
        assert answer.status_code == 400
        assert number.strip("-") in (answer.json or {})["error"]


class TestHeaders:
    def test_are_on_every_answer_also_on_refusals(
        self, client: FlaskClient, settings: Settings, guarded_client: FlaskClient
    ) -> None:
        client.post("/setup", json=setup_body())
        make_ready(client.application.extensions["neat"].database)
        write_ranking(settings)
        for each in (client, guarded_client):
            for method, path in [*every_route(each.application), ("GET", "/no/such"), ("DELETE", "/webhook")]:
                accept = "application/json" if path == "/no/such" else "text/html"
                headers = each.open(path, method=method, headers={"Accept": accept}).headers
                assert {name: headers.get(name) for name in guard.HEADERS} == guard.HEADERS, (method, path)

    def test_the_policy_lets_no_inline_script_or_style_run(self) -> None:
        policy = guard.HEADERS["Content-Security-Policy"]
        assert "unsafe" not in policy
        assert "default-src 'self'" in policy
        assert "script-src" not in policy, "what it says is then tested here"

    def test_pages_have_none(self, client: FlaskClient, settings: Settings) -> None:
        client.post("/setup", json=setup_body())
        make_ready(client.application.extensions["neat"].database)
        write_ranking(settings)
        pages = []
        for method, path in every_route(client.application):
            answer = client.open(path, method=method, headers={"Accept": "text/html"})
            if method != "GET" or answer.mimetype != "text/html":
                continue
            pages.append(path)
            html = answer.text
            assert re.search(r"<script(?![^>]*\bsrc=)", html) is None, path
            assert re.search(r"<style|\sstyle=|\son\w+=|javascript:", html) is None, path
        assert {"/", "/projects/7", "/api/docs"} <= set(pages)


def test_a_caller_cannot_forge_lines_of_the_log(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        client.post("/api/projects/7/train%0a2026-01-01 00:00:00 ERROR forged")
        client.get("/versions?project=7%0aERROR forged")
        client.post("/setup", json=setup_body(extra_params={"a\nERROR forged": 1}))
        client.post("/predict", json=predict_body(1) | {"project": "7\nERROR forged"})
    assert caplog.records
    assert not [record for record in caplog.records if "\n" in record.getMessage()]
