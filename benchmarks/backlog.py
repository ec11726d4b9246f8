"""`python -m benchmarks backlog`: how fast a worker takes in labels that have queued up."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from benchmarks.report import Json, report

if TYPE_CHECKING:
    from neat_backend.settings import Settings
    from neat_backend.store.database import Database
    from neat_backend.worker.live import LiveProject

PROJECT = 1
CLASSES = ("cat", "dog", "horse", "ship")
NONE_OF_THESE = "none of these"
CHOICES = "".join(f'<Choice value="{name}"/>' for name in CLASSES) + f'<Choice value="{NONE_OF_THESE}" invalid="true"/>'
CONFIG = f'<View><Image name="image" value="$image"/><Choices name="class" toName="image">{CHOICES}</Choices></View>'
MOMENT = "2026-01-01T00:00:{:02d}.000000Z"


def backlog(
    events: Annotated[int, typer.Option(min=1, help="Labels that wait in the inbox.")] = 20_000,
    tasks: Annotated[int, typer.Option(min=1, help="Tasks of the project, each with features.")] = 50_000,
    dim: Annotated[int, typer.Option(min=1, help="Numbers of a feature vector.")] = 512,
    url: Annotated[str, typer.Option("--database", help="An empty PostgreSQL database; default: a SQLite file.")] = "",
    as_json: Json = False,
) -> None:
    """Time until queued labels are in the store and in the engine, and until the classifier has learnt them.

    Example: python -m benchmarks backlog --events 5000
    """
    with tempfile.TemporaryDirectory() as name:
        settings, database = _prepared(Path(name), url, events, tasks, dim)
        live = _live(settings, database)
        began, worked = time.perf_counter(), time.process_time()
        batches: list[float] = []
        while True:
            before = time.perf_counter()
            if not live.apply.step():
                break
            batches.append(time.perf_counter() - before)
        seconds, processor = time.perf_counter() - began, time.process_time() - worked
        live.learning.step()
        learnt = time.perf_counter() - began
        with live.engine() as engine:
            labelled = engine.counts()
        database.dispose()
    figures = {
        "database": settings.sqlalchemy_url.split(":")[0],
        "events": events,
        "tasks": tasks,
        "dim": dim,
        "labelled": labelled.known + labelled.invalid,
        "seconds": seconds,
        "processor_seconds": processor,
        "per_second": events / seconds,
        "per_processor_second": events / processor,
        "longest_batch_seconds": max(batches),
        "until_learnt_seconds": learnt,
        "aim": "at least 3,000 a second",
    }
    report("backlog", figures, as_json)


def _prepared(folder: Path, url: str, events: int, tasks: int, dim: int) -> tuple[Settings, Database]:
    """A project with features for all tasks, and its labels in the inbox."""
    from neat_backend.labelstudio.events import parse_webhook, task_from_json
    from neat_backend.models.grid import to_grid
    from neat_backend.settings import Settings
    from neat_backend.store import inbox, projects
    from neat_backend.store import tasks as stored_tasks
    from neat_backend.store.arrays import ProjectArrays, image_key
    from neat_backend.store.database import Database

    settings = Settings.from_env({"DATABASE_URL": url}, data_dir=folder, device="cpu")
    database = Database(settings.sqlalchemy_url)
    database.migrate()
    with database.read() as conn:
        if projects.all(conn):
            raise typer.BadParameter("--database: it holds projects; name an empty database")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(len(CLASSES) + 4, dim))
    kinds = rng.integers(0, len(centres), tasks)
    features = rng.normal(size=(tasks, dim)) + 0.5 * centres[kinds]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ids = np.arange(1, tasks + 1)
    keys = np.array([image_key(_image(task)) for task in ids.tolist()])
    ProjectArrays(folder, PROJECT).append("features/made-up", ids, keys, to_grid(features.astype(np.float32)))
    chosen = rng.permutation(ids)[np.arange(events) % tasks]
    with database.begin() as conn:
        projects.save_connection(conn, PROJECT, label_config=CONFIG)
        made = [task_from_json(_task(task), "image") for task in ids.tolist()]
        stored_tasks.upsert_tasks(conn, PROJECT, made, 0)
        stored_tasks.set_image_state(conn, PROJECT, ids.tolist(), stored_tasks.READY)
    for first in range(0, events, 1000):
        with database.begin() as conn:
            bodies = [
                parse_webhook(_webhook(at + 1, int(chosen[at]), int(kinds[chosen[at] - 1])))
                for at in range(first, min(events, first + 1000))
            ]
            inbox.append_many(conn, [(PROJECT, body.action, body.payload) for body in bodies])
    return settings, database


def _image(task: int) -> str:
    return f"/data/upload/1/{task}.png"


def _task(task: int) -> dict[str, Any]:
    return {"id": task, "project": PROJECT, "data": {"image": _image(task)}, "updated_at": MOMENT.format(0)}


def _webhook(number: int, task: int, kind: int) -> dict[str, Any]:
    """As Label Studio sends when annotation `number` is submitted."""
    choice = CLASSES[kind] if kind < len(CLASSES) else NONE_OF_THESE
    moment = MOMENT.format(1 + number % 50)
    project = {"id": PROJECT, "title": "bench", "label_config": CONFIG, "updated_at": MOMENT.format(0)}
    return {
        "action": "ANNOTATION_CREATED",
        "annotation": {
            "id": number,
            "task": task,
            "project": PROJECT,
            "result": [{"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}],
            "was_cancelled": False,
            "ground_truth": False,
            "completed_by": 1,
            "created_at": moment,
            "updated_at": moment,
        },
        "task": {**_task(task), "updated_at": moment},
        "project": {**project, "sampling": "Uncertainty sampling"},
    }


class _Encoder:
    """Reads nothing: all features are there."""

    key = "made-up"

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def encode_names(self, names: Any) -> None:
        """It reads no text."""


class _LabelStudio:
    """Isn't asked for anything."""

    def clock(self) -> None:
        return None


def _live(settings: Settings, database: Database) -> LiveProject:
    from neat_backend.store import projects
    from neat_backend.store.arrays import ProjectArrays
    from neat_backend.worker.live import LiveProject, Resources
    from neat_backend.worker.owned_project import OwnedProject

    with database.begin() as conn:
        projects.acquire_lease(conn, PROJECT, "bench", 3600)
        project = projects.get(conn, PROJECT)
    assert project is not None
    dim = ProjectArrays(settings.data_dir, PROJECT).load("features/made-up").values.shape[1]
    encoder: Any = _Encoder(dim)
    client: Any = _LabelStudio()
    owned = OwnedProject(project, "bench", settings.for_project(project.extra_params), database)
    return LiveProject.load(owned, Resources(lambda: encoder, lambda _: client))
