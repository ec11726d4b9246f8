"""A label is kept with the place that its task had in the order which its annotator was served."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from neat_backend.service.service import Service
from neat_backend.store import inbox, selections
from neat_backend.store.selections import Selection
from neat_backend.worker.live import LiveProject
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, label_studio_of, settle, take_in


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of()


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    with closing(Backend(tmp_path, server, reconcile_seconds=60)) as made:
        yield made


@pytest.fixture
def live(server: FakeLabelStudio, backend: Backend) -> LiveProject:
    server.import_tasks(PROJECT, 12)
    made = backend.live()
    settle(made)
    return made


def shown(backend: Backend) -> dict[int, Selection]:
    """The whole order, as people are shown it."""
    ranking = Service(backend.settings, backend.database).ranking(PROJECT)
    return {row["task"]: Selection(row["rank"], row["inconsistency"]) for row in ranking}


def kept(backend: Backend) -> dict[int, Selection]:
    with backend.database.read() as conn:
        return selections.of(conn, PROJECT, range(1, 100))


def test_each_label_is_kept_with_its_place_at_that_time(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    expected = {}
    for place, choice in ((0, "dog"), (0, "invalid"), (3, "cat"), (8, "dog"), (0, "cat")):  # of a head of 8
        order = shown(backend)
        task = next(task for task, one in order.items() if one.rank == place)
        expected[task] = order[task]
        backend.deliver(server.annotate(task, choice))
        settle(live)
    assert kept(backend) == expected
    assert len({one.inconsistency for one in expected.values()}) > 1


def test_labels_that_come_in_together_are_of_one_order(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    order = shown(backend)
    first, second = sorted(order, key=lambda task: order[task].rank)[:2]
    for task in (first, second):
        backend.deliver(server.annotate(task, "dog"))
    settle(live)
    assert kept(backend) == {first: order[first], second: order[second]}


def test_another_answer_to_a_labelled_task_changes_nothing_and_a_new_label_does(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    task = server.served(PROJECT)[0]
    backend.deliver(server.annotate(task, "dog"))
    settle(live)
    before = kept(backend)
    backend.deliver(server.annotate(task, "cat", annotator=2))
    settle(live)
    assert kept(backend) == before
    for annotation in sorted(server.projects[PROJECT].annotations):
        backend.deliver(server.delete_annotation(annotation))
    settle(live)
    order = shown(backend)
    backend.deliver(server.annotate(task, "cat"))
    settle(live)
    assert kept(backend) == {task: order[task]}


def test_labels_from_before_there_was_an_order_have_none(server: FakeLabelStudio, backend: Backend) -> None:
    server.import_tasks(PROJECT, 5, annotated=["dog", "cat"])
    settle(backend.live())
    assert kept(backend) == {}


@pytest.mark.parametrize("found_by", ["comparison", "restart"])
def test_a_label_that_no_webhook_told_of_is_kept_with_the_order_that_was_served_meanwhile(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, found_by: str
) -> None:
    order = shown(backend)
    task = server.served(PROJECT)[1]
    server.annotate(task, "dog")
    if found_by == "comparison":
        live.bulk.syncing.compare_at = 0.0
    else:
        live = backend.live()
    settle(live)
    assert kept(backend) == {task: order[task]}


def test_a_death_before_the_event_is_marked_applied_takes_the_note_along(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = shown(backend)
    task = server.served(PROJECT)[0]
    backend.deliver(server.annotate(task, "dog"))

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(inbox, "mark_applied", die)
        with pytest.raises(SystemExit):
            live.apply.step()
    assert kept(backend) == {}
    take_in(backend.live())
    assert kept(backend) == {task: order[task]}
