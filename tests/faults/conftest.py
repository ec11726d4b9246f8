from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.fake_label_studio import FakeLabelStudio
from tests.labelstudio.server import stop_label_studio
from tests.living import Backend, label_studio_of


@pytest.fixture
def server() -> FakeLabelStudio:
    """A Label Studio with one project, its eight tasks unlabelled."""
    return label_studio_of(8)


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    """Its backend, on SQLite; no round comes of itself."""
    with closing(Backend(tmp_path, server, batch_size=1000)) as made:
        yield made


def pytest_sessionfinish() -> None:
    stop_label_studio()
