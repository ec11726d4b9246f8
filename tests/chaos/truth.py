"""The state that the backend must have: built anew from all that Label Studio holds now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rebuild import rebuilt
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.ranking.engine import Engine
from neat_backend.records import Label
from neat_backend.settings import Settings
from neat_backend.store import rounds
from neat_backend.store.database import Database
from neat_backend.worker.steps import reading
from tests.chaos.backend import engine_state


@dataclass
class Truth:
    """The engine that follows from a full read of Label Studio."""

    engine: Engine
    labels: dict[int, Label] = field(init=False)  # of the labelled tasks
    state: dict[str, Any] = field(init=False)
    order: list[int] = field(init=False)  # best first

    def __post_init__(self) -> None:
        self.labels = self.engine.labels()
        self.state = engine_state(self.engine)
        ranking = self.engine.ranking()
        self.order = ranking.ids[np.lexsort((ranking.ids, -ranking.priority))].tolist()


def full_read(client: LabelStudioClient, data: Path, database: Database, project: int, settings: Settings) -> Truth:
    """Of the backend's own, features and the last round; all else is Label Studio's."""
    with database.read() as conn:
        done = rounds.latest(conn, project)
    return Truth(rebuilt(client, data, project, settings, done))


def stored_labels(database: Database, project: int, settings: Settings, xml: str) -> dict[int, Label]:
    """The labelled tasks as the backend's store has them."""
    config = label_config.read(xml, settings)
    found = reading.resolve_labels(database, project, config)
    return {x.task: x for x in found if x.choice is not None or x.invalid}


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """In what two states of an engine differ, in a few words each."""
    words = []
    if expected["classes"] != found["classes"]:
        words.append(f"classes {found['classes']}, not {expected['classes']}")
    for name in ("labels", "neighbours"):
        if len(wrong := _wrong(expected[name], found[name])):
            words.append(f"{name} of {len(wrong)} tasks, such as {wrong[:3]}")
    ours, theirs = (
        dict(zip(r["ids"], zip(*r.values(), strict=True), strict=True)) for r in (found["ranking"], expected["ranking"])
    )
    if len(wrong := _wrong(theirs, ours)):
        words.append(f"places of {len(wrong)} of {len(theirs)} tasks, such as {wrong[:3]}")
    return words


def _wrong(expected: Mapping[Any, Any], found: Mapping[Any, Any]) -> list[tuple[Any, Any, Any]]:
    """Key, what was found, what was expected."""
    keys = sorted({*expected, *found}, key=int)
    return [(key, found.get(key), expected.get(key)) for key in keys if found.get(key) != expected.get(key)]
