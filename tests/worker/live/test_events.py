"""Events that fail, and annotations that arrive with their tasks."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from neat_backend.errors import LabelStudioUnavailable, StoreError
from neat_backend.labelstudio import events as ls_events
from neat_backend.records import Label
from neat_backend.store import inbox
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps import applying
from tests.fake_label_studio import (
    CONFIG,
    WITHOUT_INVALID,
    FakeLabelStudio,
)
from tests.living import PROJECT, Backend, settle, state, take_in
from tests.worker.live.actions import AWAY, in_engine, labels, read_anew


def test_a_poison_event_is_set_aside_and_those_behind_it_are_applied(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = backend.deliver(server.annotate(1, "dog"))
    poison = backend.deliver(server.annotate(2, "dog"))
    last = backend.deliver(server.annotate(3, "cat"))
    original = ls_events.changes

    def changes(event: Any, image_key: str) -> Any:
        if event.id == poison:
            raise ValueError("what is this?")
        return original(event, image_key)

    monkeypatch.setattr(ls_events, "changes", changes)
    for attempt in range(3):
        assert live.apply.step()
        with backend.database.read() as conn:
            assert bool(inbox.set_aside_events(conn, PROJECT)) == (attempt == 2)
        assert set(labels(live)) == ({1} if attempt < 2 else {1, 3})
    with backend.database.read() as conn:
        (event, reason), *rest = inbox.set_aside_events(conn, PROJECT)
    assert (event.id, reason, rest) == (poison, "ValueError: what is this?", [])
    assert first < poison < last == live.followed.applied == backend.project().applied_event
    assert not live.apply.step()


def test_an_event_that_the_database_will_not_hold_is_set_aside(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ls_events.changes
    refused = server.annotate(2, "dog")
    poison = backend.deliver(refused)
    last = backend.deliver(server.annotate(3, "cat"))

    def changes(event: Any, image_key: str) -> Any:
        made = original(event, image_key)
        if event.id == poison:
            return replace(made, annotations=[replace(each, was_cancelled=None) for each in made.annotations])
        return made

    monkeypatch.setattr(ls_events, "changes", changes)
    for _ in range(3):
        assert live.apply.step()
    with backend.database.read() as conn:
        (event, reason), *rest = inbox.set_aside_events(conn, PROJECT)
    assert (event.id, rest) == (poison, [])
    assert reason.startswith("DataRefused")
    assert set(labels(live)) == {3}
    assert live.followed.applied == last


def test_a_database_that_cannot_write_sets_nothing_aside(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    """A file that may not grow, as on a full disk: said, nothing half-written, and it continues once there is space."""
    backend.deliver(server.import_tasks(PROJECT, 400))
    event = backend.deliver(server.annotate(1, "dog"))
    before = backend.counts()

    def allow(pages: int) -> None:
        backend.database.dispose()
        sa.event.listen(
            backend.database._engine, "connect", lambda made, _: made.execute(f"PRAGMA max_page_count = {pages}")
        )

    allow(1)  # SQLite takes it for: as large as it is
    for _ in range(applying.POISON_ATTEMPTS + 2):
        with pytest.raises(StoreError, match="free some space"):
            live.apply.step()
        assert backend.counts() == before
    with backend.database.read() as conn:
        assert inbox.set_aside_events(conn, PROJECT) == []
    allow(1_000_000)
    settle(live)
    assert live.followed.applied == event
    with tempfile.TemporaryDirectory() as folder:
        assert state(live) == read_anew(folder, server)


def test_a_poison_event_at_the_end_does_not_hold_up_the_published_event(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = backend.deliver(server.annotate(2, "dog"))

    def changes(*_: object) -> Any:
        raise ValueError("what is this?")

    monkeypatch.setattr(ls_events, "changes", changes)
    settle(live)
    assert backend.project().published_event == poison


def test_tasks_imported_with_their_annotations_are_labelled(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    backend.deliver(server.import_tasks(PROJECT, 3, annotated=["cat", "invalid"]))
    settle(live)
    assert labels(live) == {13: Label(13, "cat"), 14: Label(14, invalid=True)}
    assert in_engine(live) == set(range(1, 16))


def test_annotations_that_could_not_be_read_are_read_later(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    backend.deliver(server.import_tasks(PROJECT, 3, annotated=["cat"]))
    server.failing = AWAY
    live.apply.step()
    with pytest.raises(LabelStudioUnavailable):
        live.bulk.step()
    server.failing = None
    take_in(live)
    assert labels(live) == {13: Label(13, "cat")}


def test_a_skip_is_invalid_only_without_a_choice_for_it(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    backend.deliver(server.skip(1))
    take_in(live)
    assert labels(live) == {}
    backend.deliver(server.change_project(PROJECT, label_config=WITHOUT_INVALID))
    take_in(live)
    assert labels(live) == {1: Label(1, invalid=True)}
    backend.deliver(server.change_project(PROJECT, label_config=CONFIG))
    take_in(live)
    assert labels(live) == {}
