"""The order of strategies that look at the whole pool: beside the labels, and of the state alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from neat_backend.models.grid import to_grid
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.method import Method
from neat_backend.ranking.pool import Pool
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.records import Label
from neat_backend.strategies import strategy
from neat_backend.worker.steps.planning import Planning

CLASSES = ("cat", "dog")
N, DIM, BATCH = 300, 16, 10


def made(labels: int = 0) -> Engine:
    """300 tasks in six clusters, of which the first two are the known classes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, DIM))
    engine = Engine(DIM, CLASSES, Method(k=5, batch_size=BATCH))
    engine.add_tasks(range(1, N + 1), to_grid(centres[np.arange(N) % 6] + 0.3 * rng.normal(size=(N, DIM))))
    engine.set_labels([answer(task) for task in range(1, labels + 1)])
    return engine


def answer(task: int) -> Label:
    cluster = (task - 1) % 6
    return Label(task, CLASSES[cluster]) if cluster < 2 else Label(task, None, invalid=True)


def planned(engine: Engine, name: str, applied: Callable[[], int] = lambda: 7) -> Planning:
    planning = Planning(SharedEngine(engine), name, 3, applied)
    assert planning.step()
    return planning


def ids(planning: Planning) -> list[int]:
    return [ranked.task for ranked in planning.head()]


@pytest.mark.parametrize("name", ["neat_plus", "neat_passive", "random", "uncertainty", "coreset", "badge"])
def test_the_head_is_what_the_strategy_chooses(name: str) -> None:
    engine = made(labels=30)
    all_ids, pool = engine.pool(1000)
    assert pool is not None
    chosen = all_ids[strategy(name)(pool, 2 * BATCH, np.random.default_rng(3))]
    head = planned(engine, name).head()
    assert [ranked.task for ranked in head] == chosen.tolist()
    priorities = [ranked.priority for ranked in head]
    assert priorities == sorted(priorities, reverse=True)
    assert len(set(priorities)) == len(priorities)
    assert 0 <= min(priorities) < max(priorities) <= 1


def test_neat_plus_asks_for_known_classes() -> None:
    engine = made(labels=30)
    head = ids(planned(engine, "neat_plus"))
    assert sum((task - 1) % 6 < 2 for task in head[:BATCH]) >= 0.8 * BATCH


def test_what_is_labelled_leaves_and_the_engine_fills_up_until_there_is_a_new_plan() -> None:
    engine = made(labels=30)
    event = [7]
    planning = planned(engine, "coreset", lambda: event[0])
    before = ids(planning)
    engine.set_labels([answer(task) for task in before[:3]])
    assert planning.is_behind()
    head = ids(planning)
    assert head[: len(before) - 3] == before[3:]
    assert len(head) == len(set(head)) == 2 * BATCH
    assert not set(before[:3]) & set(head)
    event[0] = 8
    assert planning.step()
    assert not planning.is_behind()
    assert (planning.version, planning.event) == (2, 8)


def test_a_plan_is_made_once_for_one_state() -> None:
    engine = made(labels=30)
    planning = planned(engine, "random")
    assert not planning.step()
    assert planning.event == 7


def test_a_strategy_learns_what_earlier_queries_were_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = made(labels=30)
    seen: list[Pool] = []

    def look(pool: Pool, batch_size: int, rng: np.random.Generator) -> NDArray[np.int64]:
        seen.append(pool)
        return pool.offered[:batch_size]

    monkeypatch.setattr("neat_backend.strategies.following", lambda name: look)
    gone = 200  # answered once, not labelled any more
    answered = [[1, 2, 3], [29, gone, 4, 100_000]]
    assert Planning(SharedEngine(engine), "neat_plus", 3, lambda: 7, queries=lambda: answered).step()
    ids_here, _ = engine.pool(1000)
    first, second = seen[0].past
    assert ids_here[first.indices].tolist() == [1, 2, 3]
    assert first.answers.tolist() == [0, 1, -1]
    assert ids_here[second.indices].tolist() == [4, 29]
    assert second.answers.tolist() == [-1, -1]


def test_an_engine_that_was_built_anew_has_the_same_plan() -> None:
    engine = made()
    engine.set_labels([answer(task) for task in range(60, 20, -1)])
    engine.set_labels([Label(task) for task in range(41, 61)])
    engine.set_labels([answer(task) for task in range(1, 21)])
    assert ids(planned(engine, "neat_plus")) == ids(planned(made(labels=40), "neat_plus"))


def test_the_event_is_the_one_of_the_state_that_was_looked_at() -> None:
    engine = made(labels=30)
    at = [5]

    def event() -> int:
        return at[0]

    planning = planned(engine, "random", event)
    at[0] = 6
    assert planning.event == 5


def test_of_a_large_pool_a_sample_is_looked_at_the_same_every_time() -> None:
    engine = made(labels=30)
    some, pool = engine.pool(50)
    assert pool is not None
    assert len(pool.offered) == 50
    assert len(some) == 80, "all labelled ones are in it"
    again, _ = engine.pool(50)
    np.testing.assert_array_equal(some, again)


def test_what_somebody_has_answered_without_a_label_is_not_on_offer() -> None:
    engine = made(labels=30)
    engine.set_labels([Label(100, set_aside="skipped")])
    some, pool = engine.pool(1000)
    assert pool is not None
    assert 100 not in some[pool.offered]


def test_strategies_see_the_classifier_once_there_is_one() -> None:
    engine = made(labels=30)
    _, pool = engine.pool(1000)
    assert pool is not None
    assert pool.model is None
    engine.set_probabilities([40], np.array([[0.9, 0.1]], np.float32), CLASSES)
    some, pool = engine.pool(1000)
    assert pool is not None
    at = np.searchsorted(some, [40, 41])
    np.testing.assert_allclose(pool.probabilities(at), [[0.9, 0.1], [0.5, 0.5]], atol=1e-6)


def test_the_names_of_the_classes_are_where_neat_plus_begins() -> None:
    engine = made()
    centres = np.random.default_rng(0).normal(size=(6, DIM))
    engine.class_features = to_grid(centres[:2])
    head = ids(planned(engine, "neat_plus"))
    assert all((task - 1) % 6 < 2 for task in head)
    engine.set_classes(("cat", "cow"))
    assert engine.class_features is None


def test_before_there_are_classes_or_labels_the_engines_order_is_served() -> None:
    without = Engine(DIM, (), Method(batch_size=BATCH))
    without.add_tasks(range(1, 41), to_grid(np.random.default_rng(0).normal(size=(40, DIM))))
    assert ids(planned(without, "neat_plus")) == without.head()
    engine = made()
    assert len(set(ids(planned(engine, "neat_plus")))) == 2 * BATCH
