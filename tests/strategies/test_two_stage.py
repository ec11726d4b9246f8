from __future__ import annotations

import numpy as np

from neat_backend.ranking.pool import Past
from neat_backend.ranking.scores import INVALID
from neat_backend.strategies.two_stage import choose, precisions

#                      0    1    2    3    4    5    6    7
PREDICTED = np.array([0, 0, 0, 0, 1, 1, 1, 2])  # 2 is none of the two known classes
PURITY = np.array([0.9, 0.8, 0.7, 0.1, 0.5, 0.4, 0.3, 1.0])
INFORMATION = np.array([0.1, 0.3, 0.2, 0.9, 0.0, 0.8, 0.7, 1.0])


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def chosen(kept: int, size: int) -> list[int]:
    return choose(PREDICTED, PURITY, INFORMATION, 2, kept, size, rng()).tolist()


def test_of_each_class_the_most_informative_of_the_purest_are_chosen() -> None:
    # Candidates 0, 1, 2 and 4, 5, 6; the two most informative of each, by falling information.
    assert chosen(kept=3, size=4) == [5, 6, 1, 2]


def test_with_as_many_candidates_as_are_wanted_purity_decides() -> None:
    assert chosen(kept=2, size=4) == [5, 1, 0, 4]


def test_with_all_as_candidates_information_decides() -> None:
    assert chosen(kept=9, size=4) == [3, 5, 6, 1]


def test_what_is_lacking_is_filled_up_by_the_purest_of_the_known_classes_then_of_all() -> None:
    # Shares of 4; class 1 has three. 3 is the only other one of a known class.
    assert chosen(kept=3, size=8) == [5, 6, 1, 2, 0, 4, 3, 7]


def test_more_than_wanted_are_cut_at_random() -> None:
    # Shares of two give four for three.
    found = {tuple(choose(PREDICTED, PURITY, INFORMATION, 2, 3, 3, np.random.default_rng(i))) for i in range(40)}
    assert found == {(5, 6, 1), (5, 6, 2), (5, 1, 2), (6, 1, 2)}


def test_precisions_are_of_queries_with_answers() -> None:
    past = tuple(
        Past(np.arange(len(answers)), np.array(answers, np.int64))
        for answers in ([1, INVALID, 0, 2], [], [INVALID, INVALID])
    )
    assert list(precisions(past)) == [0.75, 0.0]
