"""A live project, step by step: whatever Label Studio sends, and whenever the process dies."""

from __future__ import annotations

import contextlib
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from neat_backend import connection
from neat_backend.compute import heap
from neat_backend.errors import BadLabelConfig, ImageError, LabelStudioUnavailable, LeaseLost, StoreError
from neat_backend.labelstudio import events as ls_events
from neat_backend.labelstudio import images
from neat_backend.labelstudio.events import PIECE, PredictRequest, parse_webhook
from neat_backend.labelstudio.publisher import score
from neat_backend.labelstudio.tabs import CHECK, NEXT
from neat_backend.records import COMPARE, RETRY_IMAGES, SYNC, Label
from neat_backend.service.service import Service
from neat_backend.store import inbox, projects, snapshots, tasks
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps import applying, reading, shown_state
from neat_backend.worker.steps.comparing import CLOCK_SLACK
from tests.fake_label_studio import (
    BACKEND_URL,
    CONFIG,
    NOTHING_TO_CHOOSE,
    WITHOUT_INVALID,
    FakeLabelStudio,
    Json,
    label_config,
    picture,
)
from tests.living import PROJECT, Backend, FakeTraining, engine_of, label_studio_of, settle, state, take_in

AWAY = LabelStudioUnavailable("Label Studio is away")


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of()


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    with closing(Backend(tmp_path, server)) as made:
        yield made


@pytest.fixture
def live(server: FakeLabelStudio, backend: Backend) -> LiveProject:
    """Twelve tasks, read, embedded and published."""
    server.import_tasks(PROJECT, 12)
    live = backend.live()
    settle(live)
    return live


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_RETRY_AFTER_SECONDS", ())
    monkeypatch.setattr(applying, "POISON_RETRY_SECONDS", 0)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[FakeTraining]:
    """Those that were begun."""
    monkeypatch.setattr("neat_backend.worker.steps.rounds.TrainingProcess", FakeTraining)
    FakeTraining.running.clear()
    return FakeTraining.running


def labels(live: LiveProject) -> dict[int, Label]:
    return engine_of(live).labels()


def settled(backend: Backend) -> LiveProject:
    """As after a restart."""
    live = backend.live()
    settle(live)
    return live


def in_engine(live: LiveProject) -> set[int]:
    return set(engine_of(live).tasks())


def image_state(backend: Backend, task: int) -> str:
    with backend.database.read() as conn:
        return {t: s for t, _, s in tasks.task_images(conn, PROJECT)}[task]


# the invariants

KINDS = ["import", "label", "label", "label", "skip", "change", "unlabel", "delete", "image", "config", "with-labels"]
DOINGS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2**16)), min_size=1, max_size=12)
CONFIGS = (CONFIG, WITHOUT_INVALID, label_config("dog", "owl", "invalid"), NOTHING_TO_CHOOSE)


def do(server: FakeLabelStudio, doing: str, number: int) -> Json | None:
    """Somebody does something in Label Studio; the webhook that it sends."""
    there = server.projects[PROJECT]
    some = sorted(there.tasks)
    answered = sorted(there.annotations)
    choice = ("dog", "cat", "invalid")[number % 3]
    if doing == "import":
        return server.import_tasks(PROJECT, 1 + number % 3)
    if doing == "with-labels":
        return server.import_tasks(PROJECT, 3, annotated=[choice, "dog"])
    if doing == "label" and some:
        return server.annotate(some[number % len(some)], choice, annotator=1 + number % 2, ground_truth=number % 7 == 0)
    if doing == "skip" and some:
        return server.skip(some[number % len(some)])
    if doing == "change" and answered:
        return server.change_annotation(answered[number % len(answered)], choice)
    if doing == "unlabel" and answered:
        return server.delete_annotation(answered[number % len(answered)])
    if doing == "delete" and some:
        return server.delete_tasks(*some[number % len(some) :][:2])
    if doing == "image" and some:
        return server.change_image(some[number % len(some)], number)
    if doing == "config":
        return server.change_project(PROJECT, label_config=CONFIGS[number % 3])
    return None


def read_anew(folder: str, server: FakeLabelStudio) -> tuple[Any, ...]:
    """The state of a backend that has never seen an event."""
    anew = Backend(Path(folder), server)
    live = anew.live()
    take_in(live)
    anew.close()
    return state(live)


def some_server() -> FakeLabelStudio:
    server = FakeLabelStudio()
    server.add_project(PROJECT)
    server.import_tasks(PROJECT, 5, annotated=["dog", "cat"])
    return server


FEW = hypothesis_settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@FEW
@given(doings=DOINGS, pauses=st.integers(1, 6))
def test_after_any_stream_of_events_the_state_is_that_of_a_project_read_anew(
    doings: list[tuple[str, int]], pauses: int
) -> None:
    server = some_server()
    with tempfile.TemporaryDirectory() as folder:
        backend = Backend(Path(folder) / "a", server)
        live = backend.live()
        take_in(live)
        reads = len(server.called("tasks"))
        for at, (doing, number) in enumerate(doings):
            body = do(server, doing, number)
            for _ in range(2 if number % 5 == 0 else 1):  # some come twice
                if body is not None:
                    backend.deliver(body)
            if at % pauses == 0:
                take_in(live)
        take_in(live)
        assert len(server.called("tasks")) == reads, "events alone were enough"
        assert state(live) == read_anew(folder + "/b", server)
        counts = backend.counts()
        known, invalid, unlabelled = vars(engine_of(live).counts()).values()
        assert known + invalid + unlabelled == counts.tasks == counts.ready == len(server.projects[PROJECT].tasks)
        backend.close()


@FEW
@given(doings=DOINGS, order=st.randoms(use_true_random=False))
def test_events_in_any_order_come_to_the_same_once_counters_are_compared(
    doings: list[tuple[str, int]], order: random.Random
) -> None:
    server = some_server()
    with tempfile.TemporaryDirectory() as folder:
        backend = Backend(Path(folder) / "a", server, reconcile_seconds=60)
        live = backend.live()
        take_in(live)
        bodies = [body for doing in doings if (body := do(server, *doing)) is not None]
        bodies += [body for body in bodies if order.random() < 0.3]
        order.shuffle(bodies)
        for body in bodies:
            backend.deliver(body)
        take_in(live)
        live.bulk.syncing.compare()
        take_in(live)
        assert state(live) == read_anew(folder + "/b", server)
        backend.close()


@FEW
@given(doings=DOINGS, arrives=st.lists(st.booleans(), min_size=12, max_size=12))
def test_whatever_webhooks_are_lost_one_comparison_makes_up_for_them(
    doings: list[tuple[str, int]], arrives: list[bool]
) -> None:
    server = some_server()
    with tempfile.TemporaryDirectory() as folder:
        backend = Backend(Path(folder) / "a", server, reconcile_seconds=60)
        live = backend.live()
        take_in(live)
        for doing, arrived in zip(doings, arrives, strict=False):
            body = do(server, *doing)
            if body is not None and arrived:
                backend.deliver(body)
                take_in(live)
        live.bulk.syncing.compare()
        take_in(live)
        assert state(live) == read_anew(folder + "/b", server)
        backend.close()


@FEW
@given(
    doings=DOINGS, deaths=st.lists(st.sampled_from(["", "", "idle", "stored", "embedding"]), min_size=12, max_size=12)
)
def test_a_process_that_dies_at_any_moment_leaves_the_state_of_one_that_did_not(
    doings: list[tuple[str, int]], deaths: list[str]
) -> None:
    server = some_server()
    with tempfile.TemporaryDirectory() as folder:
        backend = Backend(Path(folder) / "a", server)
        live = backend.live()
        take_in(live)
        for (doing, number), death in zip(doings, deaths, strict=False):
            body = do(server, doing, number)
            if body is not None:
                backend.deliver(body)
            if death == "stored":  # between the store's commit and the engine
                with backend.database.read() as conn:
                    waiting = inbox.pending(conn, PROJECT)
                if waiting:
                    live.apply._store(waiting)
                server.failing = AWAY  # nothing can be read: the store alone has to do
            elif death == "embedding":
                live.apply.step()

                def die() -> None:
                    raise MemoryError("killed")

                backend.encoder.before_encoding = die
                with contextlib.suppress(MemoryError):
                    take_in(live)
                backend.encoder.before_encoding = lambda: None
            if death:
                live = backend.live()
                while live.apply.step():
                    pass
            server.failing = None
            take_in(live)
            if death:
                assert state(live) == read_anew(tempfile.mkdtemp(dir=folder), server)
        backend.close()


def test_labels_are_there_after_a_death_though_label_studio_is_away(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    for task, choice in ((1, "dog"), (2, "invalid"), (3, "cat")):
        backend.deliver(server.annotate(task, choice))
    with backend.database.read() as conn:
        live.apply._store(inbox.pending(conn, PROJECT))  # and the engine never hears of it
    again = backend.live()
    live.intake.be_stale()
    live.apply.step()
    live.learning.step()
    assert state(again) == state(live)
    assert labels(again) == {1: Label(1, "dog"), 2: Label(2, invalid=True), 3: Label(3, "cat")}


def test_a_database_that_fails_between_the_commit_and_the_engine_loses_nothing(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.deliver(server.annotate(1, "dog"))

    def down(*_: object) -> Any:
        raise StoreError("the database is down")

    with monkeypatch.context() as patch:
        patch.setattr(reading, "resolve_labels", down)
        with pytest.raises(StoreError):
            live.apply.step()
        with pytest.raises(StoreError):
            live.apply.step()
    assert not live.apply.step()  # no event is left to bring it up again
    assert labels(live) == {1: Label(1, "dog")}


def test_known_invalid_and_unlabelled_are_disjoint_and_cover_the_tasks(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    for task, choice in ((1, "dog"), (2, "invalid"), (3, None), (4, "cat")):
        backend.deliver(server.annotate(task, choice))
    take_in(live)
    pool = set(engine_of(live).ranking().ids.tolist())
    known = {t for t, x in labels(live).items() if x.choice is not None}
    invalid = {t for t, x in labels(live).items() if x.invalid}
    assert (known, invalid) == ({1, 4}, {2})
    assert pool == set(range(1, 13)) - known - invalid


# images


def test_a_broken_image_fails_its_task_with_the_reason_and_nothing_else(
    server: FakeLabelStudio, backend: Backend
) -> None:
    server.import_tasks(PROJECT, 6)
    server.files["/data/upload/2.png"] = b"<html>please log in"
    server.files["/data/upload/4.png"] = ImageError("Label Studio answered 404 for the image")
    live = backend.live()
    settle(live)
    with backend.database.read() as conn:
        failed = {f.task: f.error for f in tasks.failed_images(conn, PROJECT)}
    assert set(failed) == {2, 4}
    assert "web page" in failed[2]
    assert "404" in failed[4]
    assert in_engine(live) == {1, 3, 5, 6}
    assert backend.project().state == projects.READY


def test_failed_images_are_tried_again_when_asked_for(server: FakeLabelStudio, backend: Backend) -> None:
    server.import_tasks(PROJECT, 3)
    server.files["/data/upload/2.png"] = b"not an image"
    live = backend.live()
    take_in(live)
    server.files["/data/upload/2.png"] = picture(2)
    take_in(live)
    assert in_engine(live) == {1, 3}
    backend.file(RETRY_IMAGES)
    take_in(live)
    assert in_engine(live) == {1, 2, 3}
    assert backend.counts().failed == 0
    assert backend.encoder.encoded == 3


def test_a_failure_that_may_pass_is_tried_three_times(
    server: FakeLabelStudio, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.import_tasks(PROJECT, 3)
    server.files["/data/upload/2.png"] = ImageError("the storage took too long", transient=True)
    live = backend.live()
    take_in(live)
    assert image_state(backend, 2) == "pending"
    assert live.is_busy()  # not to be put away: nobody would try again
    assert len(engine_of(live)) == 2
    take_in(live)
    assert len([c for c in server.called("fetch_bytes") if c[2].endswith("/2.png")]) == 1  # not before its time
    for _ in range(2):
        assert image_state(backend, 2) == "pending"
        live.images.retry_at = 0.0
        live.bulk.step()
    assert image_state(backend, 2) == "failed"
    with backend.database.read() as conn:
        assert tasks.failed_images(conn, PROJECT)[0].error == "the storage took too long"


def test_a_failure_that_passes_leaves_no_trace(server: FakeLabelStudio, backend: Backend) -> None:
    server.import_tasks(PROJECT, 3)
    server.files["/data/upload/2.png"] = ImageError("the storage took too long", transient=True)
    live = backend.live()
    take_in(live)
    server.files["/data/upload/2.png"] = picture(2)
    live.images.retry_at = 0.0
    settle(live)
    assert in_engine(live) == {1, 2, 3}
    assert not live.is_busy()


def test_an_image_is_encoded_once_whatever_happens_to_its_task(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    assert backend.encoder.encoded == 12
    backend.deliver(server.annotate(3, "dog"))
    backend.deliver(server.change_annotation(max(server.projects[PROJECT].annotations), "cat"))
    settle(live)
    for _ in range(2):
        live = backend.live()
        settle(live)
    assert backend.encoder.encoded == 12
    assert len(in_engine(live)) == 12


def test_a_task_with_another_image_is_embedded_again_and_keeps_its_label(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    backend.deliver(server.annotate(3, "dog"))
    backend.deliver(server.change_image(3, seed=99))
    settle(live)
    assert backend.encoder.encoded == 13
    assert labels(live) == {3: Label(3, "dog")}
    assert state(live) == state(settled(backend))
    assert backend.encoder.encoded == 13


def test_a_task_that_is_deleted_while_it_is_embedded_stays_away(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    backend.deliver(server.import_tasks(PROJECT, 2))
    live.apply.step()
    done = []

    def delete() -> None:
        if not done:
            done.append(backend.deliver(server.delete_tasks(13)))
            live.apply.step()

    backend.encoder.before_encoding = delete
    take_in(live)
    assert done
    assert in_engine(live) == {*range(1, 13), 14}
    assert backend.counts().tasks == 13


def test_an_image_that_changes_while_it_is_embedded_is_not_taken_for_the_new_one(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.deliver(server.import_tasks(PROJECT, 1))
    live.apply.step()
    changes = [99]
    original = tasks.set_image_state
    with monkeypatch.context() as patch:

        def late(conn: Any, project: int, ids: Any, *rest: Any) -> None:
            # What an event's transaction would do just before this one.
            if rest[0] == "ready" and 13 in ids and changes:
                body = server.change_image(13, changes.pop())
                task = ls_events.task_from_json(body["tasks"][0], "image")
                tasks.upsert_tasks(conn, project, [task], 10**6)
            original(conn, project, ids, *rest)

        patch.setattr(tasks, "set_image_state", late)
        live.bulk.step()
    assert not changes
    assert image_state(backend, 13) == "pending"
    take_in(live)
    assert state(live) == state(settled(backend))


def test_what_encoding_has_freed_is_given_back_once_nothing_is_left_to_encode(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(heap, "give_back", lambda: given.append(image_state(backend, 13)))
    backend.deliver(server.import_tasks(PROJECT, 1))
    take_in(live)
    take_in(live)
    assert given == ["ready"]


def test_what_people_did_while_nobody_looked_is_taken_in_before_the_whole_project_is_read(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    """Which takes minutes where it is large; it comes all the same, and finds what times of change don't tell."""
    server._now = datetime.now(timezone.utc)
    live.wanted.read = True
    take_in(live)
    live.measures.save()
    live.stop()
    new = server.import_tasks(PROJECT, 2)["tasks"][0]["id"]
    server.annotate(1, "dog")
    server.annotate(new, "cat")
    server.delete_tasks(3)
    again = backend.live()
    server.fail_after["tasks"] = (0, LabelStudioUnavailable("Label Studio does not answer"))
    with pytest.raises(LabelStudioUnavailable):
        again.bulk.step()
    assert engine_of(again) is not None
    assert {task: label.choice for task, label in engine_of(again).labels().items()} == {1: "dog", new: "cat"}
    take_in(again)
    assert new in engine_of(again)
    assert 3 not in engine_of(again)
    assert state(again) == state(settled(backend))


def test_changes_are_not_read_by_a_label_config_that_is_not_the_projects_any_more(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    """Its images may have another key: every task that has changed would seem to have lost its own."""
    with backend.database.begin() as conn:
        projects.update(conn, PROJECT, compared_at=datetime.now(timezone.utc))
    live.measures.save()
    live.stop()
    server.change_project(PROJECT, label_config=label_config("dog", "bird"))
    again = backend.live()
    server.calls.clear()
    take_in(again)
    assert server.called("changed_tasks") == []
    assert state(again) == state(settled(backend))


def test_a_labelled_task_without_an_image_that_is_gone_leaves_no_label(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    server.files["/data/upload/4.png"] = ImageError("Label Studio answered 404 for the image")
    engine_of(live).remove_tasks([4])
    backend.deliver(server.change_image(4, seed=1))
    server.files["/data/upload/4-1.png"] = ImageError("Label Studio answered 404 for the image")
    backend.deliver(server.annotate(4, "dog"))
    take_in(live)
    assert (4 in engine_of(live), engine_of(live).labels()[4].choice) == (False, "dog")
    server.delete_tasks(4)  # and nobody tells of it
    live.wanted.read = True
    take_in(live)
    assert 4 not in engine_of(live).labels()
    assert state(live) == state(backend.live())


def test_a_change_is_found_though_label_studios_clock_was_set_back(server: FakeLabelStudio, backend: Backend) -> None:
    backend.settings = backend.settings.model_copy(update={"reconcile_seconds": 60})
    server.import_tasks(PROJECT, 12)
    live = settled(backend)
    backend.deliver(server.annotate(3, "dog"))
    backend.deliver(server.annotate(4, "dog"))
    take_in(live)
    server._now -= timedelta(hours=1)
    first, _ = sorted(server.projects[PROJECT].annotations)
    server.change_annotation(first, "cat")  # and nobody tells of it
    backend.deliver(server.import_tasks(PROJECT, 1))
    server._now += timedelta(minutes=10)
    take_in(live)
    live.bulk.syncing.compare_at = 0.0
    take_in(live)
    assert engine_of(live).labels()[3].choice == "cat"


@pytest.mark.parametrize("step", ["sync", "reconcile"])
def test_what_was_read_before_another_worker_took_over_is_not_written_after(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is stopped while it reads; its successor finds what no webhook has told; then it goes on."""
    original = server.tasks if step == "sync" else server.task_ids
    others: list[LiveProject] = []

    def read_slowly(*arguments: Any) -> Iterator[Any]:
        pages = list(original(*arguments))
        if not others:
            server.import_tasks(PROJECT, 2)
            others.append(backend.live(owner="another"))
            settle(others[0])
        yield from pages

    monkeypatch.setattr(server, "tasks" if step == "sync" else "task_ids", read_slowly)
    if step == "sync":
        live.wanted.read = True
    else:
        server.delete_tasks(5)
        live.wanted.compare_now()
    with pytest.raises(LeaseLost):
        take_in(live)
    assert backend.counts().tasks == len(server.projects[PROJECT].tasks)


def test_a_task_that_is_deleted_while_the_project_is_read_does_not_come_back(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tasks.task_images
    applying = threading.Thread(target=live.apply.step)

    def task_images(conn: Any, project: int) -> Any:
        found = original(conn, project)
        if 5 in server.projects[PROJECT].tasks:
            backend.deliver(server.delete_tasks(5))
            applying.start()
            applying.join(0.5)  # waits for the engine, if all is well
        return found

    monkeypatch.setattr(tasks, "task_images", task_images)
    live.wanted.read = True
    live.bulk.step()
    applying.join()
    assert 5 not in in_engine(live)


def test_arrays_that_were_lost_are_made_again(server: FakeLabelStudio, backend: Backend, live: LiveProject) -> None:
    before = state(live)
    live.context.arrays.drop("features/fake")
    again = settled(backend)
    assert state(again) == before
    assert backend.encoder.encoded == 24


# events


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
    """A file that may not grow, as on a full disk: said, nothing half-written, and it goes on once there is room."""
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


# the project's settings


def test_classes_appear_and_vanish_with_the_label_config(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    backend.deliver(server.annotate(1, "dog"))
    backend.deliver(server.annotate(2, "cat"))
    backend.deliver(server.change_project(PROJECT, label_config=label_config("cat", "owl", "invalid")))
    settle(live)
    assert engine_of(live).classes == ("cat", "owl")
    assert labels(live) == {2: Label(2, "cat")}
    backend.deliver(server.annotate(3, "owl"))
    backend.deliver(server.change_project(PROJECT, label_config=label_config("dog", "cat", "owl", "invalid")))
    settle(live)
    assert labels(live) == {1: Label(1, "dog"), 2: Label(2, "cat"), 3: Label(3, "owl")}
    assert state(live) == state(settled(backend))


def test_a_label_config_that_cannot_be_used_is_shown_and_the_old_one_stays(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    backend.deliver(server.change_project(PROJECT, label_config=NOTHING_TO_CHOOSE))
    backend.deliver(server.annotate(1, "dog"))
    take_in(live)
    assert backend.project().state == projects.BLOCKED
    assert "no Choices tag" in backend.project().detail
    assert labels(live) == {1: Label(1, "dog")}
    backend.deliver(server.change_project(PROJECT, label_config=CONFIG))
    take_in(live)
    assert (backend.project().state, backend.project().detail) == (projects.READY, "")


def test_a_project_whose_label_config_cannot_be_used_becomes_live_once_it_is_repaired(
    server: FakeLabelStudio, backend: Backend
) -> None:
    server.change_project(PROJECT, label_config=NOTHING_TO_CHOOSE)
    with backend.database.begin() as conn:
        projects.update(conn, PROJECT, label_config=NOTHING_TO_CHOOSE)
    with pytest.raises(BadLabelConfig):
        backend.live()
    server.change_project(PROJECT, label_config=CONFIG)
    server.import_tasks(PROJECT, 2)
    assert in_engine(settled(backend)) == {1, 2}


def test_an_older_word_on_the_label_config_does_not_undo_a_newer_one(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    overtaken = server.annotate(1, "dog")  # its webhook carries the settings of this moment
    backend.deliver(server.change_project(PROJECT, label_config=WITHOUT_INVALID, sampling="Random", title="zoo"))
    live.apply.step()
    backend.deliver(overtaken)
    live.apply.step()
    assert live.schema.config.invalid == ()
    project = backend.project()
    assert (project.label_config, project.sampling, project.title) == (WITHOUT_INVALID, "Random", "zoo")


def test_one_large_deletion_is_taken_in_in_pieces(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite all webhooks wait for the one transaction that writes."""
    gone = [*sorted(server.projects[PROJECT].tasks)[:2], *range(10_000, 10_000 + 4 * PIECE)]
    body = {**server.delete_tasks(*gone[:2]), "tasks": [{"id": task} for task in gone]}
    last = Service(backend.settings, backend.database).accept(parse_webhook(body))
    deleted: list[int] = []
    real = tasks.delete_tasks

    def noted(conn: Any, project: int, ids: list[int], seen: int) -> list[int]:
        deleted.append(len(ids))
        return real(conn, project, ids, seen)

    monkeypatch.setattr(tasks, "delete_tasks", noted)
    rounds = []
    while live.apply.step():
        rounds.append(sum(deleted))
        deleted.clear()
    assert sum(rounds) == len(gone)
    assert max(rounds) < inbox.ITEMS_AT_ONCE + PIECE
    assert backend.project().applied_event == last
    assert not in_engine(live) & set(gone)


@pytest.mark.parametrize("ahead", [timedelta(minutes=5), timedelta(days=36_500)])
class TestTimesAheadOfLabelStudiosClock:
    """From a clock that was set back since, or from somebody who posts what he likes."""

    def test_do_not_keep_the_projects_fields_from_following(
        self, server: FakeLabelStudio, backend: Backend, live: LiveProject, ahead: timedelta
    ) -> None:
        event = server.change_project(PROJECT, title="from the future")
        event["project"]["updated_at"] = (server.now() + ahead).isoformat()
        backend.deliver(event)
        live.apply.step()
        server._now += CLOCK_SLACK
        backend.deliver(server.change_project(PROJECT, label_config=WITHOUT_INVALID, sampling="Random", title="zoo"))
        live.apply.step()
        project = backend.project()
        assert (project.label_config, project.sampling, project.title) == (WITHOUT_INVALID, "Random", "zoo")

    def test_nor_an_annotation_from_being_changed(
        self, server: FakeLabelStudio, backend: Backend, live: LiveProject, ahead: timedelta
    ) -> None:
        event = server.annotate(1, "dog")
        event["annotation"]["updated_at"] = event["task"]["updated_at"] = (server.now() + ahead).isoformat()
        backend.deliver(event)
        live.apply.step()
        server._now += CLOCK_SLACK
        backend.deliver(server.change_annotation(event["annotation"]["id"], "cat"))
        live.apply.step()
        assert labels(live)[1].choice == "cat"

    def test_are_forgotten_where_the_clock_was_not_known_as_the_whole_project_is_read(
        self,
        server: FakeLabelStudio,
        backend: Backend,
        live: LiveProject,
        ahead: timedelta,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(server, "clock", lambda: None)
        event = server.change_project(PROJECT, title="from the future")
        event["project"]["updated_at"] = (server.now() + ahead).isoformat()
        backend.deliver(event)
        live.apply.step()
        live.wanted.read = True
        live.bulk.step()
        backend.deliver(server.change_project(PROJECT, sampling="Random"))
        live.apply.step()
        assert backend.project().sampling == "Random"


def test_events_from_before_the_project_was_read_do_not_undo_its_settings(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    backend.deliver(server.annotate(1, "dog"))
    server.change_project(PROJECT, label_config=WITHOUT_INVALID)  # its own webhook was lost
    live.wanted.read = True
    live.bulk.step()
    live.apply.step()
    assert live.schema.config.invalid == ()
    assert backend.project().label_config == WITHOUT_INVALID


def test_sampling_is_set_at_the_first_connection_and_followed_from_then_on(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    assert server.projects[PROJECT].sampling == "Uncertainty sampling"
    assert server.titles(PROJECT) == ["Default", NEXT, CHECK]
    backend.deliver(server.change_project(PROJECT, sampling="Sequential sampling"))
    settle(live)
    settle(backend.live())
    assert len(server.called("set_sampling")) == 1
    assert server.projects[PROJECT].sampling == backend.project().sampling == "Sequential sampling"
    head = server.called("import_predictions")[-1][2]
    written = server.projects[PROJECT].predictions[server.projects[PROJECT].model_version]
    assert [written[t][0]["score"] for t in head] == sorted((written[t][0]["score"] for t in head), reverse=True)


@pytest.mark.parametrize("save", [{"show_predictions": False}, {"model_version": ""}, {"model_version": "another"}])
def test_a_save_that_takes_our_version_away_is_answered_at_once(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, save: dict[str, Any]
) -> None:
    served = server.served(PROJECT)
    server.calls.clear()
    backend.deliver(server.change_project(PROJECT, **save))
    settle(live)
    assert server.projects[PROJECT].model_version == "neat-r000002"
    assert server.served(PROJECT) == served
    assert server.called("project") == [], "no comparison was needed"


def test_events_from_before_a_version_was_switched_on_do_not_count(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    late = server.change_project(PROJECT, title="zoo")
    backend.deliver(server.annotate(server.served(PROJECT)[0], "dog"))
    settle(live)
    live.publishing.forget()
    settle(live)
    published = len(server.called("import_predictions"))
    assert late["project"]["model_version"] < server.projects[PROJECT].model_version
    backend.deliver(late)
    del late["project"]["model_version"]  # a body that does not tell
    backend.deliver(late)
    settle(live)
    assert len(server.called("import_predictions")) == published


def test_a_project_that_is_not_to_be_configured_is_left_as_it_is(server: FakeLabelStudio, tmp_path: Path) -> None:
    backend = Backend(tmp_path, server, configure_project=False)
    server.import_tasks(PROJECT, 3)
    settle(backend.live())
    assert server.projects[PROJECT].sampling == "Sequential sampling"
    assert server.titles(PROJECT) == []
    backend.close()


# lost webhooks


@pytest.mark.parametrize(
    "lost",
    [
        "annotate",
        "skip",
        "change_annotation",
        "delete_annotation",
        "import_tasks",
        "delete_tasks",
        "change_image",
        "one_deleted_one_new",
        "config",
    ],
)
def test_a_lost_webhook_is_made_up_for(server: FakeLabelStudio, tmp_path: Path, lost: str) -> None:
    backend = Backend(tmp_path, server, reconcile_seconds=60)
    server.import_tasks(PROJECT, 5, annotated=["dog"])
    live = backend.live()
    take_in(live)
    reads = len(server.called("tasks"))
    live.bulk.syncing.compare_at = 0.0
    take_in(live)
    assert len(server.called("tasks")) == reads  # nothing was lost
    {
        "annotate": lambda: server.annotate(2, "cat"),
        "skip": lambda: server.skip(2),
        "change_annotation": lambda: server.change_annotation(min(server.projects[PROJECT].annotations), "cat"),
        "change_image": lambda: server.change_image(3, 99),
        "one_deleted_one_new": lambda: (server.delete_tasks(2), server.import_tasks(PROJECT, 1)),
        "delete_annotation": lambda: server.delete_annotation(min(server.projects[PROJECT].annotations)),
        "import_tasks": lambda: server.import_tasks(PROJECT, 1),
        "delete_tasks": lambda: server.delete_tasks(1),
        "config": lambda: server.change_project(PROJECT, label_config=WITHOUT_INVALID),
    }[lost]()
    take_in(live)
    assert len(server.called("tasks")) == reads  # not before its time
    live.bulk.syncing.compare_at = 0.0
    take_in(live)
    assert (len(server.called("tasks")) > reads) == (lost == "config"), "read as a whole only where that is needed"
    assert state(live) == read_anew(str(tmp_path / "anew"), server)
    backend.close()


def test_what_has_changed_is_read_when_somebody_opens_the_data_manager_and_no_more(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    server.calls.clear()
    server.annotate(3, "dog")  # its webhook is lost
    backend.file(COMPARE)  # Label Studio has called /setup
    settle(live)
    assert labels(live) == {3: Label(3, "dog")}
    assert not server.called("tasks")
    assert not server.called("annotations")


def test_a_difference_that_reading_again_does_not_cure_is_not_read_for_ever(
    server: FakeLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend(tmp_path, server, reconcile_seconds=60)
    server.import_tasks(PROJECT, 2)
    live = backend.live()
    take_in(live)
    original = server.project
    monkeypatch.setattr(server, "project", lambda number: replace(original(number), annotation_count=5))
    reads = len(server.called("annotations"))
    for _ in range(4):
        live.bulk.syncing.compare_at = 0.0
        take_in(live)
    assert len(server.called("annotations")) == reads + 1
    backend.close()


# serving


def test_in_round_mode_the_batch_is_fixed_until_the_round_ends_even_over_a_restart(
    server: FakeLabelStudio, tmp_path: Path, trainings: list[FakeTraining]
) -> None:
    backend = Backend(tmp_path, server, rerank="round")
    server.import_tasks(PROJECT, 24)
    live = backend.live()
    settle(live)
    batch = server.served(PROJECT)
    assert len(batch) == 8
    for number, task in enumerate(batch[:3]):
        backend.deliver(server.annotate(task, ("dog", "cat")[number % 2]))
        settle(live)
        assert server.served(PROJECT) == batch[number + 1 :]
    assert len(server.called("import_predictions")) == 1
    live = backend.live()
    settle(live)
    assert server.served(PROJECT) == batch[3:]
    backend.deliver(server.annotate(batch[3], "cat"))
    settle(live)
    assert live.rounds.step()
    trainings[-1].succeed()
    assert live.rounds.step()
    settle(live)
    assert server.served(PROJECT) == engine_of(live).head() != batch[4:]
    backend.close()


@pytest.mark.parametrize("rerank", ["live", "round"])
def test_another_strategys_plan_is_what_annotators_are_served(
    server: FakeLabelStudio, tmp_path: Path, rerank: str
) -> None:
    backend = Backend(tmp_path, server, strategy="coreset", rerank=rerank)
    server.import_tasks(PROJECT, 24)
    live = backend.live()
    settle(live)
    assert live.plan.step()
    assert not live.plan.step(), "nothing has changed since"
    settle(live)
    planned = [ranked.task for ranked in live.plan.head()]
    assert server.served(PROJECT) == planned != engine_of(live).head()
    event = backend.deliver(server.annotate(planned[0], "dog"))
    settle(live)
    assert server.served(PROJECT) == planned[1:], "until there is a new plan, the old one, less what is labelled"
    assert live.is_busy()
    assert backend.project().published_event != event, "what was answered is not in the order yet"
    assert live.plan.step()
    settle(live)
    assert backend.project().published_event == event
    if rerank == "live":
        again = [ranked.task for ranked in live.plan.head()]
        assert server.served(PROJECT)[:4] == again[:4]
    backend.close()


def test_in_round_mode_no_batch_is_fixed_while_only_some_images_are_in(
    server: FakeLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neat_backend.compute.embedding.FLUSH_IMAGES", 2)
    backend = Backend(tmp_path, server, rerank="round", encode_batch_size=2)
    server.import_tasks(PROJECT, 20)
    live = backend.live()
    backend.encoder.before_encoding = lambda: live.publish.step() and None
    settle(live)
    assert len(server.served(PROJECT)) == 8
    assert live.publish._current._batch == engine_of(live).head()
    backend.close()


def test_what_annotators_are_served_is_the_order_after_every_label(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    for number in range(8):
        task = server.served(PROJECT)[0]
        event = backend.deliver(server.annotate(task, ("dog", "invalid", "cat")[number % 3]))
        settle(live)
        served = server.served(PROJECT)
        assert served[:4] == engine_of(live).head(len(served))[:4]
        assert backend.project().published_event == event


def test_a_death_right_after_the_switch_leaves_nothing_behind(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise SystemExit

    backend.deliver(server.change_project(PROJECT, sampling="Sequential sampling"))
    live.apply.step()
    with monkeypatch.context() as patch:
        patch.setattr("neat_backend.worker.steps.publishing.revisions.switched", die)
        with pytest.raises(SystemExit):
            live.publish.step()
    assert server.projects[PROJECT].model_version == "neat-r000002"  # which the store has never heard of
    again = backend.live()
    assert not again.tidy.step()
    assert server.versions(PROJECT) == ["neat-r000001", "neat-r000002"]
    settle(again)
    monkeypatch.setattr("neat_backend.worker.steps.publishing.QUIET_SECONDS", 0.0)
    while again.tidy.step():
        pass
    assert server.versions(PROJECT) == [server.projects[PROJECT].model_version] == ["neat-r000003"]


def test_tasks_that_vanished_without_a_word_are_found_when_nothing_of_the_head_is_taken(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    server.delete_tasks(*range(1, 13))  # and no webhook
    live.followed.sampling = "Sequential sampling"
    live.publish._done = ()
    with pytest.raises(LabelStudioUnavailable):
        live.publish.step()
    settle(live)
    assert in_engine(live) == set()
    assert backend.counts().tasks == 0


def test_a_head_with_tasks_that_are_gone_is_served_without_them_and_read_again(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    gone = server.served(PROJECT)[-1]
    server.delete_tasks(gone)  # and no webhook
    backend.deliver(server.change_project(PROJECT, sampling="Sequential sampling"))
    reads = len(server.called("tasks"))
    settle(live)
    assert len(server.called("tasks")) > reads
    assert gone not in in_engine(live)
    assert gone not in server.served(PROJECT)


def test_several_projects_keep_to_themselves(server: FakeLabelStudio, tmp_path: Path) -> None:
    server.add_project(8, label_config("owl", "invalid"))
    backend = Backend(tmp_path, server, numbers=(PROJECT, 8))
    server.import_tasks(PROJECT, 6)
    server.import_tasks(8, 6)
    seven, eight = backend.live(), backend.live(8)
    settle(seven)
    settle(eight)
    before = state(eight)
    backend.deliver(server.annotate(1, "dog"))
    settle(seven)
    settle(eight)
    assert state(eight) == before
    assert labels(seven) == {1: Label(1, "dog")}
    backend.deliver(server.annotate(7, "owl"))
    settle(eight)
    assert labels(eight) == {7: Label(7, "owl")}
    assert set(server.served(PROJECT)) == {2, 3, 4, 5, 6}
    assert set(server.served(8)) == set(range(8, 13))
    backend.close()


# what people see


def test_the_files_for_the_web_show_order_counts_and_version(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    event = backend.deliver(server.annotate(1, "dog"))
    settle(live)
    head, engine = snapshots.read_head(live.context.arrays), engine_of(live)
    assert head is not None
    assert engine is not None
    assert list(head.tasks) == engine.ranked(engine.head())
    assert (head.known, head.invalid, head.unlabelled, head.classes) == (1, 0, 11, engine.classes)
    assert head.event == event
    assert head.model_version == server.projects[PROJECT].model_version == backend.project().model_version
    ranking = snapshots.read_ranking(live.context.arrays, head)
    assert ranking is not None
    expected = vars(engine.ranking()) | {"queue": np.where(engine.ranking().queue < 2, engine.ranking().queue, -1)}
    assert expected.keys() - ranking.keys() == {"quality"}
    for name, values in ranking.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


class Counting:
    """How often the whole ranking is made, and which files are written."""

    def __init__(self, live: LiveProject, patch: pytest.MonkeyPatch) -> None:
        self.rankings, self.files = 0, list[str]()
        make, write = engine_of(live).copied_ranking, live.context.arrays.write_snapshot

        def made() -> Any:
            self.rankings += 1
            return make()

        def written(name: str, arrays: Any) -> None:
            self.files.append(name)
            write(name, arrays)

        patch.setattr(engine_of(live), "copied_ranking", made)
        patch.setattr(live.context.arrays, "write_snapshot", written)


def test_waiting_to_publish_computes_and_writes_nothing_over_and_over(
    server: FakeLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend(tmp_path, server, publish_interval_seconds=1000)
    server.import_tasks(PROJECT, 12)
    live = backend.live()
    settle(live)
    backend.deliver(server.annotate(server.served(PROJECT)[1], "dog"))
    backend.deliver(server.annotate(server.served(PROJECT)[0], "invalid"))
    live.apply.step()
    live.learning.step()
    live.publishing._served.reverse()  # another order than the one to come
    counting = Counting(live, monkeypatch)
    looks = []
    ranked = engine_of(live).ranked
    monkeypatch.setattr(engine_of(live), "ranked", lambda tasks: (looks.append(1), ranked(tasks))[1])
    for _ in range(5):
        assert not live.publish.step()
    assert (counting.files, counting.rankings, len(looks)) == (["head", "ranking"], 1, 1)
    assert live.is_busy()  # its last order is not published
    backend.close()


def test_the_order_of_a_round_is_shown_when_it_is_served(server: FakeLabelStudio, tmp_path: Path) -> None:
    backend = Backend(tmp_path, server, publish_interval_seconds=1000, classifier="resnet18")
    server.import_tasks(PROJECT, 12)
    for task, choice in enumerate(("dog", "cat", "dog", "cat"), 1):
        server.annotate(task, choice)
    live = backend.live()
    settle(live)
    engine, publishing = engine_of(live), live.publishing
    assert engine is not None
    assert publishing is not None

    def shown() -> list[int]:
        head = snapshots.read_head(live.context.arrays)
        assert head is not None
        return [ranked.task for ranked in head.tasks]

    served = server.served(PROJECT)
    assert shown() == engine.head() == served
    said = np.random.default_rng(0).dirichlet((1, 1), 12).astype(np.float32)
    engine.set_probabilities(range(1, 13), said, engine.classes)
    assert engine.head() != served
    assert not live.publish.step()  # it has to wait
    assert shown() == served == server.served(PROJECT)
    publishing.interval_seconds = 0
    assert live.publish.step()
    assert shown() == engine.head() == server.served(PROJECT)
    publishing.interval_seconds = 1000
    backend.deliver(server.annotate(engine.head()[0], "dog"))
    live.apply.step()
    live.learning.step()
    live.publish.step()
    assert shown() == engine.head()  # a label is shown at once
    backend.close()


def test_nothing_at_all_is_done_when_nothing_has_changed(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> Any:
        raise AssertionError("there was nothing to do")

    calls = len(server.calls)
    for what, name in (
        (live.context.database, "read"),
        (live.context.database, "begin"),
        (live.publish._current, "order"),
        (live.context.arrays, "_write"),
    ):
        monkeypatch.setattr(what, name, never)
    for _ in range(3):
        assert live.publish.step()
    assert len(server.calls) == calls


@pytest.fixture
def costly(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Writing the whole ranking takes ten seconds; the clock, to be moved on."""
    now = [1000.0]
    monkeypatch.setattr(shown_state, "CHEAP_RANKING_SECONDS", -1.0)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    write = snapshots.write_ranking

    def slow(*args: Any) -> None:
        now[0] += 10
        write(*args)

    monkeypatch.setattr(snapshots, "write_ranking", slow)
    return now


def test_a_costly_ranking_is_made_at_its_pace_and_the_last_one_is_written_in_the_end(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, costly: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(live, monkeypatch)

    def label(choice: str) -> None:
        backend.deliver(server.annotate(server.served(PROJECT)[0], choice))
        live.apply.step()
        live.learning.step()

    label("dog")
    assert live.publish.step()  # the first one is made at once
    assert counting.rankings == 1
    for number in range(6):
        label(("dog", "invalid")[number % 2])
        for _ in range(3):
            assert not live.publish.step()  # it is served, but not all of it is shown
        assert server.served(PROJECT)[0] == engine_of(live).head()[0]
        costly[0] += 20
    assert counting.rankings == 1
    assert counting.files.count("head") == 7  # the head is always shown
    assert live.is_busy()
    costly[0] += 200 - 6 * 20 - 1
    assert not live.publish.step()
    costly[0] += 1
    assert live.publish.step()
    assert counting.rankings == 2
    assert not live.is_busy()
    ranking = live.context.arrays.read_snapshot("ranking")
    assert ranking is not None
    np.testing.assert_array_equal(ranking["ids"], engine_of(live).ranking().ids)


def test_what_was_labelled_or_deleted_since_the_ranking_was_written_is_not_in_it(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, costly: list[float]
) -> None:
    service = Service(backend.settings, backend.database)

    def shown() -> list[int]:
        return [row["task"] for row in service.ranking(PROJECT)]

    backend.deliver(server.annotate(1, "dog"))
    settle_once(live)
    backend.deliver(server.annotate(2, "cat"))
    backend.deliver(server.delete_tasks(3))
    settle_once(live)
    assert {1, 2, 3}.isdisjoint(shown())
    assert (len(shown()), service.status(PROJECT)["unlabelled"], service.status(PROJECT)["caught_up"]) == (9, 9, True)
    backend.deliver(server.delete_annotation(max(server.projects[PROJECT].annotations)))  # and taken back
    settle_once(live)
    assert {1, 3}.isdisjoint(shown())
    assert len(shown()) == 10
    assert shown()[:8] == engine_of(live).head()
    costly[0] += 1000
    assert live.publish.step()
    assert shown() == engine_of(live).head(12)


def settle_once(live: LiveProject) -> None:
    """All is taken in and published, but perhaps not all of it shown."""
    take_in(live)
    live.publish.step()


@FEW
@given(doings=DOINGS)
def test_an_older_ranking_is_read_with_what_is_newer(doings: list[tuple[str, int]]) -> None:
    server = some_server()
    server.import_tasks(PROJECT, 12)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shown_state, "CHEAP_RANKING_SECONDS", -1.0)
        patch.setattr(shown_state, "RANKING_RESTS", 1e9)
        backend = Backend(Path(folder), server)
        live, service = backend.live(), Service(backend.settings, backend.database)
        settle_once(live)
        for doing in doings:
            body = do(server, *doing)
            if body is not None:
                backend.deliver(body)
            settle_once(live)
            head, counts, status = engine_of(live).head(), engine_of(live).counts(), service.status(PROJECT)
            shown = [row["task"] for row in service.ranking(PROJECT)]
            assert shown[: len(head)] == head
            assert set(shown) <= set(engine_of(live).ranking().ids.tolist())
            assert len(set(shown)) == len(shown)
            assert (status["labelled"], status["unlabelled"]) == (
                {"known": counts.known, "invalid": counts.invalid},
                counts.unlabelled,
            )
            assert status["caught_up"]
            answers = service.predict(PredictRequest(PROJECT, "", [{"id": task} for task in head]))
            assert [answer["score"] for answer in answers] == [
                score(ranked.priority, backend.project().sampling) for ranked in engine_of(live).ranked(head)
            ]
        backend.close()


def test_a_ranking_that_could_not_be_written_is_written_later(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreError("no space left")

    backend.deliver(server.annotate(1, "dog"))
    live.apply.step()
    live.learning.step()
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "write_ranking", full)
        with pytest.raises(StoreError):
            live.publish.step()
    assert Service(backend.settings, backend.database).ranking(PROJECT)[0]["task"] != 1
    assert live.publish.step()
    ranking = live.context.arrays.read_snapshot("ranking")
    assert ranking is not None
    assert 1 not in ranking["ids"]


def test_a_project_that_was_lost_shows_nothing_any_more(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    backend.deliver(server.change_project(PROJECT, sampling="Sequential sampling"))
    live.apply.step()
    other = backend.live(owner="another")
    settle(other)
    shown = snapshots.read_head(live.context.arrays)
    engine_of(live).set_labels([Label(5, "dog")])
    live.learning.step()
    with pytest.raises(LeaseLost):
        live.publish.step()
    assert snapshots.read_head(live.context.arrays) == shown


def test_an_order_that_was_being_written_when_the_worker_was_stopped_does_not_replace_its_successors(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.deliver(server.annotate(5, "dog"))
    live.apply.step()
    live.learning.step()
    original = live.context.arrays._locked
    others: list[LiveProject] = []

    @contextlib.contextmanager
    def stopped(exclusive: bool) -> Iterator[None]:
        if exclusive and not others:
            live.owned.leased_until = 0.0  # long ago
            others.append(backend.live(owner="another"))
            backend.deliver(server.annotate(6, "cat"))
            settle(others[0])
        with original(exclusive):
            yield

    monkeypatch.setattr(live.context.arrays, "_locked", stopped)
    with pytest.raises(StoreError, match="lease"):
        live.publish.step()
    shown = snapshots.read_head(live.context.arrays)
    assert shown is not None
    assert others[0].shown.head is not None
    assert (shown.known, shown.event) == (2, others[0].shown.head.event)


def test_a_state_that_could_not_be_written_is_written_later(
    backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object, **__: object) -> None:
        raise StoreError("the database is down")

    with monkeypatch.context() as patch:
        patch.setattr(projects, "update", down)
        with pytest.raises(StoreError):
            live.owned.state.problem("bulk", projects.AWAY, "gone")
    live.owned.state.problem("bulk", projects.AWAY, "gone")
    assert backend.project().state == projects.AWAY
    with monkeypatch.context() as patch:
        patch.setattr(projects, "update", down)
        with pytest.raises(StoreError):
            live.owned.state.solved("bulk")
    live.bulk.step()
    assert backend.project().state == projects.READY


def test_a_webhook_that_label_studio_refuses_is_said_until_there_is_an_address_that_it_takes(
    server: FakeLabelStudio, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Backend(tmp_path, server, reconcile_seconds=60)

    def connect_at(url: str) -> None:
        server.disconnect(PROJECT)
        server.connect(PROJECT, url)
        with backend.database.begin() as conn:
            projects.update(conn, PROJECT, backend_url=url)

    connect_at("http://neat-backend:9090")
    server.import_tasks(PROJECT, 3)
    live = backend.live()
    settle(live)
    said = "no webhook: labels arrive up to 60 s late; use an address with a dot"
    project = backend.project()
    assert (project.state, project.detail.startswith(said)) == (projects.READY, True)
    assert "http://neat-backend:9090/webhook" in project.detail
    assert caplog.text.count(said) == 1
    live.owned.state.problem("publish", projects.AWAY, "no answer")
    assert backend.project().detail == "no answer"
    live.owned.state.solved("publish")
    assert backend.project().detail == project.detail
    connect_at("http://neat-backend.internal:9090")
    backend.file(SYNC)
    settle(live)
    assert (backend.project().state, backend.project().detail) == (projects.READY, "")
    assert list(server.projects[PROJECT].webhooks) == ["http://neat-backend.internal:9090/webhook"]


def test_the_worst_problem_is_the_one_that_is_shown(backend: Backend, live: LiveProject) -> None:
    live.owned.state.problem("tidy", projects.AWAY, "no answer")
    live.owned.state.problem("bulk", projects.BLOCKED, "wrong key")
    live.owned.state.problem("publish", projects.AWAY, "no answer")
    assert (backend.project().state, backend.project().detail) == (projects.BLOCKED, "wrong key")
    live.owned.state.solved("bulk")
    assert backend.project().state == projects.AWAY
    live.owned.state.solved("tidy")
    live.owned.state.solved("publish")
    assert backend.project().state == projects.READY


def test_a_webhook_carries_a_secret_of_its_own(server: FakeLabelStudio, tmp_path: Path) -> None:
    backend = Backend(tmp_path, server, basic_auth_user="neat", basic_auth_pass="secret")
    take_in(backend.live())
    headers = connection.webhook_headers(backend.settings, PROJECT)
    assert server.projects[PROJECT].webhooks == {f"{BACKEND_URL}/webhook": headers}
    assert headers["Authorization"].startswith(f"Bearer {PROJECT}.")
    backend.close()


@pytest.mark.parametrize("error", [StoreError("disk full"), RuntimeError("ours")])
def test_a_reading_that_could_not_be_taken_in_is_done_again(
    error: Exception, server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.annotate(1, "dog")  # its webhook was lost
    live.wanted.read = True
    with monkeypatch.context() as broken:
        broken.setattr(live.intake, "refresh", lambda: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            live.bulk.step()
    settle(live)
    assert state(live) == state(settled(backend))
    assert 1 in engine_of(live).labels()
