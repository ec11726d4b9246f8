"""Changes without a webhook are found by reading Label Studio."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from neat_backend.errors import ImageError, LabelStudioUnavailable, LeaseLost, StoreError
from neat_backend.records import COMPARE, Label
from neat_backend.store import projects, tasks
from neat_backend.worker.live import LiveProject
from tests.fake_label_studio import (
    WITHOUT_INVALID,
    FakeLabelStudio,
    label_config,
)
from tests.living import PROJECT, Backend, engine_of, settle, settled, state, take_in
from tests.worker.live.actions import in_engine, labels, read_anew


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
    """A worker is stopped while it reads; its successor finds changes that no webhook reported; then it goes on."""
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
