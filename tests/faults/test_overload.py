"""More than can be done at once: nothing is lost, memory stays bounded, labels come first."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from neat_backend.labelstudio.events import parse_webhook
from neat_backend.records import SYNC, Event, Task
from neat_backend.store import inbox, projects, schema
from neat_backend.web.app import create_app
from neat_backend.worker.steps import applying
from tests.fake_label_studio import FakeLabelStudio
from tests.faults.harness import assert_whole
from tests.living import PROJECT, Backend, live_of
from tests.waiting import Gate
from tests.worker.workers import Workers, ready, short_pauses, until, workers  # noqa: F401 - fixtures

QUEUED, NOTE = 10_000, "four kilobytes " * 273  # events, and what each task's data has beside the image
MOST_MEGABYTES = 40.0  # more, while they are taken in; as objects all of them are more than twice that
OTHER = 8  # another project
STATUS = Path("/proc/self/status")


def test_a_label_is_served_from_while_a_large_import_is_being_embedded(
    server: FakeLabelStudio,
    backend: Backend,
    workers: Workers,  # noqa: F811
) -> None:
    """Also where the import's images have changed the order, so that it has to be published anew."""
    worker = workers.start(backend)
    until(ready(backend))
    live = live_of(worker)
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
    live = live_of(worker)
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


def actions(server: FakeLabelStudio, count: int) -> Iterator[dict[str, object]]:
    """The webhooks of `count` actions of people: mostly labels, created, changed and deleted."""
    rng, there = np.random.default_rng(0), server.projects[PROJECT]
    for number in range(count):
        what = rng.random()
        answered = {one["task"] for one in there.annotations.values()}
        free = [task for task in there.tasks if task not in answered]
        if number % 100 == 50:
            yield server.import_tasks(PROJECT, 1)
            there.tasks[max(there.tasks)]["data"]["note"] = NOTE
        elif number % 100 == 99:
            yield server.delete_tasks(int(rng.choice(list(there.tasks))))
        elif len(answered) < 20 or (what < 0.3 and len(free) > 20):
            yield server.annotate(int(rng.choice(free)), str(rng.choice(["dog", "cat", "invalid"])))
        elif what < 0.7:
            changed = int(rng.choice(list(there.annotations)))
            yield server.change_annotation(changed, str(rng.choice(["dog", "cat", "invalid"])))
        else:
            yield server.delete_annotation(int(rng.choice(list(there.annotations))))


class Memory:
    """The most that this process holds of its own (no files) between entering and leaving, in MB."""

    def __enter__(self) -> Memory:
        self.first = self.most = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> float:
        found = re.search(r"RssAnon:\s+(\d+)", STATUS.read_text())
        assert found is not None
        return int(found[1]) / 1000


@pytest.mark.skipif(not STATUS.exists(), reason="reads /proc")
def test_ten_thousand_queued_events_are_taken_in_within_bounded_memory_and_labels_come_first(
    server: FakeLabelStudio,
    tmp_path: Path,
    workers: Workers,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They came while no worker ran. Their images, and half of themselves, wait until fresh labels have been served."""
    server.import_tasks(PROJECT, 60)
    for task in server.projects[PROJECT].tasks.values():
        task["data"]["note"] = NOTE
    server.add_project(OTHER)
    server.import_tasks(OTHER, 6)
    backend = Backend(tmp_path, server, numbers=(PROJECT, OTHER), batch_size=10_000)
    first = workers.start(backend)
    until(lambda: ready(backend)() and ready(backend, OTHER)())
    workers.stop(first)

    sent = 0
    for _ in range(QUEUED // 1000):
        bodies = [parse_webhook(body) for body in actions(server, 1000)]
        with backend.database.begin() as conn:
            inbox.append_many(conn, [(PROJECT, one.action, one.payload) for one in bodies])
        sent += len(bodies)
    del bodies
    web = create_app(backend.settings, backend.database).test_client()
    fresh = next(iter(server.projects[OTHER].tasks))
    assert web.post("/webhook", json=server.annotate(fresh, "dog")).status_code == 201  # and none is refused

    half, images = Gate(), Gate()
    pending = inbox.pending
    taken = 0

    def pending_and_slow(conn: sa.Connection, project: int, limit: int = 500) -> list[Event]:
        nonlocal taken
        found = pending(conn, project, limit)
        taken += len(found) if project == PROJECT and limit > 1 else 0
        if taken > QUEUED // 2:
            half()
        return found

    monkeypatch.setattr(inbox, "pending", pending_and_slow)
    backend.encoder.before_encoding = images
    with Memory() as memory:
        worker = workers.start(backend)
        until(half.reached.is_set, progress=lambda: taken)
        until(lambda: backend.project(OTHER).published_event > QUEUED, "it waits for the other project's events")
        with backend.database.read() as conn:
            assert inbox.depth(conn, PROJECT).count >= QUEUED // 2 - applying.EVENTS_AT_ONCE
        half.opened.set()
        until(images.reached.is_set, progress=lambda: taken)
        until(lambda: backend.project().applied_event == QUEUED, progress=lambda: backend.project().applied_event)
        last = backend.deliver(server.annotate(server.served(PROJECT)[0], "cat"))
        until(lambda: backend.project().published_event >= last, "it waits for the images")
        assert not images.opened.is_set()
        images.opened.set()
        until(ready(backend), progress=lambda: backend.encoder.encoded)
    assert memory.most - memory.first < MOST_MEGABYTES
    live = live_of(worker)
    until(lambda: not live.is_busy())
    with backend.database.read() as conn:
        applied = sa.select(sa.func.count()).where(
            schema.events.c.project == PROJECT, schema.events.c.state == "applied"
        )
        assert conn.execute(applied).scalar_one() == sent + 1
    assert_whole(backend, live)
    workers.stop(worker)
    backend.close()
