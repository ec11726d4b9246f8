"""Comparing the live state with a fresh engine from a full read of Label Studio's present data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from neat_backend.demo.backend import Backend
    from neat_backend.labelstudio.client import LabelStudioClient
    from neat_backend.ranking.engine import Engine
    from neat_backend.records import Round
    from neat_backend.settings import Settings

PAGE = 10_000
EXPLAINED = 50  # tasks whose neighbours are compared


def rebuilt(
    client: LabelStudioClient, data_dir: Path, project: int, settings: Settings, done: Round | None = None
) -> Engine:
    """A fresh engine from all tasks and annotations that Label Studio has now, and the stored features.

    Features and probabilities count only for tasks that still have the image that they were computed from.

    settings: the project's own. done: the round whose probabilities are in use; by default that of the newest
    file, with the classes that there are now. Nothing of the backend's database is used. Raises StoreError or OSError
    while no features are stored, LabelStudioError when Label Studio can't be read.
    """
    from neat_backend.errors import StoreError
    from neat_backend.labelstudio import label_config
    from neat_backend.ranking.engine import Engine
    from neat_backend.ranking.linear import fit_head
    from neat_backend.store import prequential
    from neat_backend.store.arrays import ProjectArrays, image_key
    from neat_backend.worker.steps.learning import engine_settings, head_is_wanted

    config = label_config.read(client.project(project).label_config, settings)
    refs = {task.id: task.image for page in client.tasks(project, config.image_key) for task in page}
    keys = {task: image_key(ref) for task, ref in refs.items() if ref is not None}
    answers: dict[int, list[Any]] = {}
    for page in client.annotations(project):
        for answer in page:
            answers.setdefault(answer.task, []).append(answer)
    arrays = ProjectArrays(data_dir, project)

    def stored(kind: str) -> tuple[NDArray[np.int64], NDArray[Any]]:
        found = arrays.load(kind)
        pairs = zip(found.ids.tolist(), found.keys.tolist(), strict=True)
        current = np.fromiter((keys.get(task) == key for task, key in pairs), bool, len(found.ids))
        return found.ids[current], found.values[current]

    encoders = sorted(path.name for path in arrays.folder("features").iterdir())
    if not encoders:
        raise StoreError("no features are stored yet")
    (encoder,) = encoders
    ids, features = stored(f"features/{encoder}")
    engine = Engine(
        features.shape[1],
        config.classes,
        **engine_settings(settings, prequential.read(arrays)),
    )
    engine.add_tasks(ids, features)
    engine.set_labels([label_config.resolve(task, answers.get(task, []), config) for task in refs])
    rounds = sorted(path.name for path in arrays.folder("probabilities").iterdir())
    if done is not None:
        rounds = [f"{done.number:06d}"]
    if rounds:
        ids, probabilities = stored(f"probabilities/{rounds[-1]}")
        if len(ids):
            engine.set_probabilities(ids, probabilities, config.classes if done is None else done.classes)
    if head_is_wanted(settings):
        _, codes, features = engine.training_data()
        for _ in engine.set_linear(fit_head(features, codes, engine.classes)):
            pass
    return engine


def differences(backend: Backend, project: int, engine: Engine) -> list[str]:
    """Differences of the served order and the API's answers from `engine`, bit for bit; empty when all is equal."""
    expected = engine.ranking()
    order = expected.ids[np.lexsort((expected.ids, -expected.priority))].tolist()
    served: list[dict[str, Any]] = []
    while len(part := backend.ask(f"/api/projects/{project}/ranking?limit={PAGE}&offset={len(served)}")["ranking"]):
        served += part
    found = []
    if (tasks := [one["task"] for one in served]) != order:
        at = next(
            (n for n, (a, b) in enumerate(zip(tasks, order, strict=False)) if a != b),
            min(len(tasks), len(order)),
        )
        found.append(
            f"the order differs from place {at} of {len(order)} on: {tasks[at : at + 5]}, not {order[at : at + 5]}"
        )
    by_task = {one["task"]: one for one in served}
    for at, task in enumerate(expected.ids.tolist()):
        row = by_task.get(task)
        if row is None:
            found.append(f"task {task} is not in the order")
            continue
        for name in ("inconsistency", "known_neighbours", "candidate"):
            if row[name] != getattr(expected, name)[at]:
                found.append(f"task {task}: {name} is {row[name]}, not {getattr(expected, name)[at]}")
    both = [task for task in order if task in by_task]
    for task in both[:: max(1, len(both) // EXPLAINED)]:
        explanation = backend.ask(f"/api/projects/{project}/tasks/{task}/explanation")
        neighbours = [(one["task"], one["similarity"]) for one in explanation["neighbours"]]
        if neighbours != engine.neighbours(task):
            found.append(f"task {task}: its neighbours are {neighbours}, not {engine.neighbours(task)}")
    counts = engine.counts()
    labelled = backend.status(project)["labelled"]
    if labelled != {"known": counts.known, "invalid": counts.invalid}:
        found.append(f"labelled are {labelled}, not {counts.known} known and {counts.invalid} invalid")
    return found
