"""Tests of the classifiers by each label, and which of them is in force."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from neat_backend.records import Label
from neat_backend.store import prequential
from neat_backend.store.prequential import RIGHT, SILENT, WINDOW, WRONG
from tests.conftest import Clock
from tests.worker.learning.made import CLASSES, Made, leading


def test_a_label_tests_each_before_any_of_them_learns_it(made: Made) -> None:
    made.step()
    made.label(0)
    assert made.learning.tested.right.tolist() == [[SILENT, SILENT, SILENT]]  # nothing is known yet
    made.label(2)
    made.step()  # cats and what is neither: a head
    assert made.engine.predictions([1])["linear"].tolist() == [CLASSES.index("cat")]
    made.label(1)  # the first dog: its neighbours are labelled cat and neither
    assert made.learning.tested.right[-1].tolist() == [SILENT, WRONG, WRONG]
    made.step()
    assert made.engine.predictions([4])["linear"].tolist() == [CLASSES.index("dog")]
    made.train([CLASSES.index("dog")] * 60)
    made.label(4)
    assert made.learning.tested.right[-1].tolist() == [RIGHT, RIGHT, WRONG]  # a cat, a dog: a tie is the first one's
    made.label(3)
    assert made.learning.tested.right[-1, :2].tolist() == [WRONG, RIGHT]
    assert made.learning.tested.tested == 4
    assert [made.learning.tested.counts(name) for name in ("resnet18", "linear")] == [(1, 2), (2, 3)]


def test_labels_that_come_together_are_all_tested_before_the_first_is_learnt(made: Made) -> None:
    made.label(0, 2)
    made.step()
    made.label(1, 4, 7)
    assert made.learning.tested.right[-3:, 1:].tolist() == [[WRONG, WRONG]] * 3
    assert made.engine.predictions([10])["vote"].tolist() == [CLASSES.index("dog")]


def test_what_is_no_new_label_of_a_known_class_tests_nothing(made: Made) -> None:
    made.label(0, 1, 3, 4)
    made.step()
    before = made.learning.tested
    made.label(2, 5)  # invalid
    made.label(0, 1)  # said again
    made.label(0, choice="dog")  # changed
    made.take([Label(6, set_aside="skipped")])  # skipped
    made.take([Label(7, "owl")])  # none of the classes
    made.take([Label(1000, "cat")])  # not embedded yet
    made.take([Label(3)])  # taken back
    assert made.learning.tested is before
    assert (before.tested, len(before.right)) == (4, 4)


def test_the_last_hundred_count(tmp_path: Path, clock: Clock) -> None:
    made = Made(tmp_path, clock, n=200)
    made.train((np.arange(200) % 2).tolist())  # right on about half of them
    given = [task for task in np.random.default_rng(1).permutation(200).tolist() if task % 3 < 2]
    expected = []
    for number, task in enumerate(given):
        said = {name: values[0] for name, values in made.engine.predictions([task]).items()}
        expected.append([SILENT if at < 0 else int(at == task % 3) for at in said.values()])
        made.label(task)
        if number % 10 == 0:
            made.step()
    assert made.learning.tested.right.tolist() == expected[-WINDOW:]
    assert made.learning.tested.tested == len(given) > WINDOW == 100


def test_what_was_tested_outlives_a_restart(made: Made, tmp_path: Path, clock: Clock) -> None:
    made.label(*range(40))
    made.step()
    again = Made(tmp_path, clock).learning
    np.testing.assert_array_equal(again.tested.right, made.learning.tested.right)
    assert replace(again.tested, right=made.learning.tested.right) == made.learning.tested
    assert leading(again) == leading(made.learning) == "linear"


def test_a_head_that_was_fitted_is_there_for_others_to_read(made: Made) -> None:
    made.step()
    assert prequential.read_head(made.arrays) is None
    made.label(*range(20))
    made.step()
    found = prequential.read_head(made.arrays)
    assert found is not None
    assert made.engine.linear is not None
    assert found["classes"] == CLASSES
    np.testing.assert_array_equal(found["weights"], made.engine.linear.weights)


def results(network: int = 0, linear: int = 0, both: int = 0, neither: int = 0, silent: int = 0) -> NDArray[np.int8]:
    """Labels on which the network alone was right, the linear classifier alone, …; silent: without a network."""
    rows = [(RIGHT, WRONG)] * network + [(WRONG, RIGHT)] * linear + [(RIGHT, RIGHT)] * both
    rows += [(WRONG, WRONG)] * neither + [(SILENT, RIGHT)] * silent
    return np.array([(*row, SILENT) for row in rows], np.int8).reshape(-1, 3)


def in_force(made: Made, **counts: int) -> str:
    """Which classifier leads after one look at such tests."""
    made.learning.tested = replace(made.learning.tested, right=results(**counts))
    made.step()
    assert made.engine.source == made.learning.tested.in_force == leading(made.learning)
    return made.engine.source


def test_auto_begins_with_the_linear_one_and_goes_over_to_one_that_is_clearly_ahead(made: Made) -> None:
    made.train([1] * 60)
    assert in_force(made) == "linear"
    assert in_force(made, network=5, both=14) == "linear", "19 labels are too few"
    assert in_force(made, network=4, both=40) == "linear", "4 is not more than twice the root of 4"
    assert in_force(made, network=9, linear=3, both=40) == "linear", "nor 6 than twice the root of 12"
    assert in_force(made, network=10, both=9, silent=60) == "linear", "what one did not speak on is no comparison"
    assert in_force(made, network=5, both=15) == "resnet18"
    assert in_force(made, neither=80) == "resnet18", "nothing speaks for a change"
    assert in_force(made, linear=9, network=3, both=40) == "resnet18", "nor this, not clearly"
    assert in_force(made, linear=12, network=3, both=40) == "linear"


def test_two_that_are_equally_good_do_not_take_turns(made: Made) -> None:
    rng = np.random.default_rng(0)
    right = np.where(rng.random((1500, 2)) < 0.75, RIGHT, WRONG)
    right = np.column_stack([right, np.full(1500, SILENT)]).astype(np.int8)
    made.train([1] * 60)
    seen, ahead = [], []
    for end in range(20, 1500):
        last = right[max(0, end - WINDOW) : end]
        made.learning.tested = replace(made.learning.tested, right=last)
        made.step()
        seen.append(made.engine.source)
        ahead.append(last[:, 0].sum() > last[:, 1].sum())
    assert np.count_nonzero(np.diff(ahead)) > 50, "whoever has more changes all the time"
    assert sum(one != two for one, two in pairwise(seen)) <= 5


def test_the_one_in_force_gives_probabilities_and_predicted_classes(made: Made) -> None:
    made.train([1] * 60)
    made.label(*range(6))
    assert in_force(made) == "linear"
    linear = made.predicted()
    assert set(linear) == {0, 1}
    chance = made.engine.ranking().known_chance
    assert in_force(made, network=20) == "resnet18"
    assert made.predicted() == [1] * 54
    np.testing.assert_array_equal(made.engine.ranking().known_chance, chance, "the head says that, whoever leads")
    assert in_force(made, linear=20) == "linear"
    assert made.predicted() == linear


@pytest.mark.parametrize(("choice", "better"), [("resnet18", {"linear": 50}), ("linear", {"network": 50})])
def test_a_choice_in_the_settings_is_obeyed_whoever_is_better(
    choice: str, better: dict[str, int], tmp_path: Path, clock: Clock
) -> None:
    made = Made(tmp_path, clock, classifier=choice)
    made.train([1] * 60)
    made.label(*range(6))
    assert in_force(made, **better) == choice
    assert (set(made.predicted()) == {1}) == (choice == "resnet18")
    assert made.learning.tested.why.startswith(f"NEAT_CLASSIFIER={choice}; ")


def test_why_says_it_in_words(made: Made) -> None:
    made.train([1] * 60)
    made.step()
    assert made.learning.tested.why == "too few labels to compare"
    assert in_force(made, network=12, both=10, neither=3, silent=5) == "resnet18"
    assert made.learning.tested.why == (
        "on the last labels, before learning them, right were ResNet-18 on 22 of 25, the linear classifier on 15 of 30"
    )


def test_a_choice_that_was_taken_back_leaves_the_one_that_was_in_force(tmp_path: Path, clock: Clock) -> None:
    Made(tmp_path, clock, classifier="resnet18").step()
    assert Made(tmp_path, clock).engine.source == "resnet18"  # until the tests say otherwise
