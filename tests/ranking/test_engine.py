"""The engine: whatever happened, it stands where a fresh one would (invariants 1 and 3)."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neat_backend.ranking.engine import Engine
from neat_backend.ranking.linear import fit_head
from neat_backend.ranking.method import Method
from neat_backend.records import Label
from tests.ranking.test_neighbors import grid, some_features

CLASSES = ("cat", "dog", "owl")


def learn(*engines):
    """Fit the linear head to what each is labelled with, as the worker does after a label."""
    for engine in engines:
        _, codes, features = engine.training_data()
        for _ in engine.set_linear(fit_head(features, codes, engine.classes)):
            pass


def fresh(engine, features, labels, probabilities):
    """An engine that is given the end state at once."""
    method = Method(k=engine.k, rule=engine.rule, batch_size=engine.batch_size, balance=engine.balance)
    other = Engine(engine._table.dim, engine.classes, method, source=engine.source)
    ids = sorted(features)
    if ids:
        other.add_tasks(ids, np.stack([features[i] for i in ids]))
    if probabilities is not None:
        known = [i for i in probabilities if i in features]
        if known:
            other.set_probabilities(known, np.stack([probabilities[i] for i in known]), CLASSES)
    other.set_labels(labels.values())
    return other


def assert_same_state(engine, other):
    one, two = engine.ranking(), other.ranking()
    for name in (
        "ids",
        "inconsistency",
        "known_neighbours",
        "candidate",
        "predicted",
        "known_chance",
        "quality",
        "queue",
        "place",
        "priority",
    ):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    assert engine.head() == other.head()
    assert engine.head(3) == engine.head(10**6)[:3]
    assert engine.counts() == other.counts()
    for task in one.ids.tolist():
        assert engine.neighbours(task) == other.neighbours(task)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "label", "label", "unlabel", "skip", "invalid", "replace", "train", "learn"]),
        st.integers(1, 12),
        st.integers(0, 2**32 - 1),
    ),
    max_size=15,
)


@settings(max_examples=60, deadline=None)
@given(
    ACTIONS,
    st.sampled_from(["all", "majority"]),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from(["resnet18", "linear"]),
)
def test_any_stream_of_events_leaves_the_state_of_a_rebuild(actions, rule, k, balance, source):
    engine = Engine(8, CLASSES, Method(k=k, rule=rule, batch_size=3, balance=balance), source=source)
    features, labels, probabilities = {}, {}, {}
    next_id = 1
    for action, size, seed in actions:
        rng = np.random.default_rng(seed)
        some = rng.permutation(sorted(features)).astype(int)[:size].tolist()
        if action == "add":
            new = list(range(next_id, next_id + size))
            next_id += size
            values = some_features(rng, size, 8, copies=0.3)
            engine.add_tasks(new, values)
            features.update(zip(new, values, strict=True))
        elif action == "replace" and some:
            values = some_features(rng, len(some), 8)
            engine.add_tasks(some, values)
            features.update(zip(some, values, strict=True))
            for task in some:
                probabilities.pop(task, None)
        elif action == "remove":
            engine.remove_tasks([*some, 999_999])
            for task in some:
                for held in (features, labels, probabilities):
                    held.pop(task, None)
        elif action == "train" and some:
            values = rng.dirichlet(np.ones(3), len(features)).astype(np.float32)
            engine.set_probabilities(sorted(features), values, CLASSES)
            probabilities = dict(zip(sorted(features), values, strict=True))
        elif action in ("label", "invalid", "unlabel", "skip"):
            for task in [*some, next_id + 5]:  # the last one has no features yet
                choice = CLASSES[rng.integers(3)] if action == "label" else None
                labels[task] = Label(task, choice, action == "invalid", set_aside="skipped" * (action == "skip"))
            engine.set_labels([labels[task] for task in [*some, next_id + 5]])
            labels = {t: x for t, x in labels.items() if x != Label(t)}
        elif action == "learn":
            learn(engine)
    other = fresh(engine, features, labels, probabilities)
    learn(engine, other)
    assert_same_state(engine, other)
    counts = engine.counts()
    labelled = {task for task, label in labels.items() if not label.set_aside}
    assert counts.known + counts.invalid == len(labelled)
    assert counts.unlabelled == len([t for t in features if t not in labelled])


def two_groups():
    """Six tasks near (1, 0), six near (0, 1); ids 1..6 and 11..16."""
    rng = np.random.default_rng(0)
    east = np.array([1, 0]) + rng.normal(scale=0.05, size=(6, 2))
    north = np.array([0, 1]) + rng.normal(scale=0.05, size=(6, 2))
    engine = Engine(2, ("east",), Method(k=2, batch_size=2))
    engine.add_tasks([*range(1, 7), *range(11, 17)], grid(np.vstack([east, north])))
    return engine


def test_tasks_near_known_ones_come_first_and_those_near_invalid_ones_last():
    engine = two_groups()
    engine.set_labels([Label(1, "east"), Label(2, "east"), Label(11, invalid=True), Label(12, invalid=True)])
    order = engine.head(100)
    assert set(order[:4]) == {3, 4, 5, 6}
    assert set(order[4:]) == {13, 14, 15, 16}
    assert all(x.candidate for x in engine.ranked(order[:4]))


def test_a_label_changed_moves_its_neighbours():
    engine = two_groups()
    engine.set_labels([Label(1, "east"), Label(2, "east"), Label(11, invalid=True), Label(12, invalid=True)])
    engine.set_labels([Label(1, invalid=True), Label(2, invalid=True), Label(11, "east"), Label(12, "east")])
    assert set(engine.head(4)) == {13, 14, 15, 16}


def test_the_vote_is_the_class_that_most_known_neighbours_have():
    engine = two_groups()
    engine.set_classes(["west", "east"])

    def vote():
        (found,) = engine.ranked([3])
        return found.vote, found.votes

    assert vote() == (None, 0)
    engine.set_labels([Label(1, "east"), Label(2, invalid=True), Label(11, "west"), Label(12, "west")])
    assert vote() == ("east", 1)
    engine.set_labels([Label(2, "west")])
    assert vote() == ("west", 1), "a tie goes to the class that comes first"
    engine.set_labels([Label(2, "east")])
    assert vote() == ("east", 2)
    engine.set_labels([Label(1, invalid=True), Label(2, invalid=True)])
    assert vote() == (None, 0)


def test_a_task_that_was_skipped_comes_after_all_others() -> None:
    engine = two_groups()
    engine.set_labels([Label(1, "east"), Label(2, "east"), Label(11, invalid=True), Label(12, invalid=True)])
    first = engine.head(1)[0]
    engine.set_labels([Label(first, set_aside="skipped")])
    order = engine.head(100)
    assert order[-1] == first
    assert len(order) == 8
    assert engine.counts().unlabelled == 8
    engine.set_labels([Label(first)])  # the skip was taken back
    assert engine.head(1) == [first]


def test_a_task_in_the_row_of_one_that_was_skipped_is_not_behind_others_for_it() -> None:
    engine = two_groups()
    feature = engine._table.planes.exact(engine._table.rows([1]))
    engine.set_labels([Label(1, set_aside="skipped")])
    engine.remove_tasks([1])
    engine.add_tasks([99], feature)
    other = two_groups()
    other.remove_tasks([1])
    other.add_tasks([99], feature)
    assert engine.head(100) == other.head(100)


def test_the_first_batch_is_spread_over_the_pool_and_the_seed_decides():
    features = some_features(np.random.default_rng(0), 200, 4)
    heads = []
    for seed in (0, 0, 1):
        engine = Engine(4, CLASSES, Method(seed=seed))
        engine.add_tasks(range(200), features)
        heads.append(engine.head(20))
    assert heads[0] == heads[1] != heads[2]
    assert max(heads[0]) > 100  # not just the first ids


def test_the_head_is_the_beginning_of_the_whole_order():
    engine = Engine(4, CLASSES)
    engine.add_tasks(range(500), some_features(np.random.default_rng(0), 500, 4, copies=0.5))
    engine.set_labels([Label(i, CLASSES[i % 3]) for i in range(50)])
    ranking = engine.ranking()
    order = ranking.ids[np.lexsort((ranking.ids, -ranking.priority))].tolist()
    assert engine.head(10_000) == order
    for n in (1, 2, 99, 449, 450):
        assert engine.head(n) == order[:n]
    assert ((ranking.priority >= 0) & (ranking.priority <= 1)).all()


def test_a_vanished_class_takes_its_labels_along_and_a_new_one_starts_at_zero():
    engine = two_groups()
    engine.set_classes(("east", "north"))
    engine.set_labels([Label(1, "east"), Label(11, "north")])
    engine.set_probabilities([2, 3], np.array([[0.25, 0.75], [0.5, 0.5]], np.float32), ("east", "north"))
    engine.set_classes(("north", "west"))
    assert engine.labels() == {11: Label(11, "north")}
    assert engine.ranked([2])[0].predicted == "north"
    assert engine.ranked([4])[0].predicted is None
    other = Engine(2, ("north", "west"), Method(k=2, batch_size=2))
    ids = sorted(engine.tasks())
    other.add_tasks(ids, engine._table.planes.exact(engine._table.rows(ids)))
    other.set_labels([Label(1, "east"), Label(11, "north")])  # of the first, nothing is left but that it was answered
    other.set_probabilities([2, 3], np.array([[1, 0], [1, 0]], np.float32), ("north", "west"))
    assert_same_state(engine, other)


def test_probabilities_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="probabilities are"):
        two_groups().set_probabilities([1], np.ones((1, 3), np.float32), ("east",))
