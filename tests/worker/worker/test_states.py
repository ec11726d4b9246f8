"""States of a project that people see: blocked, away, disconnected."""

from __future__ import annotations

from typing import Any

import pytest

from neat_backend.errors import (
    EncoderError,
    LabelStudioRefused,
    LabelStudioUnavailable,
    SettingsError,
)
from neat_backend.records import SYNC
from neat_backend.store import projects
from tests.fake_label_studio import CONFIG, NOTHING_TO_CHOOSE, FakeLabelStudio
from tests.living import PROJECT, Backend, engine_of, live_of
from tests.waiting import until
from tests.worker.workers import Workers, ready, shown


def test_a_refused_key_blocks_the_project_with_the_remedy_until_it_is_right(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    server.failing = LabelStudioRefused("Label Studio refused us (401); check LABEL_STUDIO_API_KEY")
    workers.start(backend)
    until(lambda: shown(backend) == projects.BLOCKED)
    assert "check LABEL_STUDIO_API_KEY" in backend.project().detail
    server.failing = None
    until(ready(backend))
    assert backend.project().detail == ""


def test_a_missing_key_blocks_the_project_and_names_the_settings(backend: Backend, workers: Workers) -> None:
    worker = workers.make(backend)
    del worker._connect  # type: ignore[method-assign]
    workers.run(worker)
    until(lambda: shown(backend) == projects.BLOCKED)
    assert "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY" in backend.project().detail
    with pytest.raises(SettingsError):
        worker._connect(backend.project())


def test_label_studio_down_is_shown_as_away_and_recovers_with_labels_taken_in_meanwhile(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    on = server.projects[PROJECT].model_version
    server.failing = LabelStudioUnavailable("can't reach Label Studio", retry_after_seconds=0.1)
    event = backend.deliver(server.annotate(server.served(PROJECT)[1], "dog"))
    event = backend.deliver(server.annotate(server.served(PROJECT)[0], "invalid"))
    backend.file(SYNC)
    until(lambda: shown(backend) == projects.AWAY)
    live = live_of(worker)
    until(lambda: len(engine_of(live).labels()) == 2)
    assert server.projects[PROJECT].model_version == on
    server.failing = None
    until(lambda: backend.project().published_event > event)
    until(ready(backend))
    assert backend.project().detail == ""


def test_a_project_deleted_in_label_studio_says_so(server: FakeLabelStudio, backend: Backend, workers: Workers) -> None:
    del server.projects[PROJECT]
    workers.start(backend)
    until(lambda: shown(backend) == projects.DISCONNECTED)
    assert "deleted, or not visible to the API key's user" in backend.project().detail


def test_missing_weights_block_the_project_until_they_are_there(
    backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*_: object) -> Any:
        raise EncoderError("NEAT_ENCODER: no weights; set NEAT_ENCODER_WEIGHTS")

    worker = workers.make(backend)
    del worker._shared_encoder  # type: ignore[method-assign]
    monkeypatch.setattr(worker._inference, "encoder", build)
    workers.run(worker)
    until(lambda: shown(backend) == projects.BLOCKED)
    assert backend.project().detail == "NEAT_ENCODER: no weights; set NEAT_ENCODER_WEIGHTS"
    monkeypatch.setattr(worker._inference, "encoder", lambda *_: backend.encoder)
    until(ready(backend))


def test_a_label_config_without_choices_blocks_until_it_is_repaired(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    server.change_project(PROJECT, label_config=NOTHING_TO_CHOOSE)
    with backend.database.begin() as conn:
        projects.update(conn, PROJECT, label_config=NOTHING_TO_CHOOSE)
    workers.start(backend)
    until(lambda: shown(backend) == projects.BLOCKED)
    assert "no Choices tag" in backend.project().detail
    server.change_project(PROJECT, label_config=CONFIG)
    until(ready(backend))
