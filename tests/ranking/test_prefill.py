"""What an annotator finds filled in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from neat_backend.ranking.prefill import LEAST_TESTED, filled_in
from neat_backend.records import Ranked
from neat_backend.store.prequential import RIGHT, WRONG, Prequential

K = 10
PROVED, NOT_PROVED = (75, 100), (74, 100)
TASK = Ranked(1, 0, 0.9, 1.0, K, True, "dog", vote="dog", votes=9, known_chance=0.8)


@pytest.mark.parametrize(
    ("prefill", "predicted", "vote", "tested", "filled"),
    [
        ("agree", "dog", "dog", PROVED, "dog"),
        ("agree", "dog", "cat", PROVED, None),  # what comes first in the order: it is worth a look, not a tick
        ("agree", "dog", "dog", NOT_PROVED, None),
        ("agree", None, None, PROVED, None),
        ("vote", "dog", "cat", NOT_PROVED, "cat"),
        ("classifier", "dog", "cat", NOT_PROVED, "dog"),
        ("off", "dog", "dog", PROVED, None),
    ],
)
def test_each_mode_fills_in_what_it_says(
    prefill: str, predicted: str | None, vote: str | None, tested: tuple[int, int], filled: str | None
) -> None:
    task = replace(TASK, predicted=predicted, vote=vote)
    assert filled_in(task, prefill, tested, K) == filled
    if prefill != "agree":
        assert filled_in(replace(task, candidate=False), prefill, tested, K) is None


@pytest.mark.parametrize(
    ("changed", "filled"),
    [
        ({"candidate": False, "known_neighbours": 9}, "dog"),  # one neighbour of ten may be invalid
        ({"votes": 8}, None),
        ({"known_chance": 0.79}, None),
    ],
)
def test_agreement_takes_nearly_all_neighbours_and_a_task_that_is_likely_known(
    changed: dict[str, object], filled: str | None
) -> None:
    assert filled_in(replace(TASK, **changed), "agree", PROVED, K) == filled  # type: ignore[arg-type]


def test_of_few_labels_nobody_is_trusted() -> None:
    assert filled_in(TASK, "agree", (LEAST_TESTED, LEAST_TESTED), K) == "dog"
    assert filled_in(TASK, "agree", (LEAST_TESTED - 1, LEAST_TESTED - 1), K) is None


def test_the_classifier_in_force_is_the_one_that_counts() -> None:
    rows = np.full((100, 3), WRONG, np.int8)
    rows[:80, 1] = RIGHT
    assert Prequential(rows, "linear").leader_counts == (80, 100)
    assert Prequential(rows, "resnet18").leader_counts == (0, 100)
    assert Prequential().leader_counts == (0, 0)
