"""The state that the backend must have: built anew from all that Label Studio holds now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from neat_backend import embedding, sync
from neat_backend.engine import Engine
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.records import Label
from neat_backend.settings import Settings
from neat_backend.store import rounds
from neat_backend.store.arrays import ProjectArrays, image_key
from neat_backend.store.database import Database
from tests.chaos.backend import engine_state
from tests.living import FakeEncoder


@dataclass
class Truth:
    """A full read of Label Studio, and the engine that follows from it."""

    labels: dict[int, Label]  # of the labelled tasks
    engine: Engine
    state: dict[str, Any] = field(init=False)
    order: list[int] = field(init=False)  # best first

    def __post_init__(self) -> None:
        self.state = engine_state(self.engine)
        ranking = self.engine.ranking()
        self.order = ranking.ids[np.lexsort((ranking.ids, -ranking.priority))].tolist()


def rebuilt(client: LabelStudioClient, data: Path, database: Database, project: int, settings: Settings) -> Truth:
    """Tasks and annotations from Label Studio by a full read; of the backend's own, features and the last round.

    Both count only for tasks that still have the image that they were computed from.
    """
    config = label_config.parse(client.project(project).label_config, settings.invalid_choices, settings.control)
    tasks = {task.id: task.image for page in client.tasks(project, config.image_key) for task in page}
    answers: dict[int, list[Any]] = {}
    for page in client.annotations(project):
        for answer in page:
            answers.setdefault(answer.task, []).append(answer)
    labels = [label_config.resolve(task, answers.get(task, []), config) for task in tasks]
    engine = Engine(
        FakeEncoder.dim, config.classes, k=settings.k, rule=settings.known_rule,
        batch_size=settings.batch_size, seed=settings.seed, device="cpu",
    )  # fmt: skip
    arrays = ProjectArrays(data, project)
    features = arrays.load(embedding.features_kind(FakeEncoder.key))
    if len(features.ids):
        current = _current(features, tasks)
        engine.add_tasks(features.ids[current], features.values[current])
    engine.set_labels(labels)
    with database.read() as conn:
        done = rounds.latest(conn, project)
    if done is not None:
        found = arrays.load(f"probabilities/{done.number:06d}")
        if len(found.ids):
            current = _current(found, tasks)
            engine.set_probabilities(found.ids[current], found.values[current], done.classes)
    return Truth({x.task: x for x in labels if x.choice is not None or x.invalid}, engine)


def _current(segment: Any, tasks: Mapping[int, str | None]) -> np.ndarray:
    """Which rows are of an image that its task has now: bool [n]."""
    keys = {task: image_key(ref) for task, ref in tasks.items() if ref is not None}
    return np.array([keys.get(t) == k for t, k in zip(segment.ids.tolist(), segment.keys.tolist(), strict=True)], bool)


def stored_labels(database: Database, project: int, settings: Settings, xml: str) -> dict[int, Label]:
    """The labelled tasks as the backend's store has them."""
    config = label_config.parse(xml, settings.invalid_choices, settings.control)
    found = sync.resolve_labels(database, project, config)
    return {x.task: x for x in found if x.choice is not None or x.invalid}


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """In what two states of an engine differ, in a few words each."""
    words = []
    if expected["classes"] != found["classes"]:
        words.append(f"classes {found['classes']}, not {expected['classes']}")
    for name in ("labels", "neighbours"):
        if len(wrong := _wrong(expected[name], found[name])):
            words.append(f"{name} of {len(wrong)} tasks, such as {wrong[:3]}")
    ours, theirs = (dict(zip(r["ids"], zip(*r.values(), strict=True), strict=True)) for r in
                    (found["ranking"], expected["ranking"]))  # fmt: skip
    if len(wrong := _wrong(theirs, ours)):
        words.append(f"places of {len(wrong)} of {len(theirs)} tasks, such as {wrong[:3]}")
    return words


def _wrong(expected: Mapping[Any, Any], found: Mapping[Any, Any]) -> list[tuple[Any, Any, Any]]:
    """Key, what was found, what was expected."""
    keys = sorted({*expected, *found}, key=int)
    return [(key, found.get(key), expected.get(key)) for key in keys if found.get(key) != expected.get(key)]
