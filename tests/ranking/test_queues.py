"""The queues that keep the classes in balance: the formula by hand, the merge against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from neat_backend.ranking.formulas import ASIDE, label_counts
from neat_backend.ranking.queues import best_of_each, better, places, priorities

UNSEEN, SET_ASIDE = 2, 3  # with two classes


def of(counts: list[int], labels: int, tasks: list[tuple[float, int, int]]) -> list[float]:
    """Priorities of tasks (quality, queue, place)."""
    quality, queue, place = zip(*tasks, strict=True)
    found = priorities(
        np.array(quality), np.array(queue, np.int16), np.array(place), label_counts(np.array(counts), labels)
    )
    return found.tolist()


def above_aside(share: float) -> float:
    return 2 * ASIDE + share * (1 - 3 * ASIDE)


def test_priorities_worked_by_hand() -> None:
    # Class 0 has three labels, class 1 one, which is the fewest: √q · (1 + 1) / (1 + n + j)
    tasks = [(0.81, 0, 0), (0.64, 1, 0), (0.36, 1, 1), (0.25, 0, 4)]
    expected = [0.9 * 2 / 4, 0.8 * 2 / 2, 0.6 * 2 / 3, 0.5 * 2 / 8]
    assert of([3, 1], 6, tasks) == pytest.approx([above_aside(share) for share in expected])


def test_four_times_the_quality_makes_up_for_twice_the_labels() -> None:
    first, second = of([3, 1], 4, [(0.8, 0, 0), (0.2, 1, 0)])  # 1 + 3 labels and 1 + 1
    assert first == pytest.approx(second)


def test_while_a_class_has_no_label_the_tasks_spread_over_the_pool_count_as_one_more() -> None:
    # Five labels, two of them invalid, one class seen: 5 / 2 for the search, which are the fewest.
    assert label_counts(np.array([3, 0]), 5).tolist() == [3, 0, 2.5, 0]
    expected = [0.5 * 3.5 / 4, 1.0, 0.9 * 3.5 / 4.5]
    assert of([3, 0], 5, [(0.25, 0, 0), (1.0, UNSEEN, 0), (0.81, UNSEEN, 1)]) == pytest.approx(
        [above_aside(share) for share in expected]
    )
    # A task that is taken for one of the class without a label is not put before its share, however few it has.
    assert of([3, 0], 5, [(1.0, 1, 0)]) == pytest.approx([above_aside(1.0)])


def test_with_no_label_at_all_the_order_is_that_of_the_cover() -> None:
    values = of([0, 0], 0, [(1.0, UNSEEN, 0), (0.99, UNSEEN, 1), (0.98, UNSEEN, 2)])
    assert values == pytest.approx([above_aside(share) for share in (1.0, 0.99**0.5 / 2, 0.98**0.5 / 3)])


def test_the_search_gets_rarer_when_many_labels_have_found_nothing() -> None:
    # 50 labels for each of two classes: until 100 it has its part, from then on less.
    assert label_counts(np.array([100, 0]), 100)[UNSEEN] == 50
    assert label_counts(np.array([200, 0]), 200)[UNSEEN] == 200
    assert label_counts(np.array([200, 100]), 300).tolist() == [200, 100, 300, 0]  # nothing is there to be found


def test_without_classes_there_is_nothing_to_balance() -> None:
    assert label_counts(np.zeros(0, np.int64), 7).tolist() == [7, 0]


CLASSES = 3
TASKS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.2, 0.25, 0.9, 1.0]), st.integers(0, CLASSES + 1), st.booleans()), max_size=40
)


def columns(tasks: list[tuple[float, int, bool]], seed: int) -> tuple[NDArray[Any], ...]:
    """Quality, queue, whether it is in the pool, and ids in any order."""
    quality, queue, is_open = np.array(tasks, float).reshape(-1, 3).T
    ids = np.random.default_rng(seed).permutation(len(tasks)).astype(np.int64)
    return quality.copy(), queue.astype(np.int16), is_open.astype(bool), ids


def first_of_queue(quality: Any, queue: Any, ids: Any, rows: list[int], number: int) -> list[int]:
    """Rows of one queue, best first."""
    return sorted((row for row in rows if queue[row] == number), key=lambda row: (-quality[row], ids[row]))


@settings(max_examples=200, deadline=None)
@given(TASKS, st.integers(1, 8), st.integers(0, 99))
def test_the_best_of_each_queue_are_those_of_a_sort(tasks: list[tuple[float, int, bool]], n: int, seed: int) -> None:
    quality, queue, is_open, ids = columns(tasks, seed)
    rows = np.flatnonzero(is_open).tolist()
    found = best_of_each(n, quality, queue, is_open, ids, CLASSES + 2)
    expected = [row for c in range(CLASSES + 2) for row in first_of_queue(quality, queue, ids, rows, c)[:n]]
    assert sorted(found.tolist()) == sorted(expected)


@settings(max_examples=200, deadline=None)
@given(TASKS, TASKS, st.integers(0, 99))
def test_how_many_are_better_is_counted(
    tasks: list[tuple[float, int, bool]], queries: list[tuple[float, int, bool]], seed: int
) -> None:
    quality, queue, is_open, ids = columns(tasks, seed)
    of_quality, of_queue, _, of_ids = columns(queries, seed + 1)
    found = better(quality, queue, is_open, ids, (of_quality, of_queue, of_ids))
    expected = [
        sum(
            bool(is_open[row]) and queue[row] == number and (-quality[row], ids[row]) < (-value, task)
            for row in range(len(ids))
        )
        for value, number, task in zip(of_quality, of_queue, of_ids, strict=True)
    ]
    assert found.tolist() == expected


@settings(max_examples=200, deadline=None)
@given(TASKS, st.integers(0, 99))
def test_a_place_is_how_many_of_the_queue_are_better(tasks: list[tuple[float, int, bool]], seed: int) -> None:
    quality, queue, _, ids = columns(tasks, seed)
    everything = np.ones(len(ids), bool)
    assert (
        places(quality, queue, ids).tolist() == better(quality, queue, everything, ids, (quality, queue, ids)).tolist()
    )


def test_many_tasks_are_looked_at_in_parts_and_come_to_the_same() -> None:
    rng = np.random.default_rng(0)
    n = 300_000
    quality, queue, ids = rng.integers(0, 1000, n) / 1000, rng.integers(0, 5, n).astype(np.int16), rng.permutation(n)
    is_open = rng.random(n) < 0.9
    found = best_of_each(20, quality, queue, is_open, ids, 5)
    order = np.lexsort((ids, -quality))
    order = order[is_open[order]]
    for number in range(5):
        best = order[queue[order] == number][:20]
        assert set(best.tolist()) <= set(found.tolist())
        count = better(quality, queue, is_open, ids, (quality[best], queue[best], ids[best]))
        assert count.tolist() == list(range(20))


@settings(max_examples=200, deadline=None)
@given(
    TASKS.filter(len),
    st.lists(st.integers(0, 50), min_size=CLASSES, max_size=CLASSES),
    st.integers(0, 50),
    st.integers(0, 99),
)
def test_priorities_lie_in_the_unit_interval_and_keep_each_queues_order_with_what_is_set_aside_last(
    tasks: list[tuple[float, int, bool]], counts: list[int], invalid: int, seed: int
) -> None:
    quality, queue, _, ids = columns(tasks, seed)
    place = places(quality, queue, ids)
    value = priorities(quality, queue, place, label_counts(np.array(counts), sum(counts) + invalid))
    assert ((value >= 0) & (value <= 1)).all()
    for number in range(CLASSES + 2):
        rows = first_of_queue(quality, queue, ids, list(range(len(ids))), number)
        assert value[rows].tolist() == sorted(value[rows].tolist(), reverse=True)
    aside = queue == CLASSES + 1
    assert value[aside].max(initial=0.0) < value[~aside].min(initial=1.0)


def test_among_equals_the_class_that_is_behind_is_asked_for_until_it_has_caught_up() -> None:
    # Ten tasks of each of two classes, all alike; class 0 has four labels, class 1 has one.
    quality = np.full(20, 0.5)
    queue = np.repeat([0, 1], 10).astype(np.int16)
    place = places(quality, queue, np.arange(20))
    order = np.argsort(-priorities(quality, queue, place, label_counts(np.array([4, 1]), 5)), kind="stable")
    assert queue[order][:3].tolist() == [1, 1, 1]  # then both have four
    assert sorted(queue[order][3:9].tolist()) == [0, 0, 0, 1, 1, 1]
