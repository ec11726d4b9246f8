"""A live project on a fake Label Studio, without threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from neat_backend.labelstudio import images
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps import applying
from tests.fake_label_studio import (
    FakeLabelStudio,
)
from tests.living import PROJECT, Backend, label_studio_of, settle


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of()


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    with closing(Backend(tmp_path, server)) as made:
        yield made


@pytest.fixture
def live(server: FakeLabelStudio, backend: Backend) -> LiveProject:
    """Twelve tasks, read, embedded and published."""
    server.import_tasks(PROJECT, 12)
    live = backend.live()
    settle(live)
    return live


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_RETRY_AFTER_SECONDS", ())
    monkeypatch.setattr(applying, "POISON_RETRY_SECONDS", 0)
