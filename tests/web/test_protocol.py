"""The routes that Label Studio calls, with bodies like those that it sends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from flask.testing import FlaskClient

from neat_backend import __version__
from neat_backend.errors import StoreError
from neat_backend.service.service import Service
from neat_backend.store import inbox
from neat_backend.store.database import Database
from tests.serving import (
    CONFIG,
    NO_CHOICES,
    annotation_created,
    make_ready,
    predict_body,
    project_body,
    setup_body,
    task_body,
    tasks_created,
    write_ranking,
)


class TestHealth:
    @pytest.mark.parametrize("path", ["/health", "/"])
    def test_says_that_it_is_up(self, client: FlaskClient, path: str) -> None:
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.json == {"status": "UP", "model_class": "NeatModel", "version": __version__}

    def test_needs_no_database(self, client: FlaskClient, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        def down(*_: object) -> None:
            raise StoreError("gone")

        monkeypatch.setattr(database, "read", down)
        monkeypatch.setattr(database, "begin", down)
        assert client.get("/health").status_code == 200


class TestSetup:
    def test_answers_with_the_model_version(self, client: FlaskClient, service: Service) -> None:
        answer = client.post("/setup", json=setup_body(), base_url="http://localhost:9090")
        assert (answer.status_code, answer.json) == (200, {"model_version": "neat"})
        with service.database.read() as conn:
            from neat_backend.store import projects

            project = projects.get(conn, 7)
        assert project is not None
        assert project.backend_url == "http://localhost:9090"

    def test_a_bad_label_config_is_told_where_people_see_it(self, client: FlaskClient) -> None:
        answer = client.post("/setup", json=setup_body(schema=NO_CHOICES))
        assert answer.status_code == 400
        assert answer.json is not None
        assert answer.json["field"] == "schema"
        assert "Choices" in answer.json["error"]
        # Label Studio shows the status line of an answer, never its body.
        assert "Choices" in answer.status
        assert "\n" not in answer.status
        assert answer.status.isascii()


class TestWebhook:
    def test_is_acknowledged_with_its_event(self, client: FlaskClient) -> None:
        client.post("/setup", json=setup_body())
        answer = client.post("/webhook", json=annotation_created(3))
        assert answer.status_code == 201
        assert answer.json == {"status": "accepted", "event": 2}

    def test_an_unknown_action_is_no_error(self, client: FlaskClient) -> None:
        answer = client.post("/webhook", json={"action": "LABEL_LINK_CREATED", "project": project_body()})
        assert (answer.status_code, answer.json) == (200, {"status": "ignored", "event": 0})

    def test_five_thousand_large_tasks_pass(self, client: FlaskClient, service: Service) -> None:
        body = tasks_created(*range(1, 5001))
        for task in body["tasks"]:
            task["data"]["text"] = "x" * 5000
        assert client.post("/webhook", json=body).status_code == 201
        with service.database.read() as conn:
            assert inbox.depth(conn, 7).count == 2  # pieces of 2,500


class TestPredict:
    def test_answers_from_the_ranking(self, client: FlaskClient, service: Service) -> None:
        client.post("/setup", json=setup_body())
        make_ready(service.database)
        write_ranking(service.settings)
        answer = client.post("/predict", json=predict_body(5, 1))
        assert answer.status_code == 200
        assert answer.json is not None
        assert answer.json["model_version"] == "neat-r000003"
        assert [each["score"] for each in answer.json["results"]] == pytest.approx([0.1, 0.8])
        assert answer.json["results"][0]["result"][0]["value"] == {"choices": ["dog"]}

    def test_no_tasks_no_results(self, client: FlaskClient) -> None:
        assert client.post("/predict", json=predict_body()).json == {"results": [], "model_version": None}


class TestOtherRoutes:
    def test_versions(self, client: FlaskClient) -> None:
        client.post("/setup", json=setup_body())
        for answer in (
            client.get("/versions"),
            client.get("/versions?project=7.1795417238"),
            client.post("/versions", json={"project": "7.1795417238"}),
        ):
            assert (answer.status_code, answer.json) == (200, {"versions": ["neat"]})

    def test_train_as_old_label_studios_ask_for_it(self, client: FlaskClient) -> None:
        client.post("/setup", json=setup_body())
        answer = client.post("/train", json={"project": "7.1", "annotations": [], "label_config": CONFIG, "params": {}})
        assert (answer.status_code, answer.json) == (201, {"event": 2})

    def test_jobs_are_gone(self, client: FlaskClient) -> None:
        assert client.post("/job_status", json={"job": "1"}).status_code == 410


MALFORMED = [b"", b"{", b'{"project": 1', b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 20_000]
WRONG = [b"null", b"[]", b'"text"', b"1", b"{}"]
POSTED = ["/setup", "/webhook", "/predict", "/train", "/versions"]


class TestBadBodies:
    @pytest.mark.parametrize("body", MALFORMED, ids=range(len(MALFORMED)))
    @pytest.mark.parametrize("path", POSTED)
    def test_what_is_not_json_is_refused(self, client: FlaskClient, path: str, body: bytes) -> None:
        answer = client.post(path, data=body, content_type="application/json")
        assert answer.status_code == 400
        assert answer.json is not None
        assert set(answer.json) == {"error", "field"}
        assert "Traceback" not in answer.text

    @pytest.mark.parametrize("body", WRONG)
    @pytest.mark.parametrize("path", POSTED)
    def test_what_is_no_object_or_an_empty_one_is_refused(self, client: FlaskClient, path: str, body: bytes) -> None:
        answer = client.post(path, data=body, content_type="application/json")
        assert answer.status_code == 400

    @pytest.mark.parametrize("path", POSTED)
    def test_another_content_type_is_refused(self, client: FlaskClient, path: str) -> None:
        answer = client.post(path, data="project=1", content_type="application/x-www-form-urlencoded")
        assert answer.status_code == 400
        assert answer.json is not None
        assert "application/json" in answer.json["error"]

    @pytest.mark.parametrize(
        ("path", "body", "field"),
        [
            ("/setup", {**setup_body(), "project": None}, "project"),
            ("/setup", {**setup_body(), "project": "seven"}, "project"),
            ("/setup", {**setup_body(), "schema": 5}, "schema"),
            ("/setup", {**setup_body(), "schema": ""}, "schema"),
            ("/setup", {**setup_body(), "hostname": []}, "hostname"),
            ("/setup", {**setup_body(), "access_token": {}}, "access_token"),
            ("/setup", {**setup_body(), "extra_params": "k=5"}, "extra_params"),
            ("/setup", {**setup_body(), "extra_params": {"k": "many"}}, "extra_params"),
            ("/webhook", {"project": project_body()}, "action"),
            ("/webhook", {"action": ["X"], "project": project_body()}, "action"),
            ("/webhook", {"action": "START_TRAINING"}, "project.id"),
            ("/webhook", {"action": "START_TRAINING", "project": {"id": "x"}}, "project.id"),
            ("/webhook", {"action": "TASKS_CREATED", "project": project_body()}, "tasks"),
            ("/webhook", {**tasks_created(1), "tasks": [{"id": 1, "data": 5}]}, "tasks[0].data"),
            ("/webhook", {"action": "ANNOTATION_CREATED", "project": project_body()}, "annotation"),
            ("/webhook", {**annotation_created(1), "annotation": {"id": -1}}, "annotation.id"),
            ("/predict", {**predict_body(1), "tasks": None}, "tasks"),
            ("/predict", {**predict_body(1), "tasks": [5]}, "tasks[0]"),
            ("/predict", {**predict_body(1), "tasks": [{"id": "x", "data": {}}]}, "tasks[0].id"),
            ("/predict", {**predict_body(1), "project": True}, "project"),
            ("/predict", {"tasks": [{"id": 1, "data": {}}]}, "project"),
            ("/predict", {**predict_body(1), "label_config": 5}, "label_config"),
            ("/train", {"project": 0}, "project"),
            ("/versions", {"project": 2**70}, "project"),
        ],
    )
    def test_a_wrong_field_is_named(self, client: FlaskClient, path: str, body: Mapping[str, Any], field: str) -> None:
        answer = client.post(path, json=body)
        assert answer.status_code == 400
        assert answer.json is not None
        assert answer.json["field"] == field
        assert answer.json["error"]

    @pytest.mark.parametrize("path", ["/train", "/versions"])
    def test_an_unknown_project_is_404(self, client: FlaskClient, path: str) -> None:
        answer = client.post(path, json={"project": 404})
        assert answer.status_code == 404
        assert answer.json is not None
        assert "404" in answer.json["error"]

    @pytest.mark.parametrize("project", ["x", "-1", "1e3"])
    def test_versions_of_nonsense(self, client: FlaskClient, project: str) -> None:
        assert client.get(f"/versions?project={project}").status_code == 400

    def test_a_body_that_is_too_large_is_413(self, client: FlaskClient) -> None:
        answer = client.post("/webhook", data=b" " * (64 * 1024 * 1024 + 1), content_type="application/json")
        assert answer.status_code == 413
        assert answer.json is not None
        assert "64 MiB" in answer.json["error"]

    @pytest.mark.parametrize("text", ["\0", "\ud800", "𝔻og\r\nX-Header: 1", "x" * 100_000])
    def test_odd_text_is_taken_or_refused_never_a_fault(self, client: FlaskClient, text: str) -> None:
        task = task_body(1)
        task["data"]["image"] = text
        bodies = [
            ("/setup", {**setup_body(), "hostname": text}),
            ("/setup", {**setup_body(), "schema": text}),
            ("/setup", {**setup_body(), "extra_params": {text: 1}}),
            ("/webhook", {"action": "TASKS_CREATED", "tasks": [task], "project": project_body(title=text)}),
            ("/webhook", {"action": text, "project": project_body()}),
            ("/predict", {"tasks": [task], "project": "7.1", "label_config": text}),
        ]
        for path, body in bodies:
            assert client.post(path, json=body).status_code < 500, path


class TestStoreErrors:
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/setup", setup_body()),
            ("/webhook", annotation_created(1)),
            ("/predict", predict_body(1)),
            ("/train", {"project": 7}),
        ],
    )
    def test_are_503_with_retry_after(
        self,
        client: FlaskClient,
        database: Database,
        monkeypatch: pytest.MonkeyPatch,
        path: str,
        body: Mapping[str, Any],
    ) -> None:
        def down(*_: object) -> None:
            raise StoreError("The database postgresql://db can't be used: secret words")

        monkeypatch.setattr(database, "read", down)
        monkeypatch.setattr(database, "begin", down)
        answer = client.post(path, json=body)
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        assert "secret" not in answer.text

    def test_our_own_faults_show_no_traceback(
        self, client: FlaskClient, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise ZeroDivisionError("inner words")

        monkeypatch.setattr(service, "projects", broken)
        answer = client.get("/api/projects")
        assert answer.status_code == 500
        assert answer.is_json
        assert "inner words" not in answer.text
