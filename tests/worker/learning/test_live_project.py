"""The classifiers in a live project: restarts, rounds, publishing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neat_backend.errors import StoreError
from neat_backend.worker.steps.learning import LONGEST_HOLD_SECONDS
from tests.conftest import Clock
from tests.fake_label_studio import FakeLabelStudio
from tests.living import (
    PROJECT,
    Backend,
    FakeTraining,
    engine_of,
    label,
    label_studio_of,
    recorded,
    settle,
    settled,
    state,
    take_in,
)
from tests.worker.learning.made import backend_of
from tests.worker.learning.test_learning import results


def test_each_webhook_is_a_test_before_it_is_learnt_and_a_restart_knows_of_it(
    backend: Backend, trainings: list[FakeTraining]
) -> None:
    live = settled(backend)
    label(backend, live, "dog", "cat", "invalid", "dog")
    live.rounds.step()
    trainings[0].succeed()
    live.rounds.step()
    for task, choice in ((5, "cat"), (6, "dog"), (7, "invalid"), (8, "cat")):
        said = engine_of(live).predictions([task])
        before = live.learning.tested
        label(backend, live, choice, first=task)
        if choice == "invalid":
            assert live.learning.tested is before
        else:
            at = engine_of(live).classes.index(choice)
            assert live.learning.tested.right[-1].tolist() == [int(one[0] == at) for one in said.values()]
    again = backend.live()
    assert again.learning.tested.right.tolist() == live.learning.tested.right.tolist()
    assert again.learning.tested.tested == 6
    take_in(again)
    assert again.learning.tested.tested == 6, "labels that are read again are not new"
    assert state(again) == state(live)


def test_labels_that_were_there_at_the_first_reading_test_nothing(tmp_path: Path) -> None:
    server = label_studio_of(20, annotated=["dog", "cat", "dog", "invalid"])
    with backend_of(tmp_path, server) as backend:
        assert settled(backend).learning.tested.tested == 0


@pytest.mark.parametrize("leads", ["linear", "resnet18"])
def test_a_restart_gives_the_order_of_the_one_that_was_in_force(
    backend: Backend, trainings: list[FakeTraining], leads: str
) -> None:
    live = settled(backend)
    label(backend, live, "dog", "cat", "invalid", "dog")
    live.rounds.step()
    trainings[0].succeed()
    live.rounds.step()
    right = results(**{"network" if leads == "resnet18" else "linear": 30})
    live.learning.tested = replace(live.learning.tested, right=right)
    take_in(live)
    settle(live)
    assert engine_of(live).source == leads
    again = backend.live()
    assert engine_of(again).source == leads
    assert state(again) == state(live)
    take_in(again)
    assert state(again) == state(live)


def test_with_the_linear_one_nothing_is_trained_and_rounds_count_all_the_same(
    tmp_path: Path, server: FakeLabelStudio, trainings: list[FakeTraining]
) -> None:
    with backend_of(tmp_path, server, classifier="linear") as backend:
        live = settled(backend)
        label(backend, live, "dog", "cat", "invalid", "dog")
        assert live.rounds.step()
        assert not live.rounds.step()
        label(backend, live, "cat", "dog", "dog", "cat", first=5)
        right, of = live.learning.tested.counts("linear")
        assert of > 0
        assert live.rounds.step()
        assert trainings == []
        assert not live.rounds.is_busy()
        one, two = recorded(backend)
        assert (one.state, one.trigger, one.known, one.invalid, one.queried, one.queried_known) == (
            "done",
            "batch",
            3,
            1,
            4,
            3,
        )
        assert (two.state, two.known, two.invalid, two.queried, two.queried_known) == ("done", 7, 1, 4, 4)
        assert (two.held_out, two.held_out_correct) == (of, right)
        assert two.held_out_accuracy == right / of
        settle(live)
        assert not live.is_busy()
        again = settled(backend)
        assert not again.rounds.step()
        assert state(again) == state(live)


def test_a_round_that_the_database_refused_is_not_half_on_record(
    tmp_path: Path, server: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    with backend_of(tmp_path, server, classifier="linear") as backend:
        live = settled(backend)
        label(backend, live, "dog", "cat", "invalid", "dog")

        def full(*_: object, **__: object) -> None:
            raise StoreError("the database is full")

        with monkeypatch.context() as patch:
            patch.setattr("neat_backend.worker.steps.query_rounds.rounds.finish", full)
            with pytest.raises(StoreError):
                live.rounds.step()
        assert recorded(backend) == []
        assert live.rounds.step()
        assert [r.state for r in recorded(backend)] == ["done"]


def test_in_round_mode_a_round_of_the_linear_one_ends_the_batch(
    tmp_path: Path, server: FakeLabelStudio, trainings: list[FakeTraining]
) -> None:
    with backend_of(tmp_path, server, classifier="linear", rerank="round") as backend:
        live = settled(backend)
        batch = server.served(PROJECT)
        assert len(batch) == 8
        for number, task in enumerate(batch[:4]):
            backend.deliver(server.annotate(task, ("dog", "cat", "invalid")[number % 3]))
            settle(live)
            assert server.served(PROJECT) == batch[number + 1 :]
        assert live.rounds.step()
        settle(live)
        assert server.served(PROJECT) == engine_of(live).head() != batch[4:]


def test_publishing_waits_for_the_head_but_not_for_ever(backend: Backend, clock: Clock) -> None:
    live = settled(backend)
    live.learning._clock = clock
    published = len(backend.server.called("import_predictions"))
    task = backend.server.served(PROJECT)[1]
    event = backend.deliver(backend.server.annotate(task, "dog"))
    live.apply.step()
    for _ in range(3):
        assert not live.publish.step()
        clock.now += LONGEST_HOLD_SECONDS / 3 - 0.01
    assert len(backend.server.called("import_predictions")) == published
    assert live.is_busy()
    clock.now += 0.1
    live.publish.step()
    served = backend.server.served(PROJECT)
    assert task not in served
    assert served[:4] == engine_of(live).head()[: len(served)][:4]
    assert backend.project().published_event != event, "that order is not of the label yet"
    assert live.learning.step()
    assert live.publish.step()
    assert backend.project().published_event == event
    assert not live.is_busy()


def test_a_head_that_is_fitted_after_all_is_told_of_though_the_order_was_published_meanwhile(
    backend: Backend, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the head's last word on the tasks and the note that it was the last."""
    live = settled(backend)
    live.learning._clock = clock
    event = backend.deliver(backend.server.annotate(1, "dog"))
    live.apply.step()
    assert not live.publish.step()
    clock.now += 10
    apply = live.learning._apply

    def meanwhile(*args: Any) -> None:
        apply(*args)
        live.publish.step()

    with monkeypatch.context() as patch:
        patch.setattr(live.learning, "_apply", meanwhile)
        live.learning.step()
    assert backend.project().published_event < event
    assert live.publish.step()
    assert backend.project().published_event == event


def test_what_is_shown_and_written_rests_when_all_is_learnt(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    live = settled(backend)
    label(backend, live, "dog", "cat", "invalid")
    settle(live)

    def never(*_: object) -> None:
        raise AssertionError("there was nothing to write")

    monkeypatch.setattr(live.context.arrays, "write_snapshot", never)
    for _ in range(3):
        assert not live.learning.step()
        assert live.publish.step()
