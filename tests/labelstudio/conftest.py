from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from neat_backend.labelstudio.client import LabelStudioClient
from tests.labelstudio.server import CONFIG, shared_label_studio, stop_label_studio
from tests.waiting import HANGS

TITLES = (f"project {number}" for number in itertools.count(1))


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> LabelStudioServer:
    return shared_label_studio(tmp_path_factory.mktemp("label-studio"))


@pytest.fixture(scope="session")
def person(label_studio: LabelStudioServer) -> Annotator:
    return Annotator(label_studio.url, label_studio.token, timeout_seconds=HANGS)


@pytest.fixture(scope="session")
def client(label_studio: LabelStudioServer) -> Iterator[LabelStudioClient]:
    # the tests put further servers of images beside it
    client = LabelStudioClient(label_studio.url, label_studio.token, image_hosts=("127.0.0.1",))
    yield client
    client.close()


@pytest.fixture
def project(person: Annotator) -> Iterator[int]:
    number = person.create_project(next(TITLES), CONFIG)
    yield number
    person.delete_project(number)


def pytest_sessionfinish() -> None:
    stop_label_studio()
