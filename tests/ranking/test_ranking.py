"""What is kept beside the engine's numbers so that nobody looks through the pool: the head, its version, the counts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neat_backend.ranking.engine import Engine
from neat_backend.ranking.method import Method
from neat_backend.ranking.views import Counts
from neat_backend.records import Label
from tests.ranking.test_engine import learn
from tests.ranking.test_neighbors import some_features

CLASSES = ("cat", "dog", "owl")
KINDS = [
    "add",
    "remove",
    "label",
    "label",
    "label",
    "unlabel",
    "skip",
    "invalid",
    "train",
    "learn",
    "classes",
    "nothing",
]
ACTIONS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(1, 6), st.integers(0, 2**32 - 1)), max_size=15)


def act(engine: Engine, kind: str, size: int, seed: int) -> None:
    """Something happens to some tasks."""
    rng = np.random.default_rng(seed)
    some = rng.permutation(sorted(engine.tasks())).astype(int)[:size].tolist()
    if kind == "add":
        new = rng.choice(100, size, replace=False)  # some of them are here already
        engine.add_tasks(new, some_features(rng, size, 8, copies=0.3))
    elif kind == "remove":
        engine.remove_tasks([*some, 999])
    elif kind == "train" and some and engine.classes:
        values = rng.dirichlet(np.ones(3), len(some)).astype(np.float32)
        engine.set_probabilities(some, values, CLASSES)
    elif kind == "learn":
        learn(engine)
    elif kind == "classes":
        engine.set_classes([CLASSES[i] for i in rng.permutation(3)[: rng.integers(1, 4)]])
    elif kind in ("label", "invalid", "unlabel", "skip"):
        choice = CLASSES[rng.integers(3)] if kind == "label" else None
        engine.set_labels(
            [Label(t, choice, kind == "invalid", set_aside="skipped" * (kind == "skip")) for t in [*some, 500]]
        )


def filled(balance: bool = False) -> Engine:
    engine = Engine(8, CLASSES, Method(k=2, batch_size=2, balance=balance))
    engine.add_tasks(range(40), some_features(np.random.default_rng(0), 40, 8))
    return engine


@settings(max_examples=100, deadline=None)
@given(ACTIONS, st.booleans())
def test_the_heads_version_grows_exactly_when_the_head_changes(
    actions: list[tuple[str, int, int]], balance: bool
) -> None:
    engine = filled(balance=balance)
    head, version = engine.head(), engine.head_version
    for action in actions:
        act(engine, *action)
        ranking = engine.ranking()
        new = ranking.ids[np.lexsort((ranking.ids, -ranking.priority))][:4].tolist()
        assert (engine.head_version > version) == (new != head)
        assert engine.head_version == engine.head_version
        head, version = new, engine.head_version
        assert engine.head() == head
        assert engine.head(3) == head[:3]
        assert engine.head_version == version


@settings(max_examples=60, deadline=None)
@given(ACTIONS)
def test_counts_are_those_of_the_labels_and_the_pool(actions: list[tuple[str, int, int]]) -> None:
    engine = filled()
    for action in actions:
        act(engine, *action)
        labels = engine.labels()
        known = sum(label.choice is not None for label in labels.values())
        invalid = sum(label.invalid for label in labels.values())
        assert engine.counts() == Counts(known, invalid, len(set(engine.tasks()) - set(labels)))
        assert len(engine.ranking().ids) == engine.counts().unlabelled


def test_a_head_that_is_looked_at_by_nobody_meanwhile_may_come_back_unchanged() -> None:
    engine = filled()
    head, version = engine.head(), engine.head_version
    engine.set_labels([Label(head[0], invalid=True)])
    engine.set_labels([Label(head[0])])
    assert (engine.head(), engine.head_version) == (head, version)


@pytest.mark.parametrize("balance", [False, True])
def test_looking_at_a_long_head_leaves_the_first_ones_as_they_are(balance: bool) -> None:
    engine = Engine(8, CLASSES, Method(k=2, batch_size=2, balance=balance))
    engine.add_tasks(range(3000), some_features(np.random.default_rng(0), 3000, 8))
    rng = np.random.default_rng(1)
    for _ in range(30):
        task = engine.head(2500)[int(rng.integers(2000))]
        engine.set_labels([Label(task, CLASSES[rng.integers(3)])])
        ranking = engine.ranking()
        order = ranking.ids[np.lexsort((ranking.ids, -ranking.priority))].tolist()
        for n in (1, 4, 900, 1500):
            assert engine.head(n) == order[:n]


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("trained", [True, False])
def test_a_ranking_that_is_finished_later_is_of_the_moment_when_it_was_begun(trained: bool, balance: bool) -> None:
    engine = filled(balance=balance)
    if trained:
        engine.set_probabilities(range(30), np.random.default_rng(2).dirichlet(np.ones(3), 30), CLASSES)
    before = engine.ranking()
    assert (before.predicted >= 0).any() == trained
    finish = engine.copied_ranking()
    for number, kind in enumerate(KINDS):
        act(engine, kind, 5, number)
    after = finish()
    for name in vars(before):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)


@settings(max_examples=60, deadline=None)
@given(ACTIONS, st.integers(1, 50))
def test_a_tasks_numbers_are_those_of_the_ranking_wherever_it_is_asked_for(
    actions: list[tuple[str, int, int]], n: int
) -> None:
    engine = filled(balance=True)
    for action in actions:
        act(engine, *action)
    ranking = engine.ranking()
    at = {task: place for place, task in enumerate(ranking.ids.tolist())}
    order = engine.head(n)
    for tasks in (order, order[::-1], ranking.ids[::3].tolist()):  # with places that are known, and to be counted
        for one in engine.ranked(tasks):
            place = at[one.task]
            queue = int(ranking.queue[place])
            assert one.priority == ranking.priority[place]
            assert (one.place, one.known_chance) == (ranking.place[place], ranking.known_chance[place])
            assert one.queue == (engine.classes[queue] if queue < len(engine.classes) else None)
