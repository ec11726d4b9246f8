"""What people are shown beside the order: the map, the labels on it, likely mistakes, what is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neat_backend.ranking.draws import permutation
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.linear import fit_head
from neat_backend.ranking.method import Method
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.ranking.views import Ranking
from neat_backend.records import Label
from neat_backend.store import insights
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.insights import INVALID, UNLABELLED, Mistake
from neat_backend.worker.steps.insight import Insights, left_of_classes, likely_mistakes
from tests.conftest import Clock

KIND = "features/test"
CLASSES = ("dog", "cat")


@pytest.fixture
def arrays(tmp_path: Path) -> ProjectArrays:
    return ProjectArrays(tmp_path, 7)


def features(n: int, centres: int = 4) -> np.ndarray:
    """Task t lies around centre t % centres, on the grid."""
    from neat_backend.models.grid import to_grid

    rng = np.random.default_rng(0)
    return to_grid(np.eye(8)[np.arange(n) % centres] + rng.normal(0, 0.1, (n, 8)))


def filled(arrays: ProjectArrays, n: int = 120) -> Engine:
    values, ids = features(n), np.arange(1, n + 1)
    arrays.append(KIND, ids, ids, values)
    engine = Engine(8, CLASSES, Method(k=5, batch_size=10, random_share=0.1))
    engine.add_tasks(ids, values)
    return engine


def answer(task: int) -> Label:
    """By the centre that the task lies around: dog, cat, and two that are neither."""
    place = (task - 1) % 4
    return Label(task, CLASSES[place]) if place < 2 else Label(task, invalid=True)


def insights_of(
    arrays: ProjectArrays, engine: Engine, clock: Clock, settled: Callable[[], bool] = lambda: True
) -> Insights:
    return Insights(arrays, SharedEngine(engine), KIND, 0, settled, clock)


def work(made: Insights, clock: Clock) -> None:
    for _ in range(10):
        clock.now += 1000
        if not made.step():
            return
    raise AssertionError("there is no end to it")


def test_everything_is_there_and_nothing_is_done_twice(arrays: ProjectArrays) -> None:
    engine, clock = filled(arrays), Clock()
    made = insights_of(arrays, engine, clock)
    labelled = permutation(np.arange(1, 121), 0)[:60].tolist()
    engine.set_labels([answer(task) for task in labelled])
    engine.set_linear(fit_head(engine.training_data()[2], engine.training_data()[1], CLASSES)).__next__()
    known = sum((task - 1) % 4 < 2 for task in labelled)
    work(made, clock)
    places, states, insight = insights.read_map(arrays), insights.read_states(arrays), insights.read_insight(arrays)
    assert places is not None
    assert states is not None
    assert insight is not None
    assert places.ids.tolist() == states.ids.tolist() == list(range(1, 121))
    given = [
        UNLABELLED if task not in labelled else ((task - 1) % 4 if (task - 1) % 4 < 2 else INVALID)
        for task in states.ids.tolist()
    ]
    assert states.codes.tolist() == given
    assert (insight.labelled, insight.known, insight.pool, insight.head) == (60, known, 60, 10)
    assert (insight.draws, insight.draws_tested, insight.draws_right) == (60, known, known)
    assert insight.left == pytest.approx(60 - known, abs=3)
    assert insight.left_low <= 60 - known <= insight.left_high
    assert insight.in_head == pytest.approx(10, abs=1)
    assert insight.candidates.sum() + insight.others.sum() == 60
    assert insight.candidates[:10].sum() == 0  # the score's halves
    assert insight.others[10:].sum() <= 2  # random draws among the first 2B
    assert insight.mistakes == ()
    before = {path.name: path.stat().st_mtime_ns for path in arrays.folder("snapshots").iterdir()}
    work(made, clock)
    assert before == {path.name: path.stat().st_mtime_ns for path in arrays.folder("snapshots").iterdir()}


def test_it_follows_tasks_and_labels(arrays: ProjectArrays) -> None:
    engine, clock = filled(arrays), Clock()
    made = insights_of(arrays, engine, clock)
    work(made, clock)
    first, insight = insights.read_map(arrays), insights.read_insight(arrays)
    assert first is not None
    assert insight is not None
    assert math.isnan(insight.left)
    engine.remove_tasks([3])
    engine.set_labels([Label(1, "dog")])
    work(made, clock)
    second, states = insights.read_map(arrays), insights.read_states(arrays)
    assert second is not None
    assert states is not None
    assert 3 not in second.ids
    assert np.isin(second.ids, states.ids).all()
    assert states.codes[0] == 0


def test_it_rests_as_its_cost_asks(arrays: ProjectArrays) -> None:
    engine, clock = filled(arrays), Clock()
    made = insights_of(arrays, engine, clock)
    while made.step():
        pass
    engine.set_labels([Label(1, "dog")])
    assert not made.step()
    clock.now += 1.5
    assert made.step()


def test_the_map_waits_while_images_come_in(arrays: ProjectArrays) -> None:
    engine, clock = filled(arrays, 40), Clock()
    settled = False
    made = insights_of(arrays, engine, clock, lambda: settled)
    work(made, clock)
    more = features(50)[40:]
    arrays.append(KIND, np.arange(41, 51), np.arange(41, 51), more)
    engine.add_tasks(np.arange(41, 51), more)
    work(made, clock)
    shown = insights.read_map(arrays)
    assert shown is not None
    assert len(shown.ids) == 40
    settled = True
    work(made, clock)
    shown = insights.read_map(arrays)
    assert shown is not None
    assert len(shown.ids) == 50


def test_an_empty_project_is_no_trouble(arrays: ProjectArrays) -> None:
    clock = Clock()
    work(insights_of(arrays, Engine(8, CLASSES), clock), clock)
    assert insights.read_map(arrays) is None


class TestClasses:
    def ranking(self, predicted: list[int], chances: list[float]) -> Ranking:
        n, codes = len(predicted), np.array(predicted, np.int16)
        none, floats = np.zeros(n, np.int16), np.zeros(n)
        return Ranking(
            np.arange(n),
            floats,
            floats,
            none,
            none.astype(np.int64),
            np.array(chances, np.float32),
            floats,
            none,
            none > 0,
            codes,
            CLASSES,
        )

    def left(self, labels: list[int], left: float, predicted: tuple[int, ...] = (0, 0, 1)) -> list[float]:
        return left_of_classes(self.ranking([*predicted], [0.9, 0.7, 0.4]), np.array(labels), left).tolist()

    def test_the_worked_example(self) -> None:
        assert self.left([15, 15], 4.0) == pytest.approx([3.2, 0.8])

    def test_what_is_left_in_all_is_what_the_classes_add_up_to(self) -> None:
        assert sum(self.left([15, 15], 7.5)) == pytest.approx(7.5)

    def test_a_class_that_nobody_has_seen_can_not_be_estimated(self) -> None:
        dogs, cats = self.left([30, 0], 4.0, (0, 0, 0))
        assert dogs == pytest.approx(4.0)
        assert math.isnan(cats)

    @pytest.mark.parametrize(
        ("labels", "left", "predicted"),
        [([10, 9], 4.0, (0, 0, 1)), ([15, 15], math.nan, (0, 0, 1)), ([15, 15], 4.0, (-1, -1, -1))],
        ids=["few labels", "few draws", "no classifier"],
    )
    def test_of_too_little_nothing_is_said(self, labels: list[int], left: float, predicted: tuple[int, ...]) -> None:
        assert all(math.isnan(one) for one in self.left(labels, left, predicted))

    def test_labels_and_estimate_are_kept_and_near_the_truth(self, arrays: ProjectArrays) -> None:
        engine, clock = filled(arrays), Clock()
        labelled = permutation(np.arange(1, 121), 0)[:60].tolist()
        engine.set_labels([answer(task) for task in labelled])
        of_each = tuple(sum((task - 1) % 4 == place for task in labelled) for place in (0, 1))
        chances = np.array([[0.9, 0.1] if (task - 1) % 4 in (0, 2) else [0.1, 0.9] for task in range(1, 121)])
        engine.set_probabilities(np.arange(1, 121), chances.astype(np.float32), CLASSES)
        work(insights_of(arrays, engine, clock), clock)
        kept = insights.read_insight(arrays)
        assert kept is not None
        assert (kept.classes, kept.class_labels) == (CLASSES, of_each)
        assert sum(kept.class_left) == pytest.approx(kept.left)


class TestMistakes:
    def test_a_label_that_its_neighbours_contradict_is_found_strongest_first(self, arrays: ProjectArrays) -> None:
        engine = filled(arrays)
        engine.set_labels([answer(task) for task in range(1, 81)])
        engine.set_labels([Label(1, "cat"), Label(3, "dog")])
        found = {one.task: one for one in self.of(engine)}
        assert set(found) == {1, 3}
        assert (found[1].label, found[1].neighbours_say, found[1].votes, found[1].own_votes) == ("cat", "dog", 5, 0)
        assert (found[3].label, found[3].neighbours_say) == ("dog", None)
        assert 0.5 < found[1].similarity <= 1
        strengths = [one.votes for one in self.of(engine)]
        assert strengths == sorted(strengths, reverse=True)

    def test_with_fewer_neighbours_than_k_nothing_is_said(self, arrays: ProjectArrays) -> None:
        engine = filled(arrays)
        engine.set_labels([Label(1, "cat"), Label(5, "dog"), Label(9, "dog")])
        assert self.of(engine) == []

    def of(self, engine: Engine) -> list[Mistake]:
        return likely_mistakes(
            engine.nearest_labelled(), *engine.training_data(), engine.classes, np.random.default_rng(0)
        )

    def test_they_are_kept_as_they_were(self, arrays: ProjectArrays) -> None:
        engine, clock = filled(arrays), Clock()
        engine.set_labels([answer(task) for task in range(1, 81)])
        engine.set_labels([Label(1, "cat"), Label(3, "dog")])
        work(insights_of(arrays, engine, clock), clock)
        kept = insights.read_insight(arrays)
        assert kept is not None
        assert list(kept.mistakes) == self.of(engine)
