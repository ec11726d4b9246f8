"""What is done before a first project is connected, so that its first order comes soon."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from neat_backend.compute.inference import EncoderFacts
from neat_backend.compute.inference_process import InferenceProcess
from neat_backend.errors import EncoderError
from neat_backend.models.preprocessing import Preprocessing
from neat_backend.worker.worker import Worker
from tests.living import PROJECT, Backend, take_in
from tests.worker.workers import Workers

FACTS = EncoderFacts("fake", 12, 1, False, Preprocessing(2, 2, (0.5,) * 3, (0.5,) * 3))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the process that encodes is asked."""
    asked: list[Any] = []

    def ask(_: object, *request: Any) -> dict[str, Any]:
        asked.append(request)
        return asdict(FACTS)

    monkeypatch.setattr(InferenceProcess, "ask", ask)
    return asked


def own_encoder(workers: Workers, backend: Backend) -> Worker:
    worker = workers.make(backend)
    del worker._shared_encoder
    return worker


def test_the_encoder_is_built_before_a_first_project_is_read(
    backend: Backend, workers: Workers, built: list[Any]
) -> None:
    worker = own_encoder(workers, backend)
    worker.warm_up()
    assert built == [("facts", "auto", "")]
    assert worker._inference.encoder("auto", "").key == FACTS.key
    assert len(built) == 1, "projects use the one that is there"


def test_projects_that_have_been_read_build_their_encoder_themselves(
    backend: Backend, workers: Workers, built: list[Any]
) -> None:
    take_in(backend.live(PROJECT))
    own_encoder(workers, backend).warm_up()
    assert built == []


def test_missing_weights_are_said_once_a_project_needs_them(
    backend: Backend, workers: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def ask(*_: object) -> Any:
        raise EncoderError("NEAT_ENCODER: no weights; set NEAT_ENCODER_WEIGHTS")

    monkeypatch.setattr(InferenceProcess, "ask", ask)
    with caplog.at_level("INFO"):
        own_encoder(workers, backend).warm_up()
    assert "the encoder is not ready yet: NEAT_ENCODER: no weights" in caplog.text
