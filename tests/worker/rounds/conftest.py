"""A live project with twenty tasks and ResNet-18 as its classifier."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from neat_backend.worker.live import LiveProject
from tests.fake_label_studio import FakeLabelStudio
from tests.living import Backend, label_studio_of, settle


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of(20)


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    with closing(Backend(tmp_path, server, classifier="resnet18")) as made:
        yield made


@pytest.fixture
def live(backend: Backend) -> LiveProject:
    live = backend.live()
    settle(live)
    return live
