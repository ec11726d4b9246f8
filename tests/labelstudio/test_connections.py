"""A project's connections and webhooks, and events of its settings: a real Label Studio."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from neat_backend import connection
from neat_backend.demo.label_studio import Annotator
from neat_backend.errors import Disconnected, Replaced
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.labelstudio.events import parse_setup
from neat_backend.labelstudio.publisher import Prediction, Publisher
from neat_backend.records import Project
from neat_backend.store import projects
from tests.labelstudio.server import CONFIG
from tests.labelstudio.test_client import LABELS, add_tasks
from tests.waiting import until


class Heard:
    """An ML backend that does nothing but listen."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.calls.append((self.path, json.loads(body) if body else None))
                answer = json.dumps({"status": "UP", "model_version": "v"}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def events(self, action: str) -> list[dict[str, Any]]:
        return [body for path, body in self.calls if path == "/webhook" and body["action"] == action]


@pytest.fixture
def backend() -> Iterator[Heard]:
    heard = Heard()
    yield heard
    heard.close()


@pytest.fixture
def project(person: Annotator) -> Iterator[int]:
    number = person.create_project("connections", CONFIG)
    yield number
    person.delete_project(number)


def hooks(client: LabelStudioClient, project: int) -> list[str]:
    return [hook["url"] for hook in client._webhooks(project)]


def test_connections_are_listed_without_a_call_to_any_and_outlived_by_their_webhooks(
    client: LabelStudioClient, person: Annotator, project: int, backend: Heard
) -> None:
    assert client.ml_backends(project) == []
    first = person.connect_backend(project, backend.url, extra_params={"k": 5})
    setups = [parse_setup(body) for path, body in backend.calls if path == "/setup"]
    assert [(each.project, each.extra_params) for each in setups] == [(project, {"k": 5})] * 2
    calls = len(backend.calls)
    (listed,) = client.ml_backends(project)
    assert (listed.id, listed.url, listed.extra_params) == (first, backend.url, {"k": 5})
    assert len(backend.calls) == calls, "GET /api/ml calls /health and /setup of each"
    person.call("GET", f"/api/ml?project={project}")
    assert len(backend.calls) > calls

    person.call("DELETE", f"/api/ml/{first}")
    assert client.ml_backends(project) == []
    assert hooks(client, project) == [f"{backend.url}/webhook"]
    person.connect_backend(project, backend.url)
    (again,) = client.ml_backends(project)
    assert (again.url, again.extra_params) == (backend.url, {})
    assert again.key != listed.key

    assert client.delete_webhooks(project, {"http://elsewhere/webhook"}) == 0
    assert client.delete_webhooks(project, {f"{backend.url}/webhook"}) == 1
    assert hooks(client, project) == []


def test_a_project_is_known_by_the_moment_it_was_made_and_by_its_connection(
    client: LabelStudioClient, person: Annotator, project: int, backend: Heard
) -> None:
    reported_project = person.call("GET", f"/api/projects/{project}/")
    info = client.project(project)
    assert reported_project["created_at"].startswith(info.created_at.strftime("%Y-%m-%dT%H:%M:%S.%f"))
    candidate = Project(project, backend_url=backend.url, state=projects.DISCONNECTED)
    with pytest.raises(Disconnected, match=f"neat-backend forget {project}"):
        connection.look(client, candidate)
    person.connect_backend(project, backend.url)
    assert connection.look(client, candidate) == (client.project(project), client.ml_backends(project)[0])
    before = client.project(person.create_project("another", CONFIG))
    person.delete_project(before.id)
    with pytest.raises(Replaced):
        connection.look(client, Project(project, backend_url=backend.url, created_at=before.created_at))
    with pytest.raises(Disconnected, match="deleted"):
        connection.look(client, Project(before.id, backend_url=backend.url))


def test_an_event_tells_that_hidden_predictions_have_lost_their_version(
    client: LabelStudioClient, person: Annotator, project: int, backend: Heard
) -> None:
    person.connect_backend(project, backend.url)
    tasks = add_tasks(person, project, 3)
    Publisher(client, project, LABELS).import_revision("neat-r000001", [Prediction(task, 0.5) for task in tasks])
    client.set_model_version(project, "neat-r000001")
    until(lambda: backend.events("PROJECT_UPDATED")[-1]["project"]["model_version"] == "neat-r000001")
    person.call("PATCH", f"/api/projects/{project}/", {"title": "other", "show_collab_predictions": False})
    until(lambda: backend.events("PROJECT_UPDATED")[-1]["project"]["model_version"] == "")
    assert client.project(project).model_version == ""
    client.set_model_version(project, "neat-r000001")  # which our own change does not undo
    until(lambda: backend.events("PROJECT_UPDATED")[-1]["project"]["model_version"] == "neat-r000001")
    assert client.project(project).model_version == "neat-r000001"
