"""A project with six tasks on a fake Label Studio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.fake_label_studio import FakeLabelStudio
from tests.living import Backend, label_studio_of
from tests.worker.workers import short_pauses, workers

__all__ = ["short_pauses", "workers"]


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of(6)


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    with closing(Backend(tmp_path, server)) as made:
        yield made
