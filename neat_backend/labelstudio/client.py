"""Client for the Label Studio API, with only the calls that this backend needs.

The calls use the SDK's connection directly (`transport`): the SDK can't request fewer fields (a page of 1,000 tasks
takes 0.3 s with the needed fields and 1.5 s with all of them), and it does not check the JSON that it receives.

Foreign errors are translated to `errors.LabelStudioError`, by `fetch_bytes` to `ImageError`. Nothing is retried here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from neat_backend.errors import (
    BadRequest,
    LabelStudioError,
    LabelStudioRefused,
    LabelStudioUnavailable,
    NotFoundInLabelStudio,
)
from neat_backend.labelstudio.events import annotation_from_json, task_from_json
from neat_backend.labelstudio.files import Files
from neat_backend.labelstudio.importing import Imports
from neat_backend.labelstudio.paging import IDS_PER_CALL, Page, Pages, Params, task_filter
from neat_backend.labelstudio.transport import Transport
from neat_backend.labelstudio.values import extra_params, timestamp
from neat_backend.records import Annotation, MLBackend, Task

log = logging.getLogger(__name__)

_TASK_FIELDS = "id,data,updated_at,total_annotations,cancelled_annotations"
_ONLY_TASKS = {"fields": "task_only", "include": _TASK_FIELDS, "resolve_uri": "false"}
# The list of fields holds for tasks and for the annotations inside them alike.
_ANNOTATION_FIELDS = "id,annotations,task,completed_by,result,was_cancelled,ground_truth,created_at,updated_at"
_CHANGED_FIELDS = ",".join(dict.fromkeys(f"{_TASK_FIELDS},{_ANNOTATION_FIELDS}".split(",")))
_ONLY_ID = {"include": "id"}  # else the answer to a change counts all tasks: 1.5 s of 1,000,000
_PROJECT_FIELDS = (
    "id,title,label_config,sampling,model_version,created_at,"
    "task_number,total_annotations_number,skipped_annotations_number,maximum_annotations"
)


@dataclass(frozen=True)
class ProjectInfo:
    """A project as Label Studio has it now; comparing the counts shows cheaply whether a change was missed."""

    id: int
    title: str
    label_config: str
    sampling: str
    model_version: str
    task_count: int
    annotation_count: int  # without skips
    skipped_count: int
    created_at: datetime  # no two projects have the same
    opinions: int = 1  # people that a task is given to


class LabelStudioClient:
    """One Label Studio server, as one user. Safe to share between threads."""

    def __init__(
        self, base_url: str, api_key: str, timeout_seconds: float = 30, image_hosts: Iterable[str] = ()
    ) -> None:
        """image_hosts: allowed hosts of images beside Label Studio (NEAT_IMAGE_HOSTS).

        Raises LabelStudioError for an unusable URL, LabelStudioRefused for a key that is missing or expired.
        """
        self._made_with = (base_url, api_key, timeout_seconds, tuple(image_hosts))
        self.transport = Transport(base_url, api_key, timeout_seconds)
        self.files = Files(self.transport, image_hosts)
        self._pages = Pages(self.transport)
        self._imports = Imports(self.transport, self.tasks_with_prediction)

    def __reduce__(self) -> tuple[type[LabelStudioClient], tuple[object, ...]]:
        """Pickles the arguments, the token included; another process connects again."""
        return LabelStudioClient, self._made_with

    def close(self) -> None:
        self.transport.close()
        self.files.close()

    @property
    def base_url(self) -> str:
        """Label Studio's address, without a slash at the end."""
        return self.transport.base_url

    def now(self) -> datetime:
        """Label Studio's clock, to the second; this host's where its answers have no date."""
        return self.transport.now()

    def clock(self) -> datetime | None:
        """As `now`, without a request, from the latest answer; None before an answer with a date."""
        return self.transport.clock()

    # --- who and what

    def whoami(self) -> str:
        """The e-mail address of the user whose key this is; the cheapest check of URL and key."""
        body = self.transport.get("/api/current-user/whoami")
        return self.transport.read(lambda user: str(user["email"]), body)

    def users(self) -> dict[int, str]:
        """The names of Label Studio's users by their number: first and last name, else the user name."""

        def name(user: Mapping[str, Any]) -> str:
            full = f"{user.get('first_name') or ''} {user.get('last_name') or ''}".strip()
            return full or str(user.get("username") or "")

        body = self.transport.get("/api/users/")
        return self.transport.read(lambda: {int(user["id"]): name(user) for user in body})

    def project(self, project: int) -> ProjectInfo:
        body = self.transport.get(f"/api/projects/{project}/", {"include": _PROJECT_FIELDS})
        return self.transport.read(
            lambda: ProjectInfo(
                id=int(body["id"]),
                title=body.get("title") or "",
                label_config=body.get("label_config") or "",
                sampling=body.get("sampling") or "",
                model_version=body.get("model_version") or "",
                task_count=int(body["task_number"] or 0),
                annotation_count=int(body["total_annotations_number"] or 0),
                skipped_count=int(body["skipped_annotations_number"] or 0),
                created_at=timestamp(body["created_at"], "project.created_at"),
                opinions=int(body.get("maximum_annotations") or 1),
            )
        )

    def ml_backends(self, project: int) -> list[MLBackend]:
        """The project's connections to ML backends.

        Read with the model versions: for `/api/ml`, Label Studio first calls /health and /setup of each backend, this
        one included, and waits for those that are down.
        """
        params = {"extended": "true", "include_live_models": "true"}
        body = self.transport.get(f"/api/projects/{project}/model-versions/", params)
        return self.transport.read(lambda answer: [_ml_backend(item) for item in answer["live"]], body)

    def tasks(self, project: int, image_key: str, page_size: int = 1000) -> Iterator[list[Task]]:
        """All tasks of a project by id, page by page.

        Each page requests the ids above the last one, so tasks that are deleted or created meanwhile shift nothing:
        none is missing, none comes twice.
        """
        for page in self._all_pages(project, _ONLY_TASKS, page_size):
            yield self.transport.read(lambda items: [task_from_json(item, image_key) for item in items], page)

    def spread_tasks(self, project: int, image_key: str, page_size: int, places: int) -> list[Task]:
        """So many pages of tasks from all over the project, by id."""
        found = self._pages.spread(project, _ONLY_TASKS, page_size, places)
        return self.transport.read(lambda items: [task_from_json(item, image_key) for item in items], found)

    def annotations(
        self, project: int, tasks: Sequence[int] | None = None, page_size: int = 1000
    ) -> Iterator[list[Annotation]]:
        """All annotations and skips of a project, or those of the given tasks; about 700 a second.

        Asks for the tasks that have an annotation (a skip is one), with only the fields that are read,
        and no predictions. An export is as fast but leaves a file on the server each time.
        """
        params = {"fields": "all", "include": _ANNOTATION_FIELDS, "resolve_uri": "false"}
        if tasks is None:
            annotated = [task_filter("annotations_ids", "empty", "List", False)]
            pages = self._pages.matching(project, params, annotated, page_size)
        else:
            pages = self._pages.of_tasks(project, params, tasks)
        for page in pages:
            # The filter joins tasks with annotations, so a task with two of them is listed twice.
            once = {item["id"]: item for item in page if isinstance(item, dict) and "id" in item}
            yield self.transport.read(_annotations_of, once.values())

    def changed_tasks(
        self, project: int, image_key: str, since: datetime, page_size: int = 500
    ) -> Iterator[tuple[list[Task], list[Annotation]]]:
        """Tasks that changed after `since`, by Label Studio's clock, with all annotations that they have now.

        `updated_at` of a task moves with every change of its data and with every annotation that is created,
        changed or deleted; a task that is gone is not among them.
        """
        params = {"fields": "all", "include": _CHANGED_FIELDS, "resolve_uri": "false"}
        moment = since.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")  # another form is answered by a 500
        changed = [task_filter("updated_at", "greater", "Datetime", moment)]
        for page in self._pages.matching(project, params, changed, page_size):
            once = {item["id"]: item for item in page if isinstance(item, dict) and "id" in item}
            tasks = self.transport.read(
                lambda items: [task_from_json(item, image_key) for item in items], list(once.values())
            )
            yield tasks, self.transport.read(_annotations_of, once.values())

    def task_ids(self, project: int, page_size: int = 10_000) -> Iterator[list[int]]:
        """The ids of all tasks, ascending, page by page."""
        params = {"fields": "task_only", "include": "id", "resolve_uri": "false"}
        for page in self._all_pages(project, params, page_size):
            yield self.transport.read(lambda items: [int(item["id"]) for item in items], page)

    def existing_tasks(self, project: int, tasks: Sequence[int]) -> set[int]:
        """Which of these tasks the project still has."""
        params = {"fields": "task_only", "include": "id", "resolve_uri": "false"}
        return {int(item["id"]) for page in self._pages.of_tasks(project, params, tasks) for item in page}

    # --- predictions

    def import_predictions(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        """Import predictions (Label Studio's JSON: task, result, score, model_version); how many were created.

        It can be fewer than were sent: see `publisher`. Raises PredictionsRejected when a task is gone.
        """
        return self._imports.send(project, predictions)

    def imports_one_by_one(self, project: int) -> bool:
        """Whether each prediction takes a call of its own, 0.1 s; see `importing`."""
        return self._imports.are_one_by_one(project)

    def tasks_with_prediction(self, project: int, version: str, tasks: Sequence[int]) -> set[int]:
        """Which of these tasks have a prediction whose model version contains `version`."""
        if not tasks:
            return set()
        params = {"fields": "task_only", "include": "id", "resolve_uri": "false"}
        filters = [
            task_filter("predictions_model_versions", "contains", "List", [version]),
            task_filter("id", "in", "Number", {"min": min(tasks), "max": max(tasks)}),
        ]
        found = {int(item["id"]) for page in self._pages.matching(project, params, filters, 1000) for item in page}
        return found & set(tasks)

    def model_versions(self, project: int) -> dict[str, int]:
        """Every model version of the project's predictions, with how many it has."""
        body = self.transport.get(f"/api/projects/{project}/model-versions/")
        return self.transport.read(lambda: {str(version): int(count) for version, count in body.items()})

    def prediction_count(self, project: int, version: str) -> int:
        return self.model_versions(project).get(version, 0)

    def predictions_of(self, project: int, version: str, task: int | None = None) -> list[int]:
        """The ids of a version's predictions, of all tasks or of one."""
        of_task = {} if task is None else {"task": task}
        body = self.transport.get("/api/predictions/", {"project": project, **of_task})
        return self.transport.read(
            lambda items: [int(item["id"]) for item in items if item["model_version"] == version], body
        )

    def delete_prediction(self, prediction: int) -> None:
        """Delete a prediction, in 80 ms; no error if it does not exist."""
        with contextlib.suppress(NotFoundInLabelStudio):
            self.transport.send("DELETE", f"/api/predictions/{prediction}/")

    def delete_model_version(self, project: int, version: str) -> None:
        """Delete all predictions of a version, in one transaction, at 10 ms each. For a large one see `Publisher`."""
        path = f"/api/projects/{project}/model-versions/"
        self.transport.send("DELETE", path, {"model_version": version})

    def set_model_version(self, project: int, version: str) -> None:
        """Switch the project to a version. Label Studio refuses one that has no predictions (LabelStudioError)."""
        self.transport.send("PATCH", f"/api/projects/{project}/", {"model_version": version}, _ONLY_ID)

    # --- setting a project up

    def set_sampling(self, project: int, sampling: str) -> None:
        """Set the sampling by Label Studio's name, such as "Uncertainty sampling"."""
        self.transport.send("PATCH", f"/api/projects/{project}/", {"sampling": sampling}, _ONLY_ID)

    def tabs(self, project: int) -> list[dict[str, Any]]:
        """The Data Manager's tabs, in Label Studio's JSON; see tabs.py."""
        views = self.transport.get("/api/dm/views/", {"project": project})
        return self.transport.read(lambda items: [{**item, "id": int(item["id"])} for item in items], views)

    def create_tab(self, project: int, data: Mapping[str, Any]) -> int:
        """Create a tab; returns its id."""
        body = self.transport.send("POST", "/api/dm/views/", {"project": project, "data": dict(data)})
        return self.transport.read(lambda: int(body["id"]))

    def change_tab(self, project: int, tab: int, data: Mapping[str, Any]) -> None:
        """Replace the tab's data."""
        self.transport.send("PATCH", f"/api/dm/views/{tab}/", {"project": project, "data": dict(data)})

    def delete_tab(self, tab: int) -> None:
        self.transport.send("DELETE", f"/api/dm/views/{tab}/")

    def set_column(self, project: int, tasks: Sequence[int], name: str, value: str | float) -> None:
        """Set one key of these tasks' data to the same value, and leave all else in it alone.

        Label Studio's own action does it, so concurrent changes are not lost: its database sets the one key
        (PostgreSQL), or its server reads and writes the data at once (SQLite). It changes no `updated_at` and sends
        no webhook. Deleted tasks are ignored.
        """
        for start in range(0, len(tasks), IDS_PER_CALL):
            included = list(tasks[start : start + IDS_PER_CALL])  # never empty: that would mean all tasks
            body = {
                "selectedItems": {"all": False, "included": included},
                "project": str(project),
                "value_name": name,
                "value_type": "String" if isinstance(value, str) else "Number",
                "value": value,
            }
            answer = self.transport.send(
                "POST", "/api/dm/actions/", body, params={"id": "add_data_field", "project": project}
            )
            self.transport.read(lambda answer: str(answer["detail"]), answer)

    def _webhooks(self, project: int) -> list[dict[str, Any]]:
        hooks = self.transport.get("/api/webhooks/", {"project": project})
        return self.transport.read(lambda items: [{**item, "url": str(item["url"])} for item in items], hooks)

    def delete_webhooks(self, project: int, urls: Collection[str]) -> int:
        """Delete the project's webhooks to these URLs; how many there were."""
        hooks = [hook for hook in self._webhooks(project) if hook["url"].rstrip("/") in urls]
        for hook in hooks:
            with contextlib.suppress(NotFoundInLabelStudio):
                self.transport.send("DELETE", f"/api/webhooks/{hook['id']}/")
        return len(hooks)

    def ensure_webhook(self, project: int, url: str, headers: Mapping[str, str]) -> str:
        """Make sure that the project's events reach `url` with these headers.

        Label Studio makes a webhook itself when a backend is connected, but one without headers. The headers are
        credentials, so no webhook to another URL gets them. "present", "repaired" or "created"; "refused" where there
        is none and Label Studio doesn't take `url`, as with every host name without a dot: see
        `inspection.takes_webhooks`.
        """
        ours = [hook for hook in self._webhooks(project) if hook["url"].rstrip("/") == url.rstrip("/")]
        always = {"is_active": True, "send_payload": True, "send_for_all_actions": True}
        answer = "present"
        for hook in ours:
            change: dict[str, Any] = {name: value for name, value in always.items() if hook.get(name) is not value}
            present = hook.get("headers") or {}
            if any(present.get(name) != value for name, value in headers.items()):
                change["headers"] = {**present, **headers}
            if change:
                self.transport.send("PATCH", f"/api/webhooks/{hook['id']}/", change)
                answer = "repaired"
        if ours:
            return answer
        body = {"project": project, "url": url, "headers": dict(headers), **always}
        try:
            self.transport.send("POST", "/api/webhooks/", body)
        except LabelStudioError as error:
            if isinstance(error, LabelStudioUnavailable | LabelStudioRefused | NotFoundInLabelStudio):
                raise
            log.info("project %d: Label Studio takes no webhook for %s (%s)", project, url, error)
            return "refused"
        return "created"

    # --- files

    def fetch_bytes(self, path_or_url: str, limit_bytes: int, timeout_seconds: float | None = None) -> bytes:
        """The file at a path on Label Studio or at an http(s) URL; see `Files.fetch`. Raises ImageError."""
        return self.files.fetch(path_or_url, limit_bytes, timeout_seconds)

    def _all_pages(self, project: int, params: Params, page_size: int) -> Iterator[Page]:
        """All tasks of a project. An empty answer is checked against its count: all would be taken for deleted."""
        page = None
        for page in self._pages.matching(project, params, [], page_size):
            yield page
        if page is None and (count := self.project(project).task_count):
            raise LabelStudioUnavailable(
                f"Label Studio counts {count} tasks in project {project} and gives none of them"
            )


def _annotations_of(tasks: Iterable[Mapping[str, Any]]) -> list[Annotation]:
    return [annotation_from_json({"task": task["id"], **item}) for task in tasks for item in task["annotations"]]


def _ml_backend(item: Mapping[str, Any]) -> MLBackend:
    try:
        params = extra_params(item.get("extra_params"))
    except BadRequest:  # this version's /setup refuses it: from an earlier version or another backend
        params = {}
    return MLBackend(int(item["id"]), str(item["url"]), params, f"{item['id']} {item['created_at']}")
