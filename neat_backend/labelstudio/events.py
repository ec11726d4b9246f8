"""Requests of Label Studio as records: webhooks, /setup and /predict.

Two steps. The web process calls `parse_*`: types are checked, bulk is left out, nothing is looked up.
The worker calls `changes` on the stored event, once it knows which key of a task's data is the image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from neat_backend.errors import BadRequest
from neat_backend.labelstudio.values import (
    annotator_of,
    bare_id,
    check_times,
    count_of,
    extra_params,
    id_of,
    items_of,
    object_of,
    project_id,
    text_of,
    timestamp,
)
from neat_backend.records import COMPARE, RETRY_IMAGES, SYNC, TRAIN, Annotation, Choice, Event, Task

PIECE = 2500  # tasks or annotations that one event is about

# Label Studio names the plural where one event is about many, not always consistently: take both.
_ANNOTATIONS = {"ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_UPDATED"}
_ANNOTATIONS_DELETED = {"ANNOTATION_DELETED", "ANNOTATIONS_DELETED"}
_TASKS = {"TASK_CREATED", "TASKS_CREATED", "TASK_UPDATED", "TASKS_UPDATED"}
_TASKS_DELETED = {"TASK_DELETED", "TASKS_DELETED"}
_PROJECT = {"PROJECT_CREATED", "PROJECT_UPDATED"}
_OURS = {SYNC, COMPARE, TRAIN, RETRY_IMAGES}
KNOWN_ACTIONS = frozenset(_ANNOTATIONS | _ANNOTATIONS_DELETED | _TASKS | _TASKS_DELETED | _PROJECT | _OURS)

# What is kept of each object; the rest is bulk.
_PROJECT_KEYS = (
    "id",
    "title",
    "label_config",
    "sampling",
    "model_version",
    "created_at",
    "updated_at",
    "task_number",
    "total_annotations_number",
    "skipped_annotations_number",
)
_TASK_KEYS = ("id", "data", "project", "created_at", "updated_at", "total_annotations", "cancelled_annotations")
_ANNOTATION_KEYS = ("id", "task", "was_cancelled", "ground_truth", "created_at", "updated_at")


@dataclass(frozen=True)
class Webhook:
    """A webhook's body, checked and trimmed; `payload` keeps the body's own shape and names."""

    action: str
    project: int  # 0 only where `known` is false and the body names none
    payload: dict[str, Any]
    known: bool  # False = an action that this backend has no use for


@dataclass(frozen=True)
class Setup:
    """The body of /setup."""

    project: int
    schema: str  # the label config
    hostname: str
    access_token: str
    extra_params: dict[str, Any]


@dataclass(frozen=True)
class PredictRequest:
    """The body of /predict."""

    project: int  # 0 = the body names none
    label_config: str
    tasks: list[dict[str, Any]]  # as sent; "id" is always there, None where none was sent


@dataclass(frozen=True)
class ProjectFields:
    """The project's settings as an event carries them."""

    title: str
    label_config: str
    sampling: str
    model_version: str | None  # None: the event does not say
    updated_at: datetime  # of two events, the later one is right


@dataclass(frozen=True)
class Changes:
    """What one event changes.

    tasks: upserts. `has_annotations` is set only where no event has the annotations (an import of
        tasks together with them): read those tasks' annotations.
    project: comes with nearly every event, changed or not.
    """

    tasks: tuple[Task, ...] = ()
    deleted_tasks: tuple[int, ...] = ()
    annotations: tuple[Annotation, ...] = ()
    deleted_annotations: tuple[int, ...] = ()
    project: ProjectFields | None = None
    train: bool = False
    sync: bool = False
    compare: bool = False
    retry_images: bool = False


Timed = TypeVar("Timed", Task, Annotation, ProjectFields)


def parse_webhook(body: Any) -> Webhook:
    """Check a webhook's body. Raises BadRequest naming the field; unknown actions are let through."""
    body = object_of(body, "")
    action = body.get("action")
    if not isinstance(action, str) or not action:
        raise BadRequest("the webhook names no action", "action")
    payload: dict[str, Any] = {}
    if action in _ANNOTATIONS:
        payload |= _trimmed(body, ("annotation", "annotations"), _trim_annotation)
        payload |= _trimmed(body, ("task", "tasks"), _trim_task, required=False)
    elif action in _ANNOTATIONS_DELETED:
        payload |= _trimmed(body, ("annotations", "annotation"), _trim_id)
    elif action in _TASKS:
        payload |= _trimmed(body, ("tasks", "task"), _trim_task)
    elif action in _TASKS_DELETED:
        payload |= _trimmed(body, ("tasks", "task"), _trim_id)
    known = action in KNOWN_ACTIONS
    project = _webhook_project(body, payload)
    if project is None and known:
        raise BadRequest(
            "the webhook names no project; switch on “Send payload” for it in Label Studio's settings", "project.id"
        )
    if isinstance(body.get("project"), Mapping):
        payload["project"] = _trim_project(body["project"])
    return Webhook(action, project or 0, payload, known)


def pieces(payload: Mapping[str, Any], size: int = PIECE) -> list[dict[str, Any]]:
    """Split a webhook's payload into several of at most `size` tasks and annotations, in order.

    Each can be applied by itself: other writers would wait a minute for a transaction that deletes 1,000,000 tasks.
    """
    lists = {name: value for name, value in payload.items() if isinstance(value, list)}
    count = max([1, *(math.ceil(len(value) / size) for value in lists.values())])
    parts = [{name: value[at * size : (at + 1) * size] for name, value in lists.items()} for at in range(count)]
    rest = {name: value for name, value in payload.items() if name not in lists}
    return [rest | parts[0], *parts[1:]]


def parse_setup(body: Any) -> Setup:
    """Check the body of /setup. Raises BadRequest naming the field."""
    body = object_of(body, "")
    return Setup(
        project=project_id(body.get("project"), "project"),
        schema=text_of(body.get("schema"), "schema"),
        hostname=text_of(body.get("hostname"), "hostname"),
        access_token=text_of(body.get("access_token"), "access_token"),
        extra_params=extra_params(body.get("extra_params")),
    )


def parse_predict(body: Any) -> PredictRequest:
    """Check the body of /predict. Raises BadRequest naming the field."""
    body = object_of(body, "")
    tasks = body.get("tasks")
    if not isinstance(tasks, list):
        raise BadRequest("“tasks” must be a list of tasks", "tasks")
    checked = []
    for number, task in enumerate(tasks):
        path = f"tasks[{number}]"
        task = object_of(task, path)
        object_of(task.get("data"), f"{path}.data")
        number_id = task.get("id")
        checked.append({**task, "id": None if number_id is None else id_of(number_id, f"{path}.id")})
    project = body.get("project")
    return PredictRequest(
        project=0 if project in (None, "") else project_id(project, "project"),
        label_config=text_of(body.get("label_config"), "label_config"),
        tasks=checked,
    )


def changes(event: Event, image_key: str) -> Changes:
    """The changes of an event with a payload of `parse_webhook`. Raises BadRequest for another payload."""
    payload, action = event.payload, event.action
    fields = None
    if isinstance(payload.get("project"), Mapping) and "label_config" in payload["project"]:
        fields = project_from_json(payload["project"])
    tasks: tuple[Task, ...] = ()
    annotations: tuple[Annotation, ...] = ()
    deleted_tasks: tuple[int, ...] = ()
    deleted_annotations: tuple[int, ...] = ()
    if action in _ANNOTATIONS:
        annotations = tuple(annotation_from_json(item) for item in items_of(payload, "annotation", "annotations"))
        # The event has these tasks' annotations itself, so nothing needs to be read.
        nested = {item.get("id"): item for item in items_of(payload, "task", "tasks")}
        tasks = tuple(task_from_json({**item, **_NO_COUNTS}, image_key) for item in nested.values())
    elif action in _ANNOTATIONS_DELETED:
        deleted_annotations = tuple(
            id_of(item["id"], "annotations.id") for item in items_of(payload, *_BOTH_ANNOTATIONS)
        )
    elif action in _TASKS:
        tasks = tuple(task_from_json(item, image_key) for item in items_of(payload, "tasks", "task"))
    elif action in _TASKS_DELETED:
        deleted_tasks = tuple(id_of(item["id"], "tasks.id") for item in items_of(payload, "tasks", "task"))
    return Changes(
        tasks=tasks,
        deleted_tasks=deleted_tasks,
        annotations=annotations,
        deleted_annotations=deleted_annotations,
        project=fields,
        train=action == TRAIN,
        sync=action == SYNC,
        compare=action == COMPARE,
        retry_images=action == RETRY_IMAGES,
    )


def no_later_than(change: Changes, limit: datetime) -> Changes:
    """The change without times after `limit`, which lie in the future of Label Studio's clock.

    Such a time would count as newer than all changes until then.
    """

    def timed(item: Timed) -> Timed:
        return item if item.updated_at <= limit else replace(item, updated_at=limit)

    return replace(
        change,
        tasks=tuple(map(timed, change.tasks)),
        annotations=tuple(map(timed, change.annotations)),
        project=None if change.project is None else timed(change.project),
    )


_BOTH_ANNOTATIONS = ("annotations", "annotation")
_MISSING = object()
_NO_COUNTS = {"total_annotations": 0, "cancelled_annotations": 0}


def task_from_json(item: Mapping[str, Any], image_key: str) -> Task:
    """A task as the API or a webhook gives it. Raises BadRequest naming the field."""
    item = object_of(item, "task")
    counted = count_of(item.get("total_annotations")) + count_of(item.get("cancelled_annotations"))
    return Task(
        id=id_of(item.get("id"), "task.id"),
        image=image_reference(item.get("data"), image_key),
        updated_at=timestamp(item.get("updated_at") or item.get("created_at"), "task.updated_at"),
        has_annotations=counted > 0,
    )


def annotation_from_json(item: Mapping[str, Any]) -> Annotation:
    """An annotation as the API or a webhook gives it. Raises BadRequest naming the field."""
    item = object_of(item, "annotation")
    return Annotation(
        id=id_of(item.get("id"), "annotation.id"),
        task=id_of(bare_id(item.get("task")), "annotation.task"),
        annotator=annotator_of(item.get("completed_by"), "annotation.completed_by"),
        choices=_choices(item.get("result")),
        was_cancelled=item.get("was_cancelled") is True,
        ground_truth=item.get("ground_truth") is True,
        updated_at=timestamp(item.get("updated_at") or item.get("created_at"), "annotation.updated_at"),
    )


def project_from_json(item: Mapping[str, Any]) -> ProjectFields:
    """A project's settings as the API or a webhook gives them. Raises BadRequest naming the field."""
    item = object_of(item, "project")
    return ProjectFields(
        title=text_of(item.get("title"), "project.title"),
        label_config=text_of(item.get("label_config"), "project.label_config"),
        sampling=text_of(item.get("sampling"), "project.sampling"),
        model_version=text_of(item["model_version"], "project.model_version") if "model_version" in item else None,
        updated_at=timestamp(item.get("updated_at"), "project.updated_at"),
    )


def image_reference(data: Any, image_key: str) -> str | None:
    """The image's reference in a task's data, which may be anything.

    "" where it is no text, None where the data lacks the key.

    image_key: a key, or a path such as `photo.url` or `photos[0]`. A file that was uploaded before the
    project had a label config lies under `$undefined$`, and Label Studio shows it for any key.
    """
    if not isinstance(data, Mapping):
        return None
    value: Any = data.get(image_key, _MISSING)
    if value is _MISSING:
        value = data
        for part in re.findall(r"[^.\[\]]+", image_key):
            if isinstance(value, Mapping):
                value = value.get(part, _MISSING)
            elif isinstance(value, list) and re.fullmatch("[0-9]{1,9}", part) and int(part) < len(value):
                value = value[int(part)]
            else:
                value = _MISSING
    if value is _MISSING or value is None:
        value = data.get("$undefined$", value)
    if value is _MISSING:
        return None
    return value if isinstance(value, str) else ""


def _trimmed(
    body: Mapping[str, Any], names: tuple[str, str], trim: Callable[[Any, str], dict[str, Any]], required: bool = True
) -> dict[str, Any]:
    """The first of `names` that the body has, trimmed: an object or a list of them, as it came."""
    for name in names:
        value = body.get(name)
        if isinstance(value, list):
            return {name: [trim(item, f"{name}[{number}]") for number, item in enumerate(value)]}
        if value is not None:
            return {name: trim(value, name)}
    if required:
        raise BadRequest(
            f"the webhook has no “{names[0]}”; switch on “Send payload” for it in Label Studio's settings", names[0]
        )
    return {}


def _trim_annotation(item: Any, path: str) -> dict[str, Any]:
    item = object_of(item, path)
    kept = {key: item[key] for key in _ANNOTATION_KEYS if key in item}
    kept["id"] = id_of(item.get("id"), f"{path}.id")
    kept["task"] = id_of(bare_id(item.get("task")), f"{path}.task")
    kept["completed_by"] = annotator_of(item.get("completed_by"), f"{path}.completed_by")
    kept["result"] = _trim_results(item.get("result"))
    check_times(item, path)
    for key in ("was_cancelled", "ground_truth"):
        if not isinstance(item.get(key), bool | None):
            raise BadRequest(f"{path}.{key} must be true or false", f"{path}.{key}")
    return kept


def _trim_task(item: Any, path: str) -> dict[str, Any]:
    item = object_of(item, path)
    id_of(item.get("id"), f"{path}.id")
    object_of(item.get("data"), f"{path}.data")
    for key in ("total_annotations", "cancelled_annotations"):
        if not isinstance(item.get(key), int | None):
            raise BadRequest(f"{path}.{key} must be a number", f"{path}.{key}")
    check_times(item, path)
    return {key: item[key] for key in _TASK_KEYS if key in item}


def _trim_id(item: Any, path: str) -> dict[str, Any]:
    if isinstance(item, int):
        return {"id": id_of(item, path)}
    return {"id": id_of(object_of(item, path).get("id"), f"{path}.id")}


def _trim_project(item: Mapping[str, Any]) -> dict[str, Any]:
    for key in ("title", "label_config", "sampling", "model_version"):
        text_of(item.get(key), f"project.{key}")
    check_times(item, "project")
    return {key: item[key] for key in _PROJECT_KEYS if key in item}


def _webhook_project(body: Mapping[str, Any], payload: Mapping[str, Any]) -> int | None:
    project = body.get("project")
    if isinstance(project, Mapping):
        return id_of(project.get("id"), "project.id")
    if project is not None:
        return project_id(project, "project")
    for task in items_of(payload, "tasks", "task"):
        if task.get("project") is not None:
            return id_of(task["project"], "task.project")
    return None


def _trim_results(value: Any) -> Any:
    """Results with only the fields that `_choices` reads; malformed ones stay malformed."""
    if not isinstance(value, list):
        return [] if value is None else [None]
    return [_trim_result(result) for result in value if not isinstance(result, Mapping) or _is_choices(result)]


def _trim_result(result: Any) -> dict[str, Any] | None:
    if not isinstance(result, Mapping):
        return None
    picked = result.get("value")
    kept = {"choices": picked["choices"]} if isinstance(picked, Mapping) and "choices" in picked else None
    return {"from_name": result.get("from_name"), "type": "choices", "value": kept}


def _choices(results: Any) -> dict[str, tuple[Choice, ...] | None]:
    """Control → choices, of an annotation's results; None = not as Label Studio's pages store them.

    Anything at all can be imported as a result, and one annotation must not end the reading of a project. What names
    no control is unreadable under "".
    """
    if not isinstance(results, list):
        return {} if results is None else {"": None}
    found: dict[str, tuple[Choice, ...] | None] = {}
    for result in results:
        if isinstance(result, Mapping) and not _is_choices(result):
            continue
        name = result.get("from_name") if isinstance(result, Mapping) else None
        picked = _picked(result.get("value")) if isinstance(name, str) else None
        name = name if isinstance(name, str) else ""
        before = found.get(name, ())
        found[name] = None if picked is None or before is None else (*before, *picked)
    return found


def _is_choices(result: Mapping[str, Any]) -> bool:
    return result.get("type") == "choices"


def _picked(value: Any) -> tuple[Choice, ...] | None:
    """The choices of one result; None = unreadable."""
    choices = value.get("choices") if isinstance(value, Mapping) else None
    if not isinstance(choices, list):
        return None
    paths = [choice if isinstance(choice, list) else [choice] for choice in choices]
    if not all(path and all(isinstance(part, str) for part in path) for path in paths):
        return None
    return tuple(path[0] if len(path) == 1 else tuple(path) for path in paths)
