"""A slow machine must not look like a slow Label Studio."""

from __future__ import annotations

import pytest

from neat_backend.worker.steps import publishing
from tests.waiting import HANGS


@pytest.fixture(autouse=True)
def no_publication_is_slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a slow one the next publication waits; test_publishing.py has a clock of its own for that."""
    if request.path.name != "test_publishing.py":
        monkeypatch.setattr(publishing, "SLOW_SECONDS", HANGS)
