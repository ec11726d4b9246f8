"""Images of a live project: failures, changes, deletions."""

from __future__ import annotations

from typing import Any

import pytest

from neat_backend.compute import heap
from neat_backend.errors import ImageError
from neat_backend.labelstudio import events as ls_events
from neat_backend.records import RETRY_IMAGES, Label
from neat_backend.store import projects, tasks
from neat_backend.worker.live import LiveProject
from tests.fake_label_studio import (
    FakeLabelStudio,
    picture,
)
from tests.living import PROJECT, Backend, engine_of, settle, settled, state, take_in
from tests.worker.live.actions import image_state, in_engine, labels


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


def test_arrays_that_were_lost_are_made_again(server: FakeLabelStudio, backend: Backend, live: LiveProject) -> None:
    before = state(live)
    live.context.arrays.drop("features/fake")
    again = settled(backend)
    assert state(again) == before
    assert backend.encoder.encoded == 24
