"""Probabilities of tasks that arrive or change between rounds."""

from __future__ import annotations

import numpy as np
import pytest

from neat_backend.errors import SettingsError
from neat_backend.store import projects
from neat_backend.worker.live import LiveProject
from tests.fake_label_studio import FakeLabelStudio, label_config
from tests.living import PROJECT, Backend, FakeTraining, engine_of, label, state, take_in
from tests.worker.rounds.steps import train, untrained


class FakeClassifier:
    """Knows only the first of the classes; counts the images."""

    calls = 0
    side = 16  # as tests.living sets it

    @classmethod
    def load(cls, *_: object) -> FakeClassifier:
        return cls()

    def predict_proba(self, images: np.ndarray) -> np.ndarray:
        type(self).calls += len(images)
        return np.tile(np.array([1, 0], np.float32), (len(images), 1))


@pytest.fixture
def filled(
    backend: Backend, live: LiveProject, trainings: list[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> type[FakeClassifier]:
    """A round is done, with a model."""
    monkeypatch.setattr("neat_backend.models.classifier.Classifier", FakeClassifier)
    FakeClassifier.calls = 0
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
    assert filled.calls == 0
    backend.deliver(server.import_tasks(PROJECT, 3))
    take_in(live)
    assert untrained(live) == []
    assert filled.calls == 3
    again = backend.live()
    take_in(again)
    assert filled.calls == 3
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


def test_images_of_another_side_than_it_was_trained_on_are_an_error_that_names_the_remedy(
    server: FakeLabelStudio,
    backend: Backend,
    live: LiveProject,
    filled: type[FakeClassifier],
    trainings: list[FakeTraining],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(filled, "side", 32)
    backend.deliver(server.import_tasks(PROJECT, 1))
    with pytest.raises(SettingsError, match="press “Start Training”"):
        take_in(live)
    live.rounds.step()
    assert len(trainings) == 1, "that is for a person to decide"


def test_a_classifier_that_knows_none_of_the_classes_is_not_asked_for_ever(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, filled: type[FakeClassifier]
) -> None:
    backend.deliver(server.change_project(PROJECT, label_config=label_config("owl", "invalid")))
    take_in(live)  # there is an end to it
    assert len(untrained(live)) == 20
    assert filled.calls == 20
    backend.deliver(server.import_tasks(PROJECT, 1))
    take_in(live)
    assert filled.calls == 21
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
