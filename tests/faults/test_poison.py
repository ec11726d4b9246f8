"""An event that nothing can be made of: tried again, set aside, shown; what comes behind it is not held up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from neat_backend.service.service import Service
from neat_backend.store import inbox
from neat_backend.store.database import Database
from neat_backend.web.app import create_app
from neat_backend.worker.steps import applying
from tests.fake_label_studio import FakeLabelStudio
from tests.faults.harness import assert_whole
from tests.living import PROJECT, Backend, engine_of, live_of
from tests.store.conftest import empty_postgres, postgres_server  # noqa: F401 - fixtures
from tests.worker.workers import Workers, ready, short_pauses, until, workers  # noqa: F401 - fixtures


@pytest.fixture(params=["sqlite", "postgresql"])
def backend(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    monkeypatch.setattr(applying, "POISON_RETRY_SECONDS", 0.02)
    server = FakeLabelStudio()
    server.add_project(PROJECT)
    server.import_tasks(PROJECT, 8)
    database = None
    if request.param == "postgresql":
        database = Database(request.getfixturevalue("empty_postgres"))
        database.migrate()
    backend = Backend(tmp_path, server, database=database, batch_size=1000)
    yield backend
    backend.close()


def refuse(backend: Backend, task: int) -> str:
    """Have the database itself refuse the annotations of a task; the statement that ends it."""
    with backend.database.begin() as conn:
        if conn.dialect.name == "postgresql":
            conn.execute(sa.text(f"ALTER TABLE annotations ADD CONSTRAINT refused CHECK (task <> {task})"))
            return "ALTER TABLE annotations DROP CONSTRAINT refused"
        conn.execute(
            sa.text(
                f"CREATE TRIGGER refused BEFORE INSERT ON annotations WHEN NEW.task = {task} "
                "BEGIN SELECT RAISE(ABORT, 'refused'); END"
            )
        )
        return "DROP TRIGGER refused"


def test_a_poison_event_is_set_aside_shown_and_blocks_nobody(
    backend: Backend,
    workers: Workers,  # noqa: F811
) -> None:
    server = backend.server
    worker = workers.start(backend)
    until(ready(backend))
    live = live_of(worker)
    senseless = backend.file("ANNOTATION_CREATED", {"annotation": {"id": "no number", "task": 1}})
    first = backend.deliver(server.annotate(1, "dog"))
    ends_it = refuse(backend, 2)
    refused = backend.deliver(server.annotate(2, "cat"))
    last = backend.deliver(server.annotate(3, "invalid"))
    until(lambda: backend.project().published_event >= last)
    assert set(engine_of(live).labels()) == {1, 3}
    with backend.database.read() as conn:
        aside = {event.id: (event.attempts, reason) for event, reason in inbox.set_aside_events(conn, PROJECT)}
    assert set(aside) == {senseless, refused}
    assert senseless < first < refused < last
    assert {attempts for attempts, _ in aside.values()} == {applying.POISON_ATTEMPTS}
    assert "annotation" in aside[senseless][1]
    assert aside[refused][1].startswith("DataRefused")

    # shown to people
    service = Service(backend.settings, backend.database)
    assert service.status(PROJECT)["queue"]["set_aside"] == 2
    web = create_app(backend.settings, backend.database).test_client()
    assert "2 events were set aside" in web.get(f"/projects/{PROJECT}").get_data(as_text=True)
    assert f'neat_inbox_set_aside{{project="{PROJECT}"}} 2.0' in web.get("/metrics").get_data(as_text=True)

    # and when what was wrong has been put right
    with backend.database.begin() as conn:
        conn.execute(sa.text(ends_it))
    assert service.retry_events(PROJECT) == 2
    until(lambda: set(engine_of(live).labels()) == {1, 2, 3})
    until(
        lambda: (
            service.status(PROJECT)["queue"] | {"oldest_seconds": 0}
            == {
                "count": 0,
                "oldest_seconds": 0,
                "set_aside": 1,
            }
        )
    )
    until(lambda: not live.is_busy())
    assert_whole(backend, live, aside=[senseless])
