"""Near-duplicates that can wait: worked by hand, and in the order of an engine."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from neat_backend.compute.sharded import ShardedEngine
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.method import Method
from neat_backend.ranking.repeats import Groups, repeats
from neat_backend.records import Label
from tests.compute.local_shards import LocalShards
from tests.ranking.test_engine import CLASSES, assert_same_state
from tests.ranking.test_neighbors import some_features


def test_of_a_group_all_but_the_best_can_wait_and_with_a_label_all() -> None:
    groups = np.array([1, 1, 1, 4, 4])
    quality = np.array([0.2, 0.8, 0.8, 0.9, 0.1])
    labelled = np.array([False, False, False, False, True])
    assert repeats(groups, quality, labelled, ~labelled).tolist() == [True, False, True, True, False]


def test_who_is_answered_without_a_label_does_not_stand_for_a_group() -> None:
    nobody = np.zeros(2, bool)
    assert repeats(np.array([3, 3]), np.array([0.9, 0.1]), nobody, np.array([False, True])).tolist() == [False, False]
    assert repeats(np.zeros(0, int), np.zeros(0), np.zeros(0, bool), np.zeros(0, bool)).tolist() == []


def test_groups_of_one_are_none() -> None:
    groups = Groups.of({1: 1, 2: 1, 3: 3, 9: 4, 4: 4})
    assert (groups.tasks.tolist(), groups.groups.tolist(), groups.count) == ([1, 2, 4, 9], [1, 1, 4, 4], 2)
    assert groups.with_task(9) == [4]
    assert groups.with_task(3) == []
    assert groups.without([1, 7]).tasks.tolist() == [2, 4, 9]


def engine_of(n: int, **settings: bool) -> Engine:
    engine = Engine(8, CLASSES, Method(k=3, batch_size=2, **settings))
    engine.add_tasks(range(1, n + 1), some_features(np.random.default_rng(0), n, 8))
    return engine


def test_one_of_each_group_stands_in_front_and_the_rest_last() -> None:
    groups = Groups.of({1: 1, 2: 1, 3: 1, 4: 4, 5: 4})
    for balance in (False, True):
        engine = engine_of(8, skip_duplicates=True, balance=balance)
        plain = engine_of(8, balance=balance)
        engine.set_groups(groups)
        best = [next(task for task in plain.head(8) if task in group) for group in ((1, 2, 3), (4, 5))]
        assert set(engine.head(5)) == {6, 7, 8, *best}
        assert set(engine.head(8)) == set(range(1, 9))  # nothing is lost
        engine.set_labels([Label(best[0], "cat")])
        assert set(engine.head(7)[5:]) == {1, 2, 3} - {best[0]} | ({4, 5} - {best[1]}) - set(engine.head(5))
        assert not {1, 2, 3} & set(engine.head(4))
        engine.set_labels([Label(best[0])])
        assert set(engine.head(5)) == {6, 7, 8, *best}


def test_what_was_answered_without_a_label_comes_after_the_repeats() -> None:
    engine = engine_of(4, skip_duplicates=True)
    engine.set_groups(Groups.of({1: 1, 2: 1}))
    engine.set_labels([Label(1, "cat"), Label(3, set_aside="skipped")])
    assert engine.head(3) == [4, 2, 3]
    first, repeat, aside = (one.priority for one in engine.ranked([4, 2, 3]))
    assert 1 >= first > repeat > aside >= 0


def test_without_the_setting_groups_change_nothing() -> None:
    engine, plain = engine_of(8), engine_of(8)
    engine.set_groups(Groups.of({1: 1, 2: 1}))
    assert engine.head(8) == plain.head(8)


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["label", "unlabel", "skip", "remove", "replace", "group"]), st.integers(0, 2**32 - 1)),
    max_size=8,
)


@settings(max_examples=25, deadline=None)
@given(ACTIONS, st.integers(1, 3), st.booleans())
def test_any_stream_of_events_leaves_the_order_of_a_rebuild_in_shards_too(actions, n, balance) -> None:
    how = {"method": Method(k=2, batch_size=3, balance=balance, skip_duplicates=True)}
    engine = Engine(8, CLASSES, **how)
    sharded = ShardedEngine(LocalShards(n, 8, CLASSES, how), CLASSES, **how)
    features = dict(zip(range(1, 13), some_features(np.random.default_rng(1), 12, 8, copies=0.5), strict=True))
    labels: dict[int, Label] = {}
    groups = Groups.none()
    for one in (engine, sharded):
        one.add_tasks(list(features), np.stack(list(features.values())))
    for action, seed in actions:
        rng = np.random.default_rng(seed)
        some = rng.permutation(list(features))[:3].tolist()
        if action == "remove":
            for task in some:
                features.pop(task), labels.pop(task, None)
            groups = groups.without(some)
        elif action == "replace" and some:
            features |= dict(zip(some, some_features(rng, len(some), 8), strict=True))
            groups = groups.without(some)
        elif action == "group":
            groups = Groups.of({task: int(rng.integers(1, 4)) for task in features})
        for one in (engine, sharded):
            if action == "remove":
                one.remove_tasks(some)
            elif action == "replace" and some:
                one.add_tasks(some, np.stack([features[task] for task in some]))
            elif action == "group":
                one.set_groups(groups)
            else:
                choice = "dog" if action == "label" else None
                given_labels = [Label(task, choice, set_aside="skipped" * (action == "skip")) for task in some]
                labels |= {label.task: label for label in given_labels}
                one.set_labels(given_labels)
    rebuilt = Engine(8, CLASSES, **how)
    if features:
        rebuilt.add_tasks(sorted(features), np.stack([features[task] for task in sorted(features)]))
    rebuilt.set_groups(groups)
    rebuilt.set_labels(labels.values())
    assert_same_state(engine, rebuilt)
    assert_same_state(sharded, rebuilt)
    assert engine.take_gone() == sharded.take_gone()
    (ids, one), (other_ids, other) = engine.pool(100), sharded.pool(100)
    assert ids.tolist() == other_ids.tolist()
    assert one is not None
    assert other is not None
    assert one.offered.tolist() == other.offered.tolist()
