"""What the tests of the service and the web share: a small project, its ranking, Label Studio's bodies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Connection

from neat_backend.records import Round
from neat_backend.settings import Settings
from neat_backend.store import projects, rounds, snapshots
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.snapshots import Head
from tests.migrated import make_sqlite

CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="class" toName="image" choice="single">'
    '<Choice value="dog"/><Choice value="cat"/><Choice value="invalid"/></Choices></View>'
)
NO_CHOICES = '<View><Image name="image" value="$image"/></View>'


def make_settings(folder: Path, **fields: Any) -> Settings:
    fields = {"predict_wait_seconds": 0.4, "prefill": "classifier", **fields}
    return Settings.from_env({}, data_dir=folder / "data", **fields)


def make_database(settings: Settings) -> Database:
    """With all tables, on SQLite."""
    make_sqlite(settings.data_dir / "neat.sqlite3")
    return Database(settings.sqlalchemy_url)


def setup_body(project: int = 7, **fields: Any) -> dict[str, Any]:
    return {
        "project": f"{project}.1795417238",
        "schema": CONFIG,
        "hostname": "http://localhost:8080",
        "access_token": "0123456789abcdef0123456789abcdef01234567",
        "extra_params": None,
        **fields,
    }


def project_body(project: int = 7, **fields: Any) -> dict[str, Any]:
    return {"id": project, "title": "dogs", "label_config": CONFIG, "sampling": "Sequential sampling", **fields}


def task_body(task: int, project: int = 7) -> dict[str, Any]:
    return {
        "id": task,
        "data": {"image": f"/data/upload/{task}.png"},
        "project": project,
        "updated_at": "2026-11-23T07:00:56.915991Z",
        "total_annotations": 0,
        "cancelled_annotations": 0,
    }


def tasks_created(*tasks: int, project: int = 7) -> dict[str, Any]:
    return {
        "action": "TASKS_CREATED",
        "tasks": [task_body(task, project) for task in tasks],
        "project": project_body(project),
    }


def annotation_created(task: int, choice: str = "dog", project: int = 7) -> dict[str, Any]:
    result = {"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}
    return {
        "action": "ANNOTATION_CREATED",
        "annotation": {
            "id": 1000 + task,
            "task": task,
            "result": [result],
            "was_cancelled": False,
            "ground_truth": False,
            "completed_by": 1,
            "updated_at": "2026-11-23T07:00:56.865213Z",
        },
        "task": task_body(task, project),
        "project": project_body(project),
    }


def predict_body(*tasks: int | None, project: int = 7) -> dict[str, Any]:
    bodies = [{**task_body(task or 1, project), "id": task} for task in tasks]
    return {"tasks": bodies, "project": f"{project}.1795417238", "label_config": CONFIG, "params": {"context": None}}


def write_ranking(settings: Settings, project: int = 7, head: Sequence[int] = (5, 2), **changed: Any) -> None:
    """Tasks 1, 2, 3, 5; best first 5, 2 (the head), then 3, 1 of equal priority, reversed by nothing but the id."""
    ranking = {
        "ids": np.array([1, 2, 3, 5], np.int64),
        "priority": np.array([0.2, 0.75, 0.2, 0.9], np.float64),
        "inconsistency": np.array([1.0, 2.0, 1.0, 3.0], np.float64),
        "known_neighbours": np.array([1, 10, 1, 10], np.int16),
        "candidate": np.array([False, True, False, True]),
        "predicted": np.array([0, 1, -1, 0], np.int16),
        "classes": ("dog", "cat"),
        **changed,
    }
    ids = ranking["ids"].tolist()
    without_balance = {"known_chance": np.float32(1), "queue": np.int16(-1), "place": np.int64(0)}
    ranking = {name: np.full(len(ids), value) for name, value in without_balance.items()} | ranking
    arrays = ProjectArrays(settings.data_dir, project)
    tasks = [snapshots.row(ranking, ids.index(task), place) for place, task in enumerate(head)]
    snapshots.write_head(arrays, Head(tasks, ranking["classes"], 4, 1, len(ids), 0, "neat-r000003"))
    snapshots.write_ranking(arrays, ranking)


def begin_round(conn: Connection, project: int = 7, **fields: Any) -> Round:
    """A training round that runs: of 8 images of dogs and cats and 2 of neither, but for these fields."""
    counts = {"known": 8, "invalid": 2, "unlabelled": 4, "queried": 10, "queried_known": 8}
    new = {"trigger": "batch", "classes": ("dog", "cat"), **counts, **fields}
    return rounds.start(conn, project, rounds.NewRound(**new))


def make_ready(database: Database, project: int = 7, **fields: Any) -> None:
    """As the worker leaves a project that is up and running."""
    from datetime import datetime, timezone

    values: dict[str, Any] = {
        "state": projects.READY,
        "detail": "",
        "synced_at": datetime.now(timezone.utc),
        "model_version": "neat-r000003",
        "sampling": "Uncertainty sampling",
        **fields,
    }
    with database.begin() as conn:
        projects.update(conn, project, **values)
