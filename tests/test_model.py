"""NeatModel in label-studio-ml's servers: the real one of 1.0.9, and a stand-in with the 2.x signatures."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
from flask import Flask, jsonify, request
from flask.testing import FlaskClient
from label_studio_ml.exceptions import exception_handler

from neat_backend.errors import StoreError
from neat_backend.records import SYNC, TRAIN, Event
from neat_backend.service.service import Service
from neat_backend.settings import Settings
from neat_backend.store import inbox
from tests.serving import (
    CONFIG,
    NO_CHOICES,
    annotation_created,
    make_ready,
    predict_body,
    project_body,
    setup_body,
    write_ranking,
)
from tests.waiting import until

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEAT_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("NEAT_PREDICT_WAIT", "0.2")
    monkeypatch.setenv("NEAT_PREFILL", "classifier")
    monkeypatch.syspath_prepend(str(ROOT))


def load() -> types.ModuleType:
    """model.py anew, over whichever label_studio_ml is in place."""
    sys.modules.pop("model", None)
    return importlib.import_module("model")


def events(service: Service, project: int = 7) -> list[Event]:
    with service.database.read() as conn:
        return inbox.pending(conn, project)


class Contract:
    """What must hold in every server; `client` and `model` come from the subclasses."""

    def test_setup_connects_the_project(self, client: FlaskClient, model: types.ModuleType) -> None:
        answer = client.post("/setup", json=setup_body(extra_params={"k": 5}), base_url="http://neat:9090")
        assert answer.status_code == 200
        status = model.service().status(7)
        assert status["state"] == "connecting"
        assert [event.action for event in events(model.service())] == [SYNC]
        with model.service().database.read() as conn:
            from neat_backend.store import projects

            project = projects.get(conn, 7)
        assert project is not None
        assert (project.backend_url, project.extra_params) == ("http://neat:9090", {"k": 5})
        assert project.label_studio_url == "http://localhost:8080"

    def test_predict_gives_one_answer_per_task_in_order(self, client: FlaskClient, model: types.ModuleType) -> None:
        client.post("/setup", json=setup_body())
        make_ready(model.service().database)
        write_ranking(model.service().settings)
        answer = client.post("/predict", json=predict_body(1, 5)).json
        assert answer is not None
        assert [each["score"] for each in answer["results"]] == pytest.approx([0.8, 0.1])
        assert answer["results"][1]["result"][0]["value"] == {"choices": ["dog"]}
        assert {each["model_version"] for each in answer["results"]} == {"neat-r000003"}

    def test_a_predict_without_project_is_answered_by_the_tasks_own(
        self, client: FlaskClient, model: types.ModuleType
    ) -> None:
        client.post("/setup", json=setup_body())
        make_ready(model.service().database)
        write_ranking(model.service().settings)
        body = predict_body(5)
        del body["project"]
        answer = client.post("/predict", json=body)
        assert (answer.status_code, answer.json["results"][0]["score"]) == (200, pytest.approx(0.1))  # type: ignore[index]

    @pytest.mark.parametrize(
        ("path", "body", "words"),
        [
            ("/predict", {"tasks": [{"id": 1, "data": {}}], "label_config": CONFIG}, "names the project"),
            ("/predict", {"tasks": "1", "project": "7.1", "label_config": CONFIG}, "must be a list of tasks"),
            ("/setup", setup_body(schema=NO_CHOICES), "Choices"),
            ("/setup", setup_body(schema="<View"), "XML"),
            ("/setup", setup_body(extra_params={"k": 0}), "NEAT_K=0"),
        ],
    )
    def test_what_can_not_be_answered_is_refused_in_words_without_a_traceback(
        self, client: FlaskClient, path: str, body: dict[str, Any], words: str
    ) -> None:
        client.post("/setup", json=setup_body())
        answer = client.post(path, json=body)
        assert answer.status_code == 400
        assert words in answer.json["detail"]  # type: ignore[index]
        assert "Traceback" not in answer.text

    def test_a_database_that_is_away_is_said_without_a_traceback(
        self, client: FlaskClient, model: types.ModuleType, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def away(*_: object) -> None:
            raise StoreError("the disk is full")

        client.post("/setup", json=setup_body())
        monkeypatch.setattr(model.service(), "predict", away)
        answer = client.post("/predict", json=predict_body(5))
        assert (answer.status_code, "database" in answer.text, "Traceback" in answer.text) == (503, True, False)

    def test_looking_at_predictions_connects_nothing_again(self, client: FlaskClient, model: types.ModuleType) -> None:
        client.post("/setup", json=setup_body())
        before = len(events(model.service()))
        client.post("/predict", json=predict_body(5))
        assert len(events(model.service())) == before


class TestRelease109(Contract):
    """The server of PyPI's label-studio-ml 1.0.9, on today's Flask."""

    @pytest.fixture
    def model(self) -> types.ModuleType:
        return load()

    @pytest.fixture
    def client(self, model: types.ModuleType, tmp_path: Path) -> FlaskClient:
        from label_studio_ml.api import init_app

        app: Flask = init_app(model_class=model.NeatModel, model_dir=str(tmp_path / "jobs"))
        return app.test_client()

    def test_health(self, client: FlaskClient) -> None:
        assert client.get("/health").json["status"] == "UP"  # type: ignore[index]

    @pytest.mark.parametrize(
        ("event", "data"),
        [
            ("ANNOTATION_CREATED", annotation_created(3)),
            ("ANNOTATIONS_DELETED", {"annotations": [{"id": 5}], "project": project_body()}),
            ("START_TRAINING", {"project": project_body()}),
            ("PROJECT_UPDATED", {"project": project_body()}),
        ],
    )
    def test_a_job_files_the_event(
        self, client: FlaskClient, model: types.ModuleType, tmp_path: Path, event: str, data: dict[str, Any]
    ) -> None:
        from label_studio_ml.model import SimpleJobManager

        data = {key: value for key, value in data.items() if key != "action"}
        # What the server runs in a process of its own for each webhook.
        (tmp_path / "jobs").mkdir(exist_ok=True)
        SimpleJobManager(model_dir=str(tmp_path / "jobs")).job(model.NeatModel, event, data, "1795417238")
        assert [each.action for each in events(model.service())] == [event]

    def test_a_webhook_arrives_through_its_process(self, client: FlaskClient, model: types.ModuleType) -> None:
        assert client.post("/webhook", json=annotation_created(3)).status_code == 201
        until(lambda: events(model.service()))  # its process imports PyTorch first
        assert [each.action for each in events(model.service())] == ["ANNOTATION_CREATED"]

    def test_its_old_train_route_asks_for_a_round(self, client: FlaskClient, model: types.ModuleType) -> None:
        body = {"project": "7.1", "label_config": CONFIG, "annotations": [{"id": 1, "data": {}}], "params": {}}
        client.post("/train", json=body)  # in its default mode 1.0.9 answers 500 whatever fit() did
        assert [each.action for each in events(model.service())] == [TRAIN]

    def test_can_be_made_without_anything(self, model: types.ModuleType) -> None:
        made = model.NeatModel()
        assert made.fit((), event="START_TRAINING", data={"project": project_body()}) is None
        assert [each.action for each in events(model.service())] == [TRAIN]


@exception_handler
def answered(do: Callable[[], Any]) -> Any:
    """As both lines' routes guard themselves: 500 and a traceback for what they don't know."""
    return do()


class NewBase:
    """A stand-in for the 2.x base class: its signatures, and that it calls setup() itself."""

    cache: dict[tuple[str, str], str] = {}  # noqa: RUF012 - as there

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            fromstring(label_config)  # raises for what is no XML
            self.set("label_config", label_config)
        self.setup()

    def setup(self) -> None: ...

    def set_extra_params(self, extra_params: Any) -> None:
        assert isinstance(extra_params, str)

    def set(self, key: str, value: str) -> None:
        self.cache[self.project_id, key] = value

    def get(self, key: str) -> str:
        return self.cache[self.project_id, key]


class Test2x(Contract):
    """The routes of the 2.x line, as its server calls a model."""

    @pytest.fixture
    def model(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
        package, module = types.ModuleType("label_studio_ml"), types.ModuleType("label_studio_ml.model")
        module.LabelStudioMLBase = NewBase  # type: ignore[attr-defined]
        exceptions = importlib.import_module("label_studio_ml.exceptions")  # the same in both lines
        monkeypatch.setitem(sys.modules, "label_studio_ml", package)
        monkeypatch.setitem(sys.modules, "label_studio_ml.exceptions", exceptions)
        monkeypatch.setitem(sys.modules, "label_studio_ml.model", module)
        yield load()
        sys.modules.pop("model", None)

    @pytest.fixture
    def client(self, model: types.ModuleType) -> FlaskClient:
        app = Flask("stand-in")

        @app.post("/setup")
        def setup() -> Any:
            return answered(connected)

        def connected() -> Any:
            body = request.json
            made = model.NeatModel(project_id=body["project"].split(".")[0], label_config=body["schema"])
            if body["extra_params"]:
                made.set_extra_params(body["extra_params"])
            return jsonify(model_version=made.get("model_version"))

        @app.post("/predict")
        def predict() -> Any:
            return answered(predicted)

        def predicted() -> Any:
            body = request.json
            project = str(body.get("project")).split(".")[0]
            made = model.NeatModel(project_id=project, label_config=body.get("label_config"))
            return jsonify(results=made.predict(body["tasks"], context={}, login=None, password=None))

        @app.post("/webhook")
        def webhook() -> Any:
            body = request.json
            event = body.pop("action")
            made = model.NeatModel(str(body["project"]["id"]), label_config=body["project"]["label_config"])
            return jsonify(result=made.fit(event, body)), 201

        return app.test_client()

    def test_setup_answers_with_the_version(self, client: FlaskClient, model: types.ModuleType) -> None:
        client.post("/setup", json=setup_body())
        make_ready(model.service().database)
        assert client.post("/setup", json=setup_body()).json == {"model_version": "neat-r000003"}

    @pytest.mark.parametrize("body", [annotation_created(3), {"action": "START_TRAINING", "project": project_body()}])
    def test_a_webhook_files_the_event(
        self, client: FlaskClient, model: types.ModuleType, body: dict[str, Any]
    ) -> None:
        assert client.post("/webhook", json=body).status_code == 201
        assert [each.action for each in events(model.service())] == [body["action"]]

    def test_a_webhook_that_is_none_is_refused_in_words(self, client: FlaskClient) -> None:
        body = annotation_created(3)
        body["annotation"] = "none"
        answer = client.post("/webhook", json=body)
        assert answer.status_code == 400
        assert "annotation" in answer.text

    def test_the_project_may_come_as_label_studio_names_it(self, model: types.ModuleType) -> None:
        made = model.NeatModel("7.1795417238", label_config=CONFIG)
        made.fit("START_TRAINING", {})
        assert [each.project for each in events(model.service())] == [7]


def test_the_service_takes_its_settings_from_the_environment(tmp_path: Path) -> None:
    assert load().service().settings == Settings.from_env()
