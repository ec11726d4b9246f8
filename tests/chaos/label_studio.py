"""The Label Studio in memory, behind the HTTP routes that this backend calls, for processes of their own.

A real one takes some fifteen annotations a second on two cores, without the backend; a campaign needs thousands,
and compares with every one of them. What it answers has the real one's form (tests/labelstudio/test_client.py holds
the client to that).
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from neat_backend.errors import ImageError, LabelStudioError, NotFoundInLabelStudio, PredictionsRejected
from tests.fake_label_studio import FakeLabelStudio, FakeProject

Json = dict[str, Any]
TOKEN = "0123456789abcdef0123456789abcdef01234567"


class LivingLabelStudio(FakeLabelStudio):
    """By a clock that runs, and that can be set to another time; from many threads under `lock`."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.clock_is_off = timedelta()

    def now(self) -> datetime:
        return datetime.now(timezone.utc) + self.clock_is_off

    def _time(self) -> str:
        return self.now().isoformat()

    def annotate_many(self, answers: list[tuple[int, str]], annotator: int = 1) -> Json:
        """Several tasks in one go, as “create annotations from predictions” does."""
        bodies = [self.annotate(task, choice, annotator) for task, choice in answers]
        return {
            "action": "ANNOTATIONS_CREATED",
            "annotation": [body["annotation"] for body in bodies],
            "task": [body["task"] for body in bodies],
            "project": bodies[-1]["project"],
        }

    def delete_annotations(self, numbers: list[int]) -> Json:
        bodies = [self.delete_annotation(number) for number in numbers]
        return {**bodies[-1], "annotations": [{"id": number} for number in numbers]}

    def import_predictions(self, project: int, predictions: Any) -> int:
        created = super().import_predictions(project, predictions)
        for prediction in predictions:
            for one in (
                self.projects[project].predictions.get(prediction["model_version"], {}).get(prediction["task"], [])
            ):
                one.setdefault("id", self._id())
        return created


class LabelStudioHttp:
    """The server. `hooks`: project → its webhooks, which a sender of events must read each time."""

    def __init__(self, state: LivingLabelStudio) -> None:
        self.state = state
        self.hooks: dict[int, list[Json]] = {}
        self.backends: dict[int, list[Json]] = {}
        self.tabs: dict[int, list[Json]] = {}
        self.requests = 0
        self.on_event: Callable[[Json], None] = lambda body: None  # called with events of the backend's own calls
        handler = type("Handler", (_Handler,), {"studio": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, bytes]:
        """Status and body, of one moment."""
        parts = [part for part in path.split("/") if part]
        with self.state.lock:
            self.requests += 1
            try:
                status, found = self._route(method, parts, query, body)
            except (NotFoundInLabelStudio, ImageError):
                status, found = 404, {"detail": "Not found."}
            except (PredictionsRejected, LabelStudioError) as error:
                status, found = 400, {"detail": str(error)}
            return status, found if isinstance(found, bytes) else b"" if found is None else json.dumps(found).encode()

    def _route(self, method: str, parts: list[str], query: dict[str, str], body: Any) -> tuple[int, Any]:
        if parts[:1] == ["data"]:
            return 200, self.state.fetch_bytes("/" + "/".join(parts), 10**9)
        place = "/".join("ID" if part.isdigit() else part for part in parts)
        numbers = [int(part) for part in parts if part.isdigit()]
        project = numbers[0] if numbers else int(query.get("project") or (body or {}).get("project") or 0)
        routes: dict[tuple[str, str], Callable[[], Any]] = {
            ("GET", "api/version"): lambda: {"release": "1.23.2"},
            ("GET", "api/projects/ID"): lambda: self._project(project),
            ("PATCH", "api/projects/ID"): lambda: self._change(project, body),
            ("GET", "api/tasks"): lambda: self._tasks(project, query),
            ("POST", "api/projects/ID/import/predictions"): lambda: {
                "created": self.state.import_predictions(project, body)
            },
            ("GET", "api/projects/ID/model-versions"): lambda: self._versions(project, query),
            ("DELETE", "api/projects/ID/model-versions"): lambda: self.state.delete_model_version(
                project, body["model_version"]
            ),
            ("GET", "api/predictions"): lambda: list(self._predictions(project)),
            ("DELETE", "api/predictions/ID"): lambda: self._delete_prediction(numbers[0]),
            ("GET", "api/dm/views"): lambda: self.tabs.get(project, []),
            ("POST", "api/dm/views"): lambda: self._add(self.tabs, project, body),
            ("PATCH", "api/dm/views/ID"): lambda: self._edit(self.tabs, numbers[0], body),
            ("DELETE", "api/dm/views/ID"): lambda: self._remove(self.tabs, numbers[0]),
            ("GET", "api/webhooks"): lambda: self.hooks.get(project, []),
            ("POST", "api/webhooks"): lambda: self._add(self.hooks, project, body),
            ("PATCH", "api/webhooks/ID"): lambda: self._edit(self.hooks, numbers[0], body),
            ("DELETE", "api/webhooks/ID"): lambda: self._remove(self.hooks, numbers[0]),
        }
        if (method, place) not in routes:
            raise NotFoundInLabelStudio(f"{method} {place}")
        answer = routes[method, place]()
        return (201 if method == "POST" else 200), answer

    # connecting, as a person does it

    def connect_backend(self, project: int, url: str) -> None:
        """What Label Studio does after it has called /setup: a webhook for everything, without headers."""
        with self.state.lock:
            self._add(self.backends, project, {"url": url, "extra_params": {}, "created_at": self.state._time()})
            always = {"is_active": True, "send_payload": True, "send_for_all_actions": True}
            self._add(self.hooks, project, {"url": f"{url}/webhook", "headers": {}, **always})

    # underneath

    def _there(self, project: int) -> FakeProject:
        if project not in self.state.projects:
            raise NotFoundInLabelStudio(f"project {project}")
        return self.state.projects[project]

    def _project(self, project: int) -> Json:
        info, there = self.state.project(project), self._there(project)
        return {
            "id": info.id,
            "title": info.title,
            "label_config": info.label_config,
            "sampling": info.sampling,
            "model_version": info.model_version,
            "task_number": info.task_count,
            "updated_at": there.updated_at,
            "created_at": there.created_at,
            "total_annotations_number": info.annotation_count,
            "skipped_annotations_number": info.skipped_count,
        }

    def _change(self, project: int, body: Json) -> Json:
        if "model_version" in body:
            self.state.set_model_version(project, body["model_version"])
        if "sampling" in body:
            self.state.set_sampling(project, body["sampling"])
        self.on_event(self.state._event("PROJECT_UPDATED", self._there(project)))
        return self._project(project)

    def _tasks(self, project: int, query: dict[str, str]) -> Json:
        there = self._there(project)
        wanted = json.loads(query["query"])
        found = set(there.tasks)
        for item in wanted["filters"]["items"]:
            column, value = item["filter"].removeprefix("filter:tasks:"), item["value"]
            match column, item["operator"]:
                case "id", "greater":
                    found = {n for n in found if n > value}
                case "id", "in":
                    found = {n for n in found if value["min"] <= n <= value["max"]}
                case "updated_at", "greater":
                    since = datetime.fromisoformat(value.replace("Z", "+00:00"))
                    found = {n for n in found if datetime.fromisoformat(there.tasks[n]["updated_at"]) > since}
                case "annotations_ids", "empty":
                    found &= {a["task"] for a in there.annotations.values()}
                case "predictions_model_versions", "contains":
                    found &= set(there.predictions.get(value[0], {}))
                case _:
                    raise NotFoundInLabelStudio(f"filter {item}")
        if "selectedItems" in wanted:
            found &= set(wanted["selectedItems"]["included"])
        numbers = sorted(found)[: int(query["page_size"])]
        fields = query["include"].split(",")
        answers: dict[int, list[Json]] = {}
        if "annotations" in fields:
            for _, annotation in sorted(there.annotations.items()):
                answers.setdefault(annotation["task"], []).append(annotation)
        page = [
            {k: v for k, v in {**there.tasks[n], "annotations": answers.get(n, [])}.items() if k in fields}
            for n in numbers
        ]
        return {"tasks": page, "total": len(found)}

    def _versions(self, project: int, query: dict[str, str]) -> Json:
        there = self._there(project)
        counts = {v: sum(map(len, found.values())) for v, found in there.predictions.items() if found}
        if query.get("extended") != "true":
            return counts
        static = [{"model_version": version, "count": count} for version, count in counts.items()]
        live = self.backends.get(project, []) if query.get("include_live_models") == "true" else None
        return {"static": static, "live": live}

    def _predictions(self, project: int) -> Iterator[Json]:
        for version, found in self._there(project).predictions.items():
            for task, predictions in found.items():
                yield from ({"id": p["id"], "task": task, "model_version": version} for p in predictions)

    def _delete_prediction(self, number: int) -> None:
        for project in self.state.projects.values():
            for found in project.predictions.values():
                for task, predictions in list(found.items()):
                    left = [p for p in predictions if p["id"] != number]
                    if len(left) < len(predictions):
                        found[task] = left
                        if not left:
                            del found[task]
                        return
        raise NotFoundInLabelStudio(f"prediction {number}")

    def _add(self, things: dict[int, list[Json]], project: int, body: Json) -> Json:
        made = {**body, "id": self.state._id()}
        things.setdefault(project, []).append(made)
        return made

    def _edit(self, things: dict[int, list[Json]], number: int, body: Json) -> Json:
        for thing in (thing for found in things.values() for thing in found):
            if thing["id"] == number:
                thing |= body
                return thing
        raise NotFoundInLabelStudio(f"thing {number}")

    def _remove(self, things: dict[int, list[Json]], number: int) -> None:
        for found in things.values():
            found[:] = [thing for thing in found if thing["id"] != number]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients are killed in the middle of a request here; that is not worth a word."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    studio: LabelStudioHttp

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        if self.headers.get("Authorization") != f"Token {TOKEN}":
            status, content = 401, b'{"detail": "Invalid token."}'
        else:
            status, content = self.studio.answer(self.command, parts.path, query, body)
        with contextlib.suppress(OSError):  # clients are killed here
            self.send_response_only(status)
            self.send_header("Date", format_datetime(self.studio.state.now(), usegmt=True))
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = _serve

    def log_message(self, *_: Any) -> None:
        """Quiet."""
