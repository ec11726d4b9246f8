from __future__ import annotations

from dataclasses import replace

import pytest

from neat_backend.errors import LabelStudioUnavailable, PredictionsRejected
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.labelstudio.publisher import Imported, Prediction, Publisher, reasons, result
from neat_backend.records import Ranked

CONFIG = LabelConfig("class", "image", "image", ("dog", "cat"), ("invalid",))


class FakeLabelStudio:
    """Refuses as the real one does: the whole call for a task that is gone, in silence for a choice."""

    def __init__(self, tasks, choices=("dog", "cat")):
        self.tasks = set(tasks)
        self.choices = set(choices)
        self.landed = []
        self.calls = []

    def import_predictions(self, project, predictions):
        self.calls.append(len(predictions))
        if not {item["task"] for item in predictions} <= self.tasks:
            raise PredictionsRejected("a task is gone")
        good = [item for item in predictions if self._choice(item) in {None, *self.choices}]
        self.landed += good
        return len(good)

    @staticmethod
    def _choice(item):
        return item["result"][0]["value"]["choices"][0] if item["result"] else None

    def tasks_with_prediction(self, project, version, tasks):
        return {item["task"] for item in self.landed if item["model_version"] == version} & set(tasks)

    def existing_tasks(self, project, tasks):
        return self.tasks & set(tasks)


def test_what_is_sent():
    server = FakeLabelStudio([1, 2])
    done = Publisher(server, 7, CONFIG).import_revision("v1", [Prediction(1, 0.25, "dog"), Prediction(2, 1)])
    assert done == Imported(2)
    choice = {"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": ["dog"]}}
    assert server.landed == [
        {"task": 1, "score": 0.25, "model_version": "v1", "result": [choice]},
        {"task": 2, "score": 1.0, "model_version": "v1", "result": []},
    ]


def test_large_calls_but_not_larger():
    server = FakeLabelStudio(range(2500))
    done = Publisher(server, 7, CONFIG).import_revision("v1", [Prediction(task, 0.5) for task in range(2500)])
    assert done == Imported(2500)
    assert server.calls == [1000, 1000, 500]


def test_tasks_that_are_gone_are_left_out(caplog):
    server = FakeLabelStudio([1, 3, 5])
    done = Publisher(server, 7, CONFIG).import_revision("v1", [Prediction(n, 0.5, "dog") for n in range(1, 6)])
    assert done == Imported(3, (2, 4))
    assert all(item["result"] for item in server.landed)
    assert "tasks 2, 4" in caplog.text


def test_a_choice_that_label_studio_no_longer_has_costs_only_the_choice():
    server = FakeLabelStudio(range(1, 5), choices=["dog"])
    given = [Prediction(1, 0.1, "dog"), Prediction(2, 0.2, "cat"), Prediction(3, 0.3, "cat"), Prediction(4, 0.4)]
    done = Publisher(server, 7, CONFIG).import_revision("v1", given)
    assert done == Imported(4)
    assert done.without_choice == {2, 3}
    assert sorted((item["task"], len(item["result"])) for item in server.landed) == [(1, 1), (2, 0), (3, 0), (4, 0)]


def test_both_at_once_and_nothing_twice():
    server = FakeLabelStudio([1, 2], choices=["dog"])
    given = [Prediction(1, 0.1, "dog"), Prediction(2, 0.2, "cat"), Prediction(3, 0.3, "dog")]
    assert Publisher(server, 7, CONFIG).import_revision("v1", given) == Imported(2, (3,))
    assert [item["task"] for item in server.landed] == [1, 2]


def test_a_server_that_saves_part_of_a_refused_call_gets_nothing_twice():
    class InBatches(FakeLabelStudio):
        def import_predictions(self, project, predictions):
            super().import_predictions(project, predictions[:2])
            return super().import_predictions(project, predictions[2:]) + 2

    server = InBatches([1, 2, 3])
    done = Publisher(server, 7, CONFIG).import_revision("v1", [Prediction(n, 0.5, "dog") for n in (1, 2, 3, 4)])
    assert done == Imported(3, (4,))
    assert sorted(item["task"] for item in server.landed) == [1, 2, 3]


def test_what_is_refused_whatever_it_is_given_is_dropped():
    class Stubborn(FakeLabelStudio):
        def import_predictions(self, project, predictions):
            return super().import_predictions(project, [item for item in predictions if item["task"] != 2])

    server = Stubborn([1, 2])
    done = Publisher(server, 7, CONFIG).import_revision("v1", [Prediction(1, 0.5), Prediction(2, 0.5)])
    assert done == Imported(1, (2,))
    assert len(server.calls) == 4


def test_nothing_to_send_and_nothing_to_reach():
    assert Publisher(FakeLabelStudio([]), 7, CONFIG).import_revision("v1", []) == Imported(0)

    class Down(FakeLabelStudio):
        def import_predictions(self, project, predictions):
            raise LabelStudioUnavailable("down")

    with pytest.raises(LabelStudioUnavailable):
        Publisher(Down([1]), 7, CONFIG).import_revision("v1", [Prediction(1, 0.5)])


def test_a_task_twice_is_a_mistake():
    with pytest.raises(ValueError, match="more than one"):
        Publisher(FakeLabelStudio([1]), 7, CONFIG).import_revision("v1", [Prediction(1, 0.5), Prediction(1, 0.6)])


@pytest.mark.parametrize("score", [-0.01, 1.01, float("nan"), float("inf")])
def test_a_score_that_label_studio_would_drop_is_a_mistake(score):
    with pytest.raises(ValueError, match="not in"):
        Prediction(1, score)


WITH_REASONS = LabelConfig("class", "image", "image", ("dog", "cat"), ("invalid",), why=True)


def test_reasons_go_where_the_label_config_has_a_place_for_them():
    server = FakeLabelStudio([1, 2])
    sent = [Prediction(1, 0.25, "dog", "because"), Prediction(2, 1, None, "although")]
    Publisher(server, 7, CONFIG).import_revision("v1", sent)
    assert [len(item["result"]) for item in server.landed] == [1, 0]
    assert [r["from_name"] for r in result("dog", WITH_REASONS, "because")] == ["class", "neat_why"]
    assert result(None, WITH_REASONS, "although") == [
        {"from_name": "neat_why", "to_name": "image", "type": "textarea", "value": {"text": ["although"]}}
    ]
    assert result("dog", WITH_REASONS) == result("dog", CONFIG)


def test_a_nested_choice_goes_by_its_path_and_is_checked_by_its_leaf():
    nested = LabelConfig(
        "class", "image", "image", ("two",), ("none",), paths={"two": ("even", "two"), "none": ("none",)}
    )
    assert [one["value"] for one in result("two", nested)] == [
        {"choices": [["even", "two"]], "class": {"choices": ["two"]}}
    ]
    assert result("none", nested)[0]["value"]["choices"] == [["none"]]  # so the page has it, without a heading too


def test_reasons_say_neighbours_classifier_and_inconsistency():
    ranked = Ranked(1, 0, 0.9, 6.3125, 10, True, "dog", vote="cat", votes=7)
    assert reasons(ranked) == (
        "10 of its nearest labelled images are of the wanted classes, 7 of them cat; the classifier says dog;"
        " inconsistency 6.31"
    )
    assert "classes; the" in reasons(replace(ranked, vote=None))
    assert "no classifier yet" in reasons(replace(ranked, predicted=None))
