"""Random draws: which tasks they are, where they stand in the order, and which labels are a sample."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neat_backend.compute.sharded import ShardedEngine
from neat_backend.ranking.draws import Draws, permutation
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.labels import LabelBook
from neat_backend.ranking.method import Method
from neat_backend.records import Label
from tests.compute.local_shards import LocalShards
from tests.ranking.test_engine import CLASSES
from tests.ranking.test_neighbors import some_features


def engine_of(n: int, share: float, *, batch: int = 10, seed: int = 3, balance: bool = True) -> Engine:
    engine = Engine(8, CLASSES, Method(k=3, batch_size=batch, seed=seed, balance=balance, random_share=share))
    engine.add_tasks(np.arange(1, n + 1), some_features(np.random.default_rng(0), n, 8))
    return engine


def test_an_order_with_draws_by_hand() -> None:
    draws = Draws(0, 0.25)
    draws._order = [24, 3, 25]  # x c y
    assert draws.mix([1, 2, 3, 4, 5, 6], LabelBook(), 100) == ([1, 24, 2, 3, 4, 25, 5, 6], {24, 25})
    assert draws.mix([1, 2, 3, 4, 5, 6], LabelBook(), 3) == ([1, 24, 2, 3, 4, 5, 6], {24})


def test_a_share_of_what_is_asked_for_is_drawn() -> None:
    for share in (0.0, 0.02, 0.05, 0.1, 0.3, 0.5):
        due = [Draws(0, share).is_due(asked) for asked in range(1000)]
        assert sum(due) == pytest.approx(1000 * share, abs=1)
        assert not any(one and other for one, other in pairwise(due))


def test_without_a_share_the_order_is_the_paper_s() -> None:
    engine = engine_of(30, 0.0)
    assert engine.draw_priorities() == {}
    assert not any(one.drawn for one in engine.ranked(engine.head()))
    engine.set_labels([Label(task, "cat") for task in range(1, 31)])
    assert engine.sample().tolist() == []


ANSWERS = st.lists(
    st.sampled_from(["first", "first", "first", "other", "skip", "unlabel", "add", "remove"]), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(ANSWERS, st.sampled_from([0.05, 0.2, 0.5]), st.integers(0, 5), st.booleans(), st.integers(0, 2**32 - 1))
def test_the_sample_is_a_prefix_of_a_permutation_that_nothing_influences(actions, share, seed, balance, chance) -> None:
    rng = np.random.default_rng(chance)
    engine, ids, asked = engine_of(40, share, seed=seed, balance=balance), list(range(1, 41)), []
    for action in actions:
        head = engine.head()
        answered = sorted({*engine.labels(), *engine.set_aside().tolist()})
        if action == "add":
            new = np.arange(max(ids) + 1, max(ids) + 4)
            engine.add_tasks(new, some_features(rng, 3, 8))
            ids += new.tolist()
        elif action == "remove":
            ids.remove(gone := int(rng.choice(ids)))
            engine.remove_tasks([gone])
        elif action == "unlabel" and answered:
            engine.set_labels([Label(int(rng.choice(answered)))])
        elif action == "skip":
            engine.set_labels([Label(head[0], set_aside="skipped")])
        elif action != "unlabel":
            task = head[0] if action == "first" else int(rng.choice(ids))
            engine.set_labels([Label(task, "cat") if rng.random() < 0.5 else Label(task, invalid=True)])
            asked.append(task)
    order = permutation(np.array(ids, np.int64), seed).tolist()
    labels, aside = engine.labels(), set(engine.set_aside().tolist())
    end = next((at for at, task in enumerate(order) if task not in labels and task not in aside), len(order))
    assert engine.sample().tolist() == [task for task in order[:end] if task in labels]
    waiting = [task for task in order if task not in labels and task not in aside]
    head, drawn = engine.head(), engine.draw_priorities()
    assert sorted(engine.head(len(ids))) == sorted(task for task in ids if task not in labels)  # nothing twice or lost
    before: set[int] = set()
    for place, task in enumerate(head):
        if engine.draws.is_due(len(labels) + len(aside) + place) and waiting:
            assert task in aside or task == next(one for one in waiting if one not in before)
        assert (task in drawn) <= (task in waiting)
        before.add(task)


def test_the_order_s_scores_put_the_draws_in_their_places() -> None:
    for share in (0.1, 0.5):
        for answered in range(12):
            engine = engine_of(60, share)
            engine.set_labels([Label(task, CLASSES[task % 2]) for task in range(1, answered + 1)])
            ranked = engine.ranked(engine.head())
            assert sorted(ranked, key=lambda one: (-one.priority, one.task)) == ranked
            whole = engine.ranking()
            assert whole.ids[np.lexsort((whole.ids, -whole.priority))].tolist() == engine.head(60)
            assert [one.task for one in ranked if one.drawn] == list(engine.draw_priorities())
            assert any(one.drawn for one in ranked)
            assert all(0 < one.priority < 1 for one in ranked)


def test_while_people_label_from_the_top_the_draws_stay_in_their_places() -> None:
    engine = engine_of(60, 0.2, balance=False)
    order = engine.head()
    draws = list(engine.draw_priorities())
    for task in order[:10]:
        first = engine.head()[0]
        assert (first in draws) == (task in draws)
        engine.set_labels([Label(first, "cat")])


def test_a_draw_is_the_same_for_any_class_of_what_is_labelled() -> None:
    rng = np.random.default_rng(0)
    asked = []
    for answers in ("cat", "dog"):
        engine, drawn = engine_of(200, 0.1), []
        for _ in range(100):
            task = engine.head()[0]
            if task in engine.draw_priorities():
                drawn.append(task)
            engine.set_labels([Label(task, answers) if rng.random() < 0.5 else Label(task, invalid=True)])
        asked.append(drawn)
        sample = engine.sample().tolist()
        assert len(sample) >= len(drawn) == 10
        assert sample == permutation(np.arange(1, 201), 3).tolist()[: len(sample)]
    assert set(asked[0][:5]) & set(asked[1][:5])  # the permutation is one; either order has reached some of it


def test_another_engine_with_the_same_labels_goes_on_as_the_first() -> None:
    first = engine_of(80, 0.1)
    for number in range(30):
        first.set_labels([Label(first.head()[0], CLASSES[number % 2])])
    again = engine_of(80, 0.1)
    again.set_labels(reversed(list(first.labels().values())))
    assert again.head() == first.head()
    assert again.sample().tolist() == first.sample().tolist()
    assert again.draw_priorities() == first.draw_priorities()


def test_new_tasks_end_the_sample_until_they_are_answered() -> None:
    engine = engine_of(40, 0.5)
    for _ in range(20):
        engine.set_labels([Label(engine.head()[0], "cat")])
    before = engine.sample().tolist()
    order = permutation(np.arange(1, 1041), 3)
    new = next(task for task in order.tolist() if task > 40)  # among the first of the permutation
    engine.add_tasks([new], some_features(np.random.default_rng(1), 1, 8))
    during = engine.sample().tolist()
    assert during == before[: len(during)]
    assert len(during) < len(before)
    while new not in engine.labels():
        engine.set_labels([Label(engine.head()[0], "cat")])
    assert len(engine.labels()) <= 23
    assert [task for task in engine.sample().tolist() if task != new][: len(before)] == before


def test_a_skipped_draw_is_left_out_of_the_sample_and_ends_it_not() -> None:
    engine = engine_of(30, 0.5)
    order = permutation(np.arange(1, 31), 3).tolist()
    engine.set_labels([Label(order[0], "cat"), Label(order[1], set_aside="skipped"), Label(order[2], invalid=True)])
    assert engine.sample().tolist() == [order[0], order[2]]


def test_shards_draw_as_a_single_engine() -> None:
    how = {"method": Method(k=3, batch_size=5, seed=5, balance=True, random_share=0.2)}
    engines = Engine(8, CLASSES, **how), ShardedEngine(LocalShards(3, 8, CLASSES, how), CLASSES, **how)
    features = some_features(np.random.default_rng(0), 60, 8)
    for engine in engines:
        engine.add_tasks(np.arange(1, 61), features)
        for number in range(15):
            engine.set_labels([Label(engine.head()[0], CLASSES[number % 2])])
    one, other = engines
    assert one.head() == other.head()
    assert one.head(30) == other.head(30)
    assert one.ranked(one.head()) == other.ranked(other.head())
    assert one.sample().tolist() == other.sample().tolist()
    assert np.array_equal(one.ranking().priority, other.ranking().priority)
