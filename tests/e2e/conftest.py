"""The same Label Studio that tests/labelstudio uses: one for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from tests.e2e.chromium import running
from tests.labelstudio.server import shared_label_studio, stop_label_studio


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> LabelStudioServer:
    return shared_label_studio(tmp_path_factory.mktemp("label-studio"))


@pytest.fixture(scope="session")
def annotator(label_studio: LabelStudioServer) -> Annotator:
    return Annotator(label_studio.url, label_studio.token)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for a module's tests: Playwright runs once at a time."""
    with running() as browser:
        yield browser


def pytest_sessionfinish() -> None:
    stop_label_studio()
