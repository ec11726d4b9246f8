"""Query rounds: when one is due, what it records, and what survives a restart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neat_backend.errors import StoreError, TrainingError
from neat_backend.records import Round
from neat_backend.store import inbox, projects, rounds
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps.training import TrainingJob, TrainingResult
from tests.fake_label_studio import FakeLabelStudio, label_config
from tests.living import PROJECT, Backend, FakeTraining, engine_of, label_studio_of, settle, state, take_in
from tests.waiting import until


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[FakeTraining]:
    """Those that were begun."""
    monkeypatch.setattr("neat_backend.worker.steps.rounds.TrainingProcess", FakeTraining)
    FakeTraining.running.clear()
    return FakeTraining.running


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of(20)


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    with closing(Backend(tmp_path, server, classifier="resnet18")) as made:
        yield made


@pytest.fixture
def live(backend: Backend) -> LiveProject:
    live = backend.live()
    settle(live)
    return live


def recorded(backend: Backend) -> list[Round]:
    with backend.database.read() as conn:
        return rounds.all(conn, PROJECT)


def label(backend: Backend, live: LiveProject, *choices: str, first: int = 1) -> None:
    for task, choice in enumerate(choices, first):
        backend.deliver(backend.server.annotate(task, choice))
    take_in(live)


def train(backend: Backend, live: LiveProject) -> None:
    backend.deliver(backend.server.press_train(PROJECT))
    take_in(live)


def untrained(live: LiveProject) -> list[int]:
    return engine_of(live).untrained()


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
    assert (settings.classifier_weights, settings.early_stop) != (TrainingJob.weights, TrainingJob.early_stop)
    assert (trainings[0].job.weights, trainings[0].job.early_stop) == (settings.classifier_weights, settings.early_stop)


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


class FakeClassifier:
    """Knows only the first of the classes; counts what it is asked."""

    asked = 0

    @classmethod
    def load(cls, *_: object) -> FakeClassifier:
        return cls()

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        type(self).asked += len(images)
        return np.tile(np.array([1, 0], np.float32), (len(images), 1))


@pytest.fixture
def filled(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> type[FakeClassifier]:
    """A round is done, with a model."""
    monkeypatch.setattr("neat_backend.models.classifier.Classifier", FakeClassifier)
    FakeClassifier.asked = 0
    label(backend, live, "dog", "cat", "dog", "cat")
    live.rounds.step()
    trainings[0].succeed()
    (live.context.arrays.folder("models") / "000001.safetensors").touch()
    live.rounds.step()
    take_in(live)
    return FakeClassifier


def test_tasks_that_come_after_a_round_get_probabilities_once(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, filled: type[FakeClassifier]
) -> None:
    assert filled.asked == 0
    backend.deliver(server.import_tasks(PROJECT, 3))
    take_in(live)
    assert untrained(live) == []
    assert filled.asked == 3
    again = backend.live()
    take_in(again)
    assert filled.asked == 3
    assert state(again) == state(live)


def test_a_damaged_classifier_is_made_again(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, trainings: list[FakeTraining]
) -> None:
    """Torn by a power cut: new tasks wait for a new round, and nothing else stands still."""
    label(backend, live, "dog", "cat", "dog", "cat")
    live.rounds.step()
    trainings[0].succeed()
    model = live.context.arrays.folder("models") / "000001.safetensors"
    model.write_bytes((1000).to_bytes(8, "little") + b'{"weight":{"dtype":"F32"')
    live.rounds.step()
    backend.deliver(server.import_tasks(PROJECT, 3))
    take_in(live)
    assert len(untrained(live)) == 3
    live.rounds.step()
    assert len(trainings) == 2
    trainings[1].succeed()
    live.rounds.step()
    take_in(live)
    assert untrained(live) == []


def test_a_classifier_that_knows_none_of_the_classes_is_not_asked_for_ever(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, filled: type[FakeClassifier]
) -> None:
    backend.deliver(server.change_project(PROJECT, label_config=label_config("owl", "invalid")))
    take_in(live)  # there is an end to it
    assert len(untrained(live)) == 20
    assert filled.asked == 20
    backend.deliver(server.import_tasks(PROJECT, 1))
    take_in(live)
    assert filled.asked == 21
    assert backend.project().state == projects.READY


def test_probabilities_of_an_image_that_was_changed_do_not_come_back_with_a_restart(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, filled: type[FakeClassifier]
) -> None:
    backend.deliver(server.change_image(5, seed=99))
    live.apply.step()
    while 5 not in engine_of(live):
        live.bulk.step()
    assert untrained(live) == [5]  # and here the process is killed
    again = backend.live()
    assert untrained(again) == [5]
    take_in(again)
    take_in(live)
    assert untrained(again) == []
    assert state(again) == state(live)


def test_probabilities_of_an_image_that_was_changed_during_the_training_are_not_used(
    server: FakeLabelStudio,
    backend: Backend,
    live: LiveProject,
    filled: type[FakeClassifier],
    trainings: list[FakeTraining],
) -> None:
    train(backend, live)
    live.rounds.step()
    trainings[1].succeed()
    (live.context.arrays.folder("models") / "000002.safetensors").touch()
    backend.deliver(server.change_image(5, seed=99))
    live.apply.step()
    while 5 not in engine_of(live):
        live.bulk.step()
    live.rounds.step()
    assert untrained(live) == [5]
    take_in(live)
    assert untrained(live) == []


def test_an_image_that_is_changed_while_its_task_is_filled_gets_probabilities_of_its_own(
    server: FakeLabelStudio,
    backend: Backend,
    live: LiveProject,
    filled: type[FakeClassifier],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = server.import_tasks(PROJECT, 1)
    new = body["tasks"][0]["id"]
    backend.deliver(body)
    original = FakeClassifier.predict_proba
    images: list[np.ndarray] = []

    def predict_proba(self: FakeClassifier, of: np.ndarray) -> np.ndarray:
        images.append(of)
        if len(images) == 1:
            backend.deliver(server.change_image(new, seed=99))
            live.apply.step()
            live.images.embed(live.owned.state, live.owned.stopping.is_set)
        return original(self, of)

    monkeypatch.setattr(FakeClassifier, "predict_proba", predict_proba)
    take_in(live)
    assert untrained(live) == []
    assert len(images) == 2
    assert not np.array_equal(images[0], images[1])


def test_a_round_that_ends_while_tasks_are_filled_has_the_last_word(
    server: FakeLabelStudio,
    backend: Backend,
    live: LiveProject,
    filled: type[FakeClassifier],
    trainings: list[FakeTraining],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend.deliver(server.import_tasks(PROJECT, 3))
    backend.deliver(server.press_train(PROJECT))
    live.apply.step()
    original = FakeClassifier.predict_proba

    def predict_proba(self: FakeClassifier, images: np.ndarray) -> np.ndarray:
        assert live.rounds.step()
        trainings[1].succeed()
        assert live.rounds.step()
        return original(self, images)

    monkeypatch.setattr(FakeClassifier, "predict_proba", predict_proba)
    take_in(live)
    monkeypatch.undo()
    assert state(live) == state(backend.live())


def test_a_real_training_sorts_the_pool(server: FakeLabelStudio, backend: Backend, live: LiveProject) -> None:
    label(backend, live, "dog", "cat", "dog", "cat", "invalid")
    assert live.rounds.step()
    until(lambda: live.rounds.step() is not None and recorded(backend)[0].state != "running")
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
            "neat_backend.worker.steps.rounds.rounds.start", lambda *_, **__: (_ for _ in ()).throw(StoreError("full"))
        )
        with pytest.raises(StoreError):
            live.rounds.step()
    assert live.rounds.step()
    assert recorded(backend)[0].trigger == "requested"
