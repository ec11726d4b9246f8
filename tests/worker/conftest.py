"""Fixtures of all tests of the worker."""

from __future__ import annotations

import pytest

from neat_backend.worker.steps import publishing
from tests.living import FakeTraining
from tests.waiting import HANGS


@pytest.fixture(autouse=True)
def no_publication_is_slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine must not look like a slow Label Studio. The tests of publishing have a clock for that."""
    if request.path.parent.name != "publishing":
        monkeypatch.setattr(publishing, "SLOW_SECONDS", HANGS)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[FakeTraining]:
    """The trainings that rounds begin."""
    monkeypatch.setattr("neat_backend.worker.steps.query_rounds.TrainingProcess", FakeTraining)
    FakeTraining.running.clear()
    return FakeTraining.running
