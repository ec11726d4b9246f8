"""A Label Studio in memory: the methods of `LabelStudioClient`, and the actions of its users.

An action returns the webhook that Label Studio sends for it, in Label Studio's form.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from neat_backend.errors import (
    ImageError,
    LabelStudioError,
    LabelStudioRefused,
    LabelStudioUnavailable,
    NotFoundInLabelStudio,
    PredictionsRejected,
)
from neat_backend.labelstudio.client import ProjectInfo
from neat_backend.labelstudio.events import annotation_from_json, task_from_json
from neat_backend.labelstudio.label_config import parse
from neat_backend.records import Annotation, MLBackend, Task

Json = dict[str, Any]


def label_config(*choices: str, control: str = "class") -> str:
    inner = "".join(f'<Choice value="{choice}"/>' for choice in choices)
    return (
        f'<View><Image name="image" value="$image"/><Choices name="{control}" toName="image">{inner}</Choices></View>'
    )


CONFIG = label_config("dog", "cat", "invalid")
BACKEND_URL = "http://neat.internal:9090"  # that projects are connected to
WITHOUT_INVALID = label_config("dog", "cat")
NOTHING_TO_CHOOSE = '<View><Image name="image" value="$image"/></View>'


def picture(seed: int) -> bytes:
    """A small PNG; no two seeds give the same."""
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


@dataclass
class FakeProject:
    """What Label Studio keeps of one project."""

    id: int
    label_config: str
    title: str = "animals"
    sampling: str = "Sequential sampling"
    model_version: str = ""
    updated_at: str = ""
    tasks: dict[int, Json] = field(default_factory=dict)
    annotations: dict[int, Json] = field(default_factory=dict)
    predictions: dict[str, dict[int, list[Json]]] = field(default_factory=dict)  # version → task → its predictions
    views: dict[int, Json] = field(default_factory=dict)  # the Data Manager's tabs
    webhooks: dict[str, Mapping[str, str]] = field(default_factory=dict)
    ml_backends: list[MLBackend] = field(default_factory=list)
    storages: dict[str, int] = field(default_factory=dict)  # of local files, by folder
    created_at: str = ""
    show_predictions: bool = True
    opinions: int = 1


class FakeServer:
    """Projects and the actions of their users. Ids are unique in the server, as Label Studio's are."""

    def __init__(self) -> None:
        self.projects: dict[int, FakeProject] = {}
        self.user_names = {1: "Ada Lovelace"}
        self.files: dict[str, bytes | ImageError] = {}
        self._now = datetime(2026, 11, 23, 8, 0, tzinfo=timezone.utc)
        self._last_id = self._last_tab = 0
        self._version_of: dict[int, tuple[int, str]] = {}  # a prediction's id → project and version

    def add_project(self, number: int = 7, config: str = CONFIG) -> FakeProject:
        """With a connection to BACKEND_URL."""
        moment = self._time()
        self.projects[number] = FakeProject(number, config, updated_at=moment, created_at=moment)
        self.connect(number)
        return self.projects[number]

    def connect(self, project: int, url: str = BACKEND_URL, **extra_params: Any) -> MLBackend:
        """Add an ML backend. Ids are used again, as Label Studio's on SQLite are."""
        there = self.projects[project]
        number = max((each.id for p in self.projects.values() for each in p.ml_backends), default=0) + 1
        made = MLBackend(number, url, extra_params, f"{number} {self._time()}")
        there.ml_backends.append(made)
        return made

    def disconnect(self, project: int) -> None:
        """Delete its ML backends; their webhooks stay."""
        self.projects[project].ml_backends.clear()

    def import_tasks(self, project: int, count: int, annotated: Sequence[str] = ()) -> Json:
        """`annotated`: the choices that the first tasks come with, for which there is no event of their own."""
        there = self.projects[project]
        made = []
        for _ in range(count):
            number = self._last_id + 1
            made.append(self._add_task(there, f"/data/upload/{number}.png", picture(number)))
        for number, choice in zip(made, annotated, strict=False):
            self.annotate(number, choice)
        return self._event("TASKS_CREATED", there, tasks=[dict(there.tasks[number]) for number in made])

    def annotate(self, task: int, choice: str | None, annotator: int = 1, ground_truth: bool = False) -> Json:
        """choice None: a skip."""
        result = [] if choice is None else [self._result(choice)]
        return self.answer(task, result, annotator, ground_truth, was_cancelled=choice is None)

    def answer(
        self, task: int, result: Any, annotator: int = 1, ground_truth: bool = False, was_cancelled: bool = False
    ) -> Json:
        """An annotation with a result of any form."""
        there = self._project_of(task)
        number = self._id()
        there.annotations[number] = {
            "id": number,
            "task": task,
            "result": result,
            "was_cancelled": was_cancelled,
            "ground_truth": ground_truth,
            "completed_by": annotator,
            "updated_at": self._time(),
        }
        self._count(there, task)
        return self._event(
            "ANNOTATION_CREATED", there, annotation=dict(there.annotations[number]), task=dict(there.tasks[task])
        )

    def skip(self, task: int, annotator: int = 1) -> Json:
        return self.annotate(task, None, annotator)

    def change_annotation(self, number: int, choice: str) -> Json:
        there = next(p for p in self.projects.values() if number in p.annotations)
        annotation = there.annotations[number]
        annotation |= {"result": [self._result(choice)], "was_cancelled": False, "updated_at": self._time()}
        self._count(there, annotation["task"])
        return self._event(
            "ANNOTATION_UPDATED", there, annotation=dict(annotation), task=dict(there.tasks[annotation["task"]])
        )

    def delete_annotation(self, number: int) -> Json:
        there = next(p for p in self.projects.values() if number in p.annotations)
        task = there.annotations.pop(number)["task"]
        self._count(there, task)
        return self._event("ANNOTATIONS_DELETED", there, annotations=[{"id": number}])

    def delete_tasks(self, *tasks: int) -> Json:
        there = self._project_of(tasks[0])
        for task in tasks:
            del there.tasks[task]
        there.annotations = {n: a for n, a in there.annotations.items() if a["task"] in there.tasks}
        for version in there.predictions.values():
            for task in tasks:
                version.pop(task, None)
        return self._event("TASKS_DELETED", there, tasks=[{"id": task} for task in tasks])

    def change_image(self, task: int, seed: int) -> Json:
        there = self._project_of(task)
        ref = f"/data/upload/{task}-{seed}.png"
        self.files[ref] = picture(seed)
        there.tasks[task] |= {"data": {"image": ref}, "updated_at": self._time()}
        return self._event("TASKS_UPDATED", there, tasks=[dict(there.tasks[task])])

    def change_project(self, project: int, **fields: str | bool) -> Json:
        """Somebody saves it. Predictions that are hidden from annotators lose their version at each save."""
        there = self.projects[project]
        for name, value in {**fields, "updated_at": self._time()}.items():
            setattr(there, name, value)
        if not there.show_predictions:
            there.model_version = ""
        return self._event("PROJECT_UPDATED", there)

    def press_train(self, project: int) -> Json:
        return self._event("START_TRAINING", self.projects[project])

    def served(self, project: int) -> list[int]:
        """Unlabelled tasks in the order in which uncertainty sampling serves those with a score."""
        there = self.projects[project]
        version = there.predictions.get(there.model_version, {})
        scores = {task: float(np.mean([p["score"] for p in found])) for task, found in version.items()}
        done = {a["task"] for a in there.annotations.values()}
        return sorted((t for t in scores if t not in done), key=lambda t: (scores[t], t))

    def versions(self, project: int) -> list[str]:
        return sorted(version for version, found in self.projects[project].predictions.items() if found)

    def _add_task(self, there: FakeProject, image: str, content: bytes) -> int:
        number = self._id()
        self.files[image] = content
        there.tasks[number] = {
            "id": number,
            "data": {"image": image},
            "project": there.id,
            "updated_at": self._time(),
            "total_annotations": 0,
            "cancelled_annotations": 0,
        }
        return number

    def _id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _time(self) -> str:
        self._now += timedelta(seconds=1)
        return self._now.isoformat()

    def _project_of(self, task: int) -> FakeProject:
        return next(p for p in self.projects.values() if task in p.tasks)

    def _count(self, there: FakeProject, task: int) -> None:
        skips = [a["was_cancelled"] for a in there.annotations.values() if a["task"] == task]
        counts = {"total_annotations": skips.count(False), "cancelled_annotations": skips.count(True)}
        there.tasks[task] |= {**counts, "updated_at": self._time()}

    @staticmethod
    def _result(choice: str) -> Json:
        return {"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}

    @staticmethod
    def _event(action: str, there: FakeProject, **payload: Any) -> Json:
        names = ("id", "title", "label_config", "sampling", "model_version", "updated_at")
        return {"action": action, **payload, "project": {name: getattr(there, name) for name in names}}


class FakeLabelStudio(FakeServer):
    """The server with the methods of `LabelStudioClient`; notes every call, and fails or waits on request."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []  # (method, project, …)
        self.failing: Exception | None = None  # what every call answers
        self.fail_after: dict[str, tuple[int, Exception]] = {}  # method → after so many more calls, raise
        self.gates: dict[str, Callable[[], None]] = {}  # method → what holds its calls up
        self.drop_every_choice = False  # predictions with a choice are silently not created
        self.storage_state = ("completed", "")  # of each sync
        self.unreachable: set[int] = set()  # connections by which Label Studio gets no answer
        self.refused_tasks: set[int] = set()  # predictions of these are silently never created

    def called(self, name: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] == name]

    def users(self) -> dict[int, str]:
        self.calls.append(("users",))
        if self.failing is not None:
            raise self.failing
        return dict(self.user_names)

    def project(self, project: int) -> ProjectInfo:
        there = self._call("project", project)
        skips = sum(a["was_cancelled"] for a in there.annotations.values())
        return ProjectInfo(
            id=there.id,
            title=there.title,
            label_config=there.label_config,
            sampling=there.sampling,
            model_version=there.model_version,
            task_count=len(there.tasks),
            annotation_count=len(there.annotations) - skips,
            skipped_count=skips,
            created_at=datetime.fromisoformat(there.created_at),
            opinions=there.opinions,
        )

    def close(self) -> None:
        """There is no connection to close."""

    def ml_backends(self, project: int) -> list[MLBackend]:
        return list(self._call("ml_backends", project).ml_backends)

    def project_titles(self) -> dict[int, str]:
        return {number: there.title for number, there in self.projects.items()}

    def create_project(self, title: str, label_config: str) -> int:
        number = max(self.projects, default=0) + 1
        self.projects[number] = FakeProject(number, label_config, title, created_at=self._time())
        return number

    def upload(self, project: int, files: Sequence[tuple[str, bytes]]) -> None:
        there = self._call("upload", project, [name for name, _ in files])
        for name, content in files:
            self._add_task(there, f"/data/upload/{project}/{self._last_id:08x}-{name}", content)
        self._maybe_fail("upload, landed")

    def local_storages(self, project: int) -> dict[str, int]:
        return dict(self._call("local_storages", project).storages)

    def add_local_storage(self, project: int, folder: str, regex: str) -> int:
        there = self._call("add_local_storage", project, folder)
        return there.storages.setdefault(folder, self._id())

    def sync_local_storage(self, storage: int) -> None:
        there = next(p for p in self.projects.values() if storage in p.storages.values())
        folder = next(Path(place) for place, number in there.storages.items() if number == storage)
        known = {task["data"]["image"] for task in there.tasks.values()}
        for file in sorted(folder.rglob("*.png")):
            if (image := f"/data/local-files/?d={file}") not in known:
                self._add_task(there, image, file.read_bytes())

    def local_storage_state(self, storage: int) -> tuple[str, str]:
        return self.storage_state

    def connect_backend(self, project: int, url: str, user: str = "", password: str = "") -> int:
        """The backend's worker configures the project at once."""
        there = self._call("connect_backend", project, url, user, password)
        there.sampling = "Uncertainty sampling"
        self.create_tab(project, {"title": "NEAT: next batch"})
        return self.connect(project, url).id

    def backend_answers(self, connection: int) -> bool:
        return connection not in self.unreachable

    def repair_backend(
        self, project: int, connection: int, url: str, params: Mapping[str, Any], user: str = "", password: str = ""
    ) -> None:
        self._call("repair_backend", project, connection, url, params, user, password)
        self.unreachable.discard(connection)

    def tasks(self, project: int, image_key: str, page_size: int = 3) -> Iterator[list[Task]]:
        last = 0
        while page := sorted(one for one in self._call("tasks", project).tasks.items() if one[0] > last)[:page_size]:
            yield [task_from_json(task, image_key) for _, task in page]
            last = page[-1][0]

    def spread_tasks(self, project: int, image_key: str, page_size: int, places: int) -> list[Task]:
        tasks = sorted(self._call("spread_tasks", project).tasks.items())
        return [task_from_json(task, image_key) for _, task in tasks[:: len(tasks) // (page_size * places)]]

    def annotations(self, project: int, tasks: Sequence[int] | None = None) -> Iterator[list[Annotation]]:
        there = self._call("annotations", project, None if tasks is None else tuple(tasks))
        yield [
            annotation_from_json(a) for _, a in sorted(there.annotations.items()) if tasks is None or a["task"] in tasks
        ]

    def changed_tasks(
        self, project: int, image_key: str, since: datetime
    ) -> Iterator[tuple[list[Task], list[Annotation]]]:
        there = self._call("changed_tasks", project)
        changed = sorted(n for n, t in there.tasks.items() if datetime.fromisoformat(t["updated_at"]) > since)
        for start in range(0, len(changed), 3):
            page = changed[start : start + 3]
            answers = [annotation_from_json(a) for a in there.annotations.values() if a["task"] in page]
            yield [task_from_json(there.tasks[number], image_key) for number in page], answers

    def task_ids(self, project: int) -> Iterator[list[int]]:
        last = 0
        while page := sorted(number for number in self._call("task_ids", project).tasks if number > last)[:3]:
            yield page
            last = page[-1]

    def now(self) -> datetime:
        return self._now

    def clock(self) -> datetime | None:
        return self.now()

    def existing_tasks(self, project: int, tasks: Sequence[int]) -> set[int]:
        return set(tasks) & set(self._call("existing_tasks", project).tasks)

    def import_predictions(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        there = self._call("import_predictions", project, [p["task"] for p in predictions])
        if any(p["task"] not in there.tasks for p in predictions):
            raise PredictionsRejected("Label Studio answered 400: a task is gone")
        choices = parse(there.label_config, ())
        created = 0
        for prediction in predictions:
            values = [r["value"].get(r["from_name"], r["value"]) for r in prediction["result"]]
            chosen = [c if isinstance(c, str) else "a path" for value in values for c in value["choices"]]
            bad = not 0 <= prediction["score"] <= 1 or not set(chosen) <= {*choices.classes, *choices.invalid}
            if bad or prediction["task"] in self.refused_tasks or (chosen and self.drop_every_choice):
                continue
            version = there.predictions.setdefault(prediction["model_version"], {})
            version.setdefault(prediction["task"], []).append(dict(prediction))
            created += 1
        self._maybe_fail("import_predictions, landed")
        return created

    imports_one_by_one = staticmethod(lambda project: False)

    def tasks_with_prediction(self, project: int, version: str, tasks: Sequence[int]) -> set[int]:
        there = self._call("tasks_with_prediction", project)
        return set(tasks) & set(there.predictions.get(version, {}))

    def model_versions(self, project: int) -> dict[str, int]:
        found = self._call("model_versions", project).predictions
        return {version: sum(map(len, tasks.values())) for version, tasks in found.items() if tasks}

    def set_model_version(self, project: int, version: str) -> None:
        there = self._call("set_model_version", project, version)
        if not there.predictions.get(version):
            raise LabelStudioError(f"Label Studio answered 400: there are no predictions of {version}")
        there.model_version = version

    def predictions_of(self, project: int, version: str, task: int | None = None) -> list[int]:
        """A prediction's id: its task's, as long as a version has one for each."""
        there = self._call("predictions_of", project, version)
        found = [number for number in there.predictions.get(version, {}) if task in (None, number)]
        self._version_of |= dict.fromkeys(found, (project, version))
        return found

    def delete_prediction(self, prediction: int) -> None:
        project, version = self._version_of[prediction]
        self._call("delete_prediction", project, prediction).predictions.get(version, {}).pop(prediction, None)

    def delete_model_version(self, project: int, version: str) -> None:
        there = self._call("delete_model_version", project, version)
        there.predictions.pop(version, None)

    def set_sampling(self, project: int, sampling: str) -> None:
        there = self._call("set_sampling", project, sampling)
        there.sampling, there.updated_at = sampling, self._time()

    def tabs(self, project: int) -> list[Json]:
        there = self._call("tabs", project)
        return [{"id": number, "data": dict(data)} for number, data in there.views.items()]

    def create_tab(self, project: int, data: Mapping[str, Any]) -> int:
        there = self._call("create_tab", project, data["title"])
        self._last_tab += 1
        there.views[self._last_tab] = dict(data)
        return self._last_tab

    def change_tab(self, project: int, tab: int, data: Mapping[str, Any]) -> None:
        there = self._call("change_tab", project, tab)
        if tab not in there.views:
            raise NotFoundInLabelStudio("Label Studio has no such thing (change_tab)")
        there.views[tab] = dict(data)

    def delete_tab(self, tab: int) -> None:
        there = next((p for p in self.projects.values() if tab in p.views), None)
        if there is None:
            raise NotFoundInLabelStudio("Label Studio has no such thing (delete_tab)")
        self.calls.append(("delete_tab", there.id, tab))
        del there.views[tab]

    def set_column(self, project: int, tasks: Sequence[int], name: str, value: str | float) -> None:
        there = self._call("set_column", project, name, value, tuple(tasks))
        for task in tasks:
            if task in there.tasks:  # its time of change stays as it is
                there.tasks[task]["data"][name] = value

    def titles(self, project: int) -> list[str]:
        """Of the tabs, from left to right."""
        return [data["title"] for data in self.projects[project].views.values()]

    def ensure_webhook(self, project: int, url: str, headers: Mapping[str, str]) -> str:
        there = self._call("ensure_webhook", project, url)
        if "." not in str(urlsplit(url).hostname):
            return "refused"
        was, there.webhooks[url] = there.webhooks.get(url), headers
        return "created" if was is None else "present" if was == headers else "repaired"

    def delete_webhooks(self, project: int, urls: Collection[str]) -> int:
        there = self._call("delete_webhooks", project)
        gone = [url for url in there.webhooks if url in urls]
        for url in gone:
            del there.webhooks[url]
        return len(gone)

    def fetch_bytes(self, path_or_url: str, limit_bytes: int, timeout_seconds: float | None = None) -> bytes:
        self.calls.append(("fetch_bytes", 0, path_or_url))
        if isinstance(self.failing, LabelStudioUnavailable | LabelStudioRefused):
            raise ImageError(str(self.failing), transient=isinstance(self.failing, LabelStudioUnavailable))
        found = self.files.get(path_or_url, ImageError("Label Studio answered 404 for the image"))
        if isinstance(found, ImageError):
            raise found
        return found

    def _call(self, name: str, project: int, *more: Any) -> FakeProject:
        self.calls.append((name, project, *more))
        self.gates.get(name, lambda: None)()
        if self.failing is not None:
            raise self.failing
        self._maybe_fail(name)
        if project not in self.projects:
            raise NotFoundInLabelStudio(f"Label Studio has no such thing ({name})")
        return self.projects[project]

    def _maybe_fail(self, name: str) -> None:
        left, error = self.fail_after.get(name, (-1, LabelStudioError("")))
        if left == 0:
            del self.fail_after[name]
            raise error
        if left > 0:
            self.fail_after[name] = (left - 1, error)
