"""The same Label Studio that tests/labelstudio uses, and a service beside it: one of each for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from tests.e2e.chromium import running
from tests.e2e.loop import Labelling, Standing, labelled_and_trained
from tests.labelstudio.server import shared_label_studio, stop_label_studio
from tests.waiting import HANGS


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> LabelStudioServer:
    return shared_label_studio(tmp_path_factory.mktemp("label-studio"))


@pytest.fixture(scope="session")
def annotator(label_studio: LabelStudioServer) -> Annotator:
    return Annotator(label_studio.url, label_studio.token, timeout_seconds=HANGS)


@pytest.fixture(scope="session")
def standing(label_studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """A service for tests with a project of their own and no wish to stop it."""
    made = Standing(label_studio, tmp_path_factory.mktemp("standing"))
    made.backend.start()
    yield made
    made.close()


@pytest.fixture(scope="session")
def digits(standing: Standing, annotator: Annotator, tmp_path_factory: pytest.TempPathFactory) -> Labelling:
    """A project of that service with labels and a classifier, to be looked at."""
    return labelled_and_trained(standing, annotator, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for a module's tests: Playwright runs once at a time."""
    with running() as browser:
        yield browser


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """Report failures without parsing the source: in Playwright's greenlets, Python's parser raises SystemError, which
    ends the whole run."""
    style, item.config.option.tbstyle = item.config.option.tbstyle, "native"
    try:
        return (yield)  # type: ignore[return-value]
    finally:
        item.config.option.tbstyle = style


def pytest_sessionfinish() -> None:
    stop_label_studio()
