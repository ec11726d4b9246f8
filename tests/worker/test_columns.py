"""Predicted class and inconsistency in the tasks' data: few calls, nothing lost, no loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from neat_backend.errors import LabelStudioUnavailable
from neat_backend.records import Ranked
from neat_backend.store.insights import Mistake
from neat_backend.worker.steps.columns import AGAIN_SECONDS, CLASS, INCONSISTENCY, NEIGHBOURS, RESTS, SUSPICION, Columns
from tests.conftest import Clock
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, context_of, label_studio_of, settle, state, take_in


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of(12)


@pytest.fixture
def columns(server: FakeLabelStudio, tmp_path: Path, clock: Clock) -> Columns:
    return Columns(context_of(tmp_path, server), clock)


def ranked(task: int, inconsistency: float, predicted: str | None) -> Ranked:
    return Ranked(task, 0, 0.9, inconsistency, 2, True, predicted)


def write(columns: Columns, clock: Clock, head: list[Ranked]) -> int:
    """All that there is to write; how many calls it took."""
    calls = 0
    while columns._missing(head):
        clock.now += 1000
        calls += columns.step(head)
    return calls


def data(server: FakeLabelStudio, task: int) -> dict[str, Any]:
    return {name: value for name, value in server.projects[PROJECT].tasks[task]["data"].items() if name != "image"}


HEAD = [ranked(1, 6.312, "dog"), ranked(2, 6.349, "cat"), ranked(3, 1.04, "dog")]


def test_tasks_with_the_same_value_share_a_call(server: FakeLabelStudio, columns: Columns, clock: Clock) -> None:
    assert write(columns, clock, HEAD) == 4
    assert [data(server, task) for task in (1, 2, 3, 4)] == [
        {CLASS: "dog", INCONSISTENCY: 6.3},
        {CLASS: "cat", INCONSISTENCY: 6.3},
        {CLASS: "dog", INCONSISTENCY: 1.0},
        {},
    ]


def test_only_what_has_changed_is_written_again_also_after_a_restart(
    server: FakeLabelStudio, columns: Columns, clock: Clock, tmp_path: Path
) -> None:
    write(columns, clock, HEAD)
    again = Columns(context_of(tmp_path, server), clock)
    for each in (columns, again):
        assert not each.step(HEAD)
    assert write(again, clock, [ranked(1, 6.33, "cat"), *HEAD[1:]]) == 1
    assert server.called("set_column")[-1][2:] == (CLASS, "cat", (1,))


def test_labels_to_check_have_what_the_neighbours_say_and_how_likely_they_are_mistakes(
    server: FakeLabelStudio, columns: Columns, clock: Clock, tmp_path: Path
) -> None:
    mistakes = [Mistake(5, "dog", 0.94, "cat", 4, 1, 0.9), Mistake(6, "cat", 0.55, None, 4, 1, 0.9)]
    while columns._missing(HEAD, mistakes):
        clock.now += 1000
        columns.step(HEAD, mistakes)
    assert [data(server, task) for task in (5, 6)] == [
        {NEIGHBOURS: "cat", SUSPICION: 0.9},
        {NEIGHBOURS: "none of the classes", SUSPICION: round(0.55, 1)},
    ]
    again = Columns(context_of(tmp_path, server), clock)
    assert not again.step(HEAD, mistakes)


def test_before_the_first_round_there_is_no_class_and_one_that_is_gone_is_emptied(
    server: FakeLabelStudio, columns: Columns, clock: Clock
) -> None:
    write(columns, clock, [ranked(1, 2.0, None)])
    assert data(server, 1) == {INCONSISTENCY: 2.0}
    write(columns, clock, [ranked(1, 2.0, "dog")])
    write(columns, clock, [ranked(1, 2.0, None)])
    assert data(server, 1) == {CLASS: "", INCONSISTENCY: 2.0}


def test_after_each_call_it_rests_as_long_as_that_costs(
    server: FakeLabelStudio, columns: Columns, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*args: Any) -> None:
        clock.now += 2.0

    monkeypatch.setattr(server, "set_column", slow)
    assert columns.step(HEAD)
    clock.now += RESTS * 2.0 - 0.1
    assert not columns.step(HEAD)
    clock.now += 0.2
    assert columns.step(HEAD)


def test_a_failure_stops_nothing_and_is_tried_again(server: FakeLabelStudio, columns: Columns, clock: Clock) -> None:
    server.failing = LabelStudioUnavailable("away")
    assert not columns.step(HEAD)
    server.failing = None
    assert not columns.step(HEAD)
    clock.now += AGAIN_SECONDS
    assert columns.step(HEAD)


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    with closing(Backend(tmp_path, server, task_columns=True)) as made:
        yield made


def test_a_worker_writes_the_head_and_neither_reads_nor_encodes_anything_for_it(
    server: FakeLabelStudio, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neat_backend.worker.steps.columns.SHORTEST_REST_SECONDS", 0.0)
    monkeypatch.setattr("neat_backend.worker.steps.columns.RESTS", 0)
    live = backend.live()
    settle(live)
    encoded, before = backend.encoder.encoded, state(live)
    while live.tidy.step():
        pass
    head = [one.task for one in live.publish.order.head]
    assert len(head) == 8  # the first 2B of 12
    assert {task for task in server.projects[PROJECT].tasks if data(server, task)} == set(head)
    live.bulk.syncing.compare()
    for task in head:  # a webhook that brings such a task, too
        backend.deliver(
            server._event("TASKS_UPDATED", server.projects[PROJECT], tasks=[server.projects[PROJECT].tasks[task]])
        )
    take_in(live)
    assert state(live) == before
    assert backend.encoder.encoded == encoded
    calls = len(server.called("set_column"))
    while live.tidy.step():
        pass
    assert len(server.called("set_column")) == calls


def test_nothing_is_written_unless_it_is_asked_for(server: FakeLabelStudio, tmp_path: Path) -> None:
    backend = Backend(tmp_path, server)
    live = backend.live()
    settle(live)
    live.tidy.step()
    assert not server.called("set_column")
    backend.close()
