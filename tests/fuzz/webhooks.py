"""What Label Studio sends, mutated; what is accepted is applied by a worker's live project, and must not be poison."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import sqlalchemy as sa

from neat_backend.store import inbox
from neat_backend.store.database import Database
from neat_backend.store.schema import metadata
from neat_backend.web.app import create_app
from neat_backend.worker.steps import applying
from tests.fake_label_studio import FakeLabelStudio
from tests.fuzz import label_configs
from tests.fuzz.mutations import mutate, text_of
from tests.fuzz.tally import Tally, tracebacks
from tests.living import Backend, state, take_in

PROJECT = 1  # that of the recorded bodies
RECORDED = Path(__file__).parents[1] / "labelstudio" / "webhooks"
EVENTS_PER_STORE = 250
_ROUTES = {"setup": "/setup", "predict": "/predict"}


def recorded() -> list[tuple[str, dict[str, Any]]]:
    """Route and body of everything that was recorded from a real Label Studio."""
    files = sorted(RECORDED.glob("*.json"))
    return [(_ROUTES.get(file.stem, "/webhook"), json.loads(file.read_text())) for file in files]


def fuzz(tally: Tally, seed: int, seconds: float, folder: Path, databases: Mapping[str, Database]) -> None:
    """One store after the other, on every database in turn, until the time is over; each at least once.

    databases: with tables, by the name of their kind; they are emptied and get the project.
    """
    rng, until, number = Random(seed), time.monotonic() + seconds, 0
    pause, applying.POISON_RETRY_SECONDS = applying.POISON_RETRY_SECONDS, 0
    server = FakeLabelStudio()
    server.add_project(PROJECT)
    server.import_tasks(PROJECT, 6, annotated=["dog", "invalid"])
    try:
        while number < len(databases) or time.monotonic() < until:
            for name, database in databases.items():
                number += 1
                with database.begin() as conn:
                    for table in reversed(metadata.sorted_tables):
                        conn.execute(sa.delete(table))
                backend = Backend(folder / str(number), server, database, numbers=(PROJECT,), predict_wait_seconds=0)
                with tracebacks(tally, f"webhooks on {name}"):
                    _one_store(tally, rng, backend, name)
    finally:
        applying.POISON_RETRY_SECONDS = pause


def _one_store(tally: Tally, rng: Random, backend: Backend, name: str) -> None:
    client = create_app(backend.settings, backend.database).test_client()
    live, bodies = backend.live(PROJECT), recorded()
    take_in(live)
    accepted = 0
    sent: list[str] = []
    for turn in range(100 * EVENTS_PER_STORE):
        route, body = rng.choice(bodies)
        if rng.random() < 0.1:
            _with_another_label_config(rng, body)
        data = text_of(rng, mutate(rng, body))
        what = f"{route} {data[:1500]!r}"
        kind = f"requests of Label Studio, {name}"
        answer = tally.timed(
            kind,
            lambda what=what: what,  # type: ignore[misc]
            lambda: client.post(route, data=data, content_type="application/json"),  # noqa: B023
        )
        tally.answered(kind, answer.status_code, what)
        if answer.status_code == 201:
            accepted += 1
            sent.append(what)
        if accepted % 25 == 24 or accepted >= EVENTS_PER_STORE:
            accepted += 1
            _apply(tally, live, name, sent)
            sent.clear()
        if accepted >= EVENTS_PER_STORE or turn > 20 * EVENTS_PER_STORE:
            break
    for path in (
        "/",
        "/projects/1",
        "/api/projects",
        "/api/projects/1/ranking",
        "/api/projects/1/failed-images",
        "/api/projects/1/export",
        "/metrics",
        "/api/projects/1/rounds",
    ):
        answer = client.get(path, headers={"Accept": "text/html"})
        answer.get_data()
        tally.answered("requests after it", answer.status_code, path)
    _same_after_a_restart(tally, backend, live, name)


def _apply(tally: Tally, live: Any, name: str, sent: list[str]) -> None:
    """As the worker does; nothing that was accepted may be set aside, or fail and be tried again."""
    kind = f"events applied, {name}"
    began = time.thread_time()
    try:
        while live.apply.step():
            pass
    except Exception as error:
        tally.fail(f"{kind}: {type(error).__name__}: {error}; one of {sent!r:.3000}")
    tally.slowest[kind] = max(tally.slowest[kind], time.thread_time() - began)
    tally.counts[kind]["applied"] += len(sent)
    with live.context.database.begin() as conn:
        for event, reason in inbox.set_aside_events(conn, live.id):
            tally.fail(f"{kind}: poison: {reason} for {event.action} {json.dumps(event.payload)[:1500]}")
            inbox.requeue(conn, event.id)
            inbox.mark_applied(conn, [event.id])


def _same_after_a_restart(tally: Tally, backend: Backend, live: Any, name: str) -> None:
    try:
        live.wanted.read = True
        take_in(live)
        before = state(live)
        again = backend.live(PROJECT)
        take_in(again)
        if state(again) != before:
            tally.fail(f"{name}: another state after a restart")
        tally.count(f"states compared, {name}", "equal" if state(again) == before else "different")
    except Exception as error:
        tally.fail(f"{name}: {type(error).__name__}: {error} while it is read anew")


def _with_another_label_config(rng: Random, body: dict[str, Any]) -> None:
    xml = label_configs.mutated(rng)
    if "schema" in body:
        body["schema"] = xml
    elif isinstance(body.get("project"), dict):
        body["project"]["label_config"] = xml
        body["project"]["updated_at"] = f"2026-12-01T00:00:{rng.randrange(60):02d}Z"
