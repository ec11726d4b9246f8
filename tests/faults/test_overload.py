"""More than can be done at once: labels come first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from neat_backend.records import SYNC, Task
from neat_backend.store import projects
from tests.fake_label_studio import FakeLabelStudio
from tests.faults.harness import assert_whole
from tests.living import PROJECT, Backend, label_studio_of
from tests.test_worker import Workers, _hurry, ready, until, workers  # noqa: F401 - fixtures


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of(16)


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    with closing(Backend(tmp_path, server, batch_size=1000)) as made:
        yield made


class Gate:
    """Holds somebody up until it is opened; knows whether anybody has come to it."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(60)


def test_a_label_is_served_from_while_a_large_import_is_being_embedded(
    server: FakeLabelStudio,
    backend: Backend,
    workers: Workers,  # noqa: F811
) -> None:
    """Also where the import's images have changed the order, so that it has to be published anew."""
    worker = workers.start(backend)
    until(ready(backend))
    live = worker._live[PROJECT][0]
    until(lambda: not live.is_busy())
    gate = Gate()
    encoded = backend.encoder.encoded
    backend.encoder.before_encoding = lambda: gate() if backend.encoder.encoded >= encoded + 8 else None
    backend.deliver(server.import_tasks(PROJECT, 40))
    until(gate.reached.is_set)
    for number in range(3):
        event = backend.deliver(server.annotate(server.served(PROJECT)[number], "dog"))
        until(lambda event=event: backend.project().published_event >= event, "it waits for the import")  # type: ignore[misc]
    assert backend.project().state == projects.EMBEDDING
    assert not gate.opened.is_set()
    gate.opened.set()
    until(ready(backend))
    until(lambda: not live.is_busy())
    assert_whole(backend, live)


def test_a_label_is_served_from_while_a_large_project_is_being_read(
    server: FakeLabelStudio,
    backend: Backend,
    workers: Workers,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    live = worker._live[PROJECT][0]
    until(lambda: not live.is_busy())
    gate = Gate()
    original = server.tasks

    def tasks(project: int, image_key: str, page_size: int = 3) -> Iterator[list[Task]]:
        for page in original(project, image_key, page_size):
            yield page
            gate()

    monkeypatch.setattr(server, "tasks", tasks)
    backend.file(SYNC)
    until(gate.reached.is_set)
    event = backend.deliver(server.annotate(server.served(PROJECT)[0], "dog"))
    until(lambda: backend.project().published_event >= event, "it waits for the reading")
    assert backend.project().state == projects.SYNCING
    assert not gate.opened.is_set()
    gate.opened.set()
    until(ready(backend))
    until(lambda: not live.is_busy())
    assert_whole(backend, live)
