"""Actions of annotators, for streams of events, and what the tests read of a live project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from neat_backend.errors import LabelStudioUnavailable
from neat_backend.records import Label
from neat_backend.store import tasks
from neat_backend.worker.live import LiveProject
from tests.fake_label_studio import (
    CONFIG,
    NOTHING_TO_CHOOSE,
    WITHOUT_INVALID,
    FakeLabelStudio,
    Json,
    label_config,
)
from tests.living import PROJECT, Backend, engine_of, state, take_in

AWAY = LabelStudioUnavailable("Label Studio is away")


def labels(live: LiveProject) -> dict[int, Label]:
    return engine_of(live).labels()


def in_engine(live: LiveProject) -> set[int]:
    return set(engine_of(live).tasks())


def image_state(backend: Backend, task: int) -> str:
    with backend.database.read() as conn:
        return {t: s for t, _, s in tasks.task_images(conn, PROJECT)}[task]


KINDS = ["import", "label", "label", "label", "skip", "change", "unlabel", "delete", "image", "config", "with-labels"]
ACTIONS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2**16)), min_size=1, max_size=12)
CONFIGS = (CONFIG, WITHOUT_INVALID, label_config("dog", "owl", "invalid"), NOTHING_TO_CHOOSE)


def do(server: FakeLabelStudio, action: str, number: int) -> Json | None:
    """Somebody does something in Label Studio; the webhook that it sends."""
    there = server.projects[PROJECT]
    some = sorted(there.tasks)
    answered = sorted(there.annotations)
    choice = ("dog", "cat", "invalid")[number % 3]
    if action == "import":
        return server.import_tasks(PROJECT, 1 + number % 3)
    if action == "with-labels":
        return server.import_tasks(PROJECT, 3, annotated=[choice, "dog"])
    if action == "label" and some:
        return server.annotate(some[number % len(some)], choice, annotator=1 + number % 2, ground_truth=number % 7 == 0)
    if action == "skip" and some:
        return server.skip(some[number % len(some)])
    if action == "change" and answered:
        return server.change_annotation(answered[number % len(answered)], choice)
    if action == "unlabel" and answered:
        return server.delete_annotation(answered[number % len(answered)])
    if action == "delete" and some:
        return server.delete_tasks(*some[number % len(some) :][:2])
    if action == "image" and some:
        return server.change_image(some[number % len(some)], number)
    if action == "config":
        return server.change_project(PROJECT, label_config=CONFIGS[number % 3])
    return None


def read_anew(folder: str, server: FakeLabelStudio) -> tuple[Any, ...]:
    """The state of a backend that has never seen an event."""
    anew = Backend(Path(folder), server)
    live = anew.live()
    take_in(live)
    anew.close()
    return state(live)


def some_server() -> FakeLabelStudio:
    server = FakeLabelStudio()
    server.add_project(PROJECT)
    server.import_tasks(PROJECT, 5, annotated=["dog", "cat"])
    return server


FEW = hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def settle_once(live: LiveProject) -> None:
    """All is taken in and published, but perhaps not all of it shown."""
    take_in(live)
    live.publish.step()
