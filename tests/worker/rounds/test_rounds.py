"""When a round begins, how it ends, what is recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neat_backend.errors import StoreError, TrainingError
from neat_backend.store import inbox, projects
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps.training import TrainingJob, TrainingResult
from tests.fake_label_studio import FakeLabelStudio, label_config
from tests.living import PROJECT, Backend, FakeTraining, label, recorded, settle, state, take_in
from tests.waiting import TRAINING_HANGS, until
from tests.worker.rounds.steps import train, untrained


def test_a_round_is_due_after_every_b_labels_and_counts_what_was_queried(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog", "cat", "invalid")
    assert not live.rounds.step()
    label(backend, live, "dog", first=4)
    assert live.rounds.step()
    assert trainings[0].labels == {1: 0, 2: 1, 4: 0}
    assert not live.rounds.step()  # it runs
    label(backend, live, "invalid", "invalid", "invalid", "cat", first=5)
    assert not live.rounds.step()
    trainings[0].succeed()
    assert live.rounds.step()
    take_in(live)
    assert untrained(live) == []
    live.rounds.step()
    assert len(trainings) == 2
    one, two = recorded(backend)
    assert (one.state, two.state) == ("done", "running")
    assert (one.trigger, one.known, one.invalid, one.unlabelled) == ("batch", 3, 1, 16)
    assert (one.queried, one.queried_known, one.precision) == (4, 3, 0.75)
    assert (two.known, two.invalid, two.unlabelled, two.queried, two.queried_known) == (4, 4, 12, 4, 1)
    assert two.precision == 0.25


def test_a_round_waits_until_images_are_embedded_unless_it_is_asked_for(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    for task, choice in enumerate(("dog", "cat", "dog", "cat"), 1):
        backend.deliver(server.annotate(task, choice))
    backend.deliver(server.import_tasks(PROJECT, 5))
    live.apply.step()
    seen = []
    backend.encoder.before_encoding = lambda: seen.append(live.rounds.step())
    live.bulk.step()
    assert seen
    assert not any(seen)
    take_in(live)
    assert live.rounds.step()


def test_probabilities_change_the_order_and_a_restart_does_not(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog", "cat", "dog", "cat")
    before = state(live)
    live.rounds.step()
    trainings[0].succeed()
    assert live.rounds.step()
    after = state(live)
    assert after != before
    again = backend.live()
    take_in(again)
    assert state(again) == after
    assert not again.rounds.step()
    assert len(trainings) == 1


def test_start_training_with_labels_of_one_class_fails_in_plain_words(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog", "dog", "invalid", "dog", "dog")
    assert not live.rounds.step()  # nothing to tell apart: no round by itself
    assert recorded(backend) == []
    train(backend, live)
    assert live.rounds.step()
    (only,) = recorded(backend)
    assert (only.trigger, only.state) == ("requested", "failed")
    assert only.error == "needs labelled images of at least two classes, has 1"
    assert not live.rounds.step()
    assert backend.project().state == projects.READY
    assert trainings == []


def test_a_round_is_begun_when_asked_for_even_while_another_runs(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog", "cat")
    train(backend, live)
    assert live.rounds.step()
    train(backend, live)
    assert not live.rounds.step()
    trainings[0].succeed()
    assert live.rounds.step()
    assert [r.state for r in recorded(backend)] == ["done", "running"]


def test_asking_for_a_round_is_not_forgotten_for_a_change_of_classes(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog")
    backend.deliver(server.change_project(PROJECT, label_config=label_config("dog", "owl", "invalid")))
    train(backend, live)
    live.rounds.step()
    assert [r.trigger for r in recorded(backend)] == ["requested"]


def test_a_training_that_fails_is_told_and_the_last_classifier_stays(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog", "cat", "dog", "cat")
    live.rounds.step()
    trainings[0].succeed()
    live.rounds.step()
    before = state(live)
    train(backend, live)
    live.rounds.step()
    trainings[1].fail("training ran out of memory")
    assert live.rounds.step()
    assert [(r.state, r.error) for r in recorded(backend)] == [("done", None), ("failed", "training ran out of memory")]
    assert state(live) == before
    assert not live.rounds.step()
    again = backend.live()
    take_in(again)
    assert state(again) == before
    assert not again.rounds.step()


def test_a_round_begins_with_the_weights_of_the_settings_and_ends_as_they_say(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog", "cat", "dog", "cat")
    live.rounds.step()
    settings = backend.settings
    job = trainings[0].job
    assert (settings.classifier_weights, settings.early_stop) != (TrainingJob.weights, TrainingJob.early_stop)
    assert (job.weights, job.early_stop) == (settings.classifier_weights, settings.early_stop)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_round_sees_small_images_first_where_the_settings_say_so(
    progressive: bool, backend: Backend, live: LiveProject, trainings: list[FakeTraining], monkeypatch
) -> None:
    settings = live.rounds.settings
    monkeypatch.setattr(live.rounds, "settings", settings.model_copy(update={"progressive_resizing": progressive}))
    label(backend, live, "dog", "cat", "dog", "cat")
    live.rounds.step()
    assert trainings[0].job.progressive == progressive


def test_why_a_training_began_from_scratch_is_said_once(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining], caplog: pytest.LogCaptureFixture
) -> None:
    label(backend, live, "dog", "cat", "dog", "cat")
    live.rounds.step()
    for number in range(3):
        trainings[number].succeed()
        assert isinstance(trainings[number].result, TrainingResult)
        trainings[number].result = replace(trainings[number].result, note="no network: from scratch")
        live.rounds.step()
        train(backend, live)
        live.rounds.step()
    assert sum("no network: from scratch" in record.message for record in caplog.records) == 1


def test_a_training_that_cannot_be_started_is_a_failed_round(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> None:
        raise TrainingError("the training process can't be started: no memory")

    monkeypatch.setattr(FakeTraining, "start", start)
    label(backend, live, "dog", "cat", "dog", "cat")
    assert live.rounds.step()
    assert [(r.state, r.error) for r in recorded(backend)] == [
        ("failed", "the training process can't be started: no memory")
    ]
    assert not live.is_busy() or live.publish.step()


def test_a_round_that_was_interrupted_is_begun_again(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog", "cat", "dog", "invalid")
    live.rounds.step()
    again = backend.live()  # the first one was killed
    take_in(again)
    assert again.rounds.step()
    assert len(trainings) == 2
    one, two = recorded(backend)
    assert (one.state, one.error, two.state) == ("failed", "interrupted", "running")
    assert (two.queried, two.queried_known) == (one.queried, one.queried_known) == (4, 3)


def test_a_round_that_is_begun_again_waits_for_the_images_of_another_encoder(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog", "cat", "dog", "invalid")
    live.rounds.step()
    live.context.arrays.drop("features/fake")
    again = backend.live()
    assert not again.rounds.step()
    settle(again)
    assert again.rounds.step()
    assert len(trainings) == 2
    assert [r.error for r in recorded(backend)] == ["interrupted", None]


def test_a_change_of_classes_is_trained_for_once_there_are_two(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    backend.deliver(server.change_project(PROJECT, label_config=label_config("dog", "cat", "owl")))
    label(backend, live, "dog")
    assert not live.rounds.step()
    label(backend, live, "cat", first=2)
    assert live.rounds.step()
    assert recorded(backend)[0].trigger == "classes"


def test_a_round_that_is_stopped_with_its_project_is_interrupted_not_failed(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog", "cat", "dog", "cat")
    live.rounds.step()
    training = trainings[0]
    stop = training.stop

    def stop_while_somebody_looks() -> None:
        stop()
        live.rounds.step()

    training.stop = stop_while_somebody_looks  # type: ignore[method-assign]
    live.stop()
    assert training.stopped
    assert recorded(backend)[0].state == "running"
    backend.live()
    assert recorded(backend)[0].error == "interrupted"


def test_asking_for_a_round_survives_the_death_of_the_process(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog", "cat")
    backend.deliver(server.press_train(PROJECT))
    with backend.database.read() as conn:
        live.apply._store(inbox.pending(conn, PROJECT))  # applied, and then the process is killed
    again = backend.live()
    take_in(again)
    assert again.rounds.step()
    assert [r.trigger for r in recorded(backend)] == ["requested"]
    trainings[0].succeed()
    again.rounds.step()
    assert not backend.live().rounds.step()  # once


def test_a_change_of_classes_is_trained_for_even_if_the_process_dies(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog", "cat", "dog", "cat")
    live.rounds.step()
    trainings[0].succeed()
    live.rounds.step()
    backend.deliver(server.change_project(PROJECT, label_config=label_config("dog", "cat", "owl", "invalid")))
    with backend.database.read() as conn:
        live.apply._store(inbox.pending(conn, PROJECT))
    again = backend.live()
    take_in(again)
    assert again.rounds.step()
    assert recorded(backend)[-1].trigger == "classes"
    assert trainings[-1].job.classes == ("dog", "cat", "owl")


def test_a_new_class_list_is_trained_for_and_the_old_numbers_are_carried_over(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog", "cat", "dog", "cat")
    live.rounds.step()
    trainings[0].succeed()
    live.rounds.step()
    backend.deliver(server.change_project(PROJECT, label_config=label_config("cat", "dog", "invalid")))
    take_in(live)
    assert untrained(live) == []
    assert live.rounds.step()
    assert recorded(backend)[-1].trigger == "classes"


def test_a_class_that_comes_back_has_its_numbers_again(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    label(backend, live, "dog", "cat", "dog", "cat")
    live.rounds.step()
    trainings[0].succeed()
    live.rounds.step()
    take_in(live)
    before = state(live)
    for choices in (("dog", "invalid"), ("dog", "owl", "invalid"), ("dog", "cat", "invalid")):
        backend.deliver(server.change_project(PROJECT, label_config=label_config(*choices)))
        take_in(live)
    assert state(live) == before == state(backend.live())


def test_old_probabilities_and_models_are_removed(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    for number in range(2):
        train_with = ("dog", "cat", "dog", "cat")
        label(backend, live, *train_with, first=1 + 4 * number)
        live.rounds.step()
        trainings[number].succeed()
        live.rounds.step()
    assert len(live.context.arrays.load("probabilities/000001").ids) == 0
    assert len(live.context.arrays.load("probabilities/000002").ids) == 20


def test_a_real_training_sorts_the_pool(server: FakeLabelStudio, backend: Backend, live: LiveProject) -> None:
    label(backend, live, "dog", "cat", "dog", "cat", "invalid")
    assert live.rounds.step()
    until(lambda: live.rounds.step() is not None and recorded(backend)[0].state != "running", limit=TRAINING_HANGS)
    (done,) = recorded(backend)
    assert (done.state, done.error) == ("done", None)
    assert done.seconds is not None
    assert untrained(live) == []
    backend.deliver(server.import_tasks(PROJECT, 2))
    settle(live)
    assert untrained(live) == []
    assert state(live) == state(backend.live())


def test_a_round_that_was_asked_for_while_the_database_failed_is_begun_later(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    label(backend, live, "dog", "cat")
    train(backend, live)
    with monkeypatch.context() as broken:
        broken.setattr(
            "neat_backend.worker.steps.query_rounds.rounds.start",
            lambda *_, **__: (_ for _ in ()).throw(StoreError("full")),
        )
        with pytest.raises(StoreError):
            live.rounds.step()
    assert live.rounds.step()
    assert recorded(backend)[0].trigger == "requested"
