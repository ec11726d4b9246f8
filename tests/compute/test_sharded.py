"""An engine in shards answers what a single one answers, whatever happened."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from neat_backend.compute.cluster import Cluster
from neat_backend.compute.sharded import ShardedEngine
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.method import Method
from neat_backend.records import Label
from tests.compute.local_shards import LocalShards
from tests.ranking.test_engine import CLASSES, assert_same_state, learn
from tests.ranking.test_neighbors import some_features

DIM = 8
OTHER_CLASSES = ("dog", "fox", "cat")
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["add", "remove", "label", "label", "unlabel", "skip", "invalid", "replace", "train", "classes", "learn"]
        ),
        st.integers(1, 12),
        st.integers(0, 2**32 - 1),
    ),
    max_size=15,
)


class Stream:
    """Random changes, done to several engines alike."""

    def __init__(self, *engines: Any) -> None:
        self.engines, self.next_id = engines, 1
        self.here: list[int] = []

    def do(self, action: str, size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        some = rng.permutation(self.here).astype(int)[:size].tolist()
        if action == "add":
            new = list(range(self.next_id, self.next_id + size))
            self.next_id += size
            self.here += new
            self.each("add_tasks", new, some_features(rng, size, DIM, copies=0.3))
        elif action == "replace" and some:
            self.each("add_tasks", some, some_features(rng, len(some), DIM))
        elif action == "remove":
            self.here = [task for task in self.here if task not in some]
            self.each("remove_tasks", [*some, 999_999])
        elif action == "train" and some:
            classes = self.engines[0].classes
            values = rng.dirichlet(np.ones(len(classes)), len(some)).astype(np.float32)
            self.each("set_probabilities", some, values, classes)
        elif action == "classes":
            self.each("set_classes", OTHER_CLASSES if self.engines[0].classes == CLASSES else CLASSES)
        elif action == "learn":
            learn(*self.engines)
        elif action in ("label", "invalid", "unlabel", "skip"):
            choice = str(rng.choice([*CLASSES, "none of them"])) if action == "label" else None
            tasks = [*some, self.next_id + 5]  # the last one has no features yet
            self.each("set_labels", [Label(t, choice, action == "invalid", action == "skip") for t in tasks])

    def each(self, method: str, *given: Any) -> None:
        for engine in self.engines:
            getattr(engine, method)(*given)


def assert_same_answers(single: Engine, sharded: ShardedEngine) -> None:
    assert_same_state(single, sharded)
    assert len(single) == len(sharded)
    assert sorted(single.tasks()) == sharded.tasks()
    assert single.untrained() == sharded.untrained()
    assert single.labels() == sharded.labels()
    assert single.unlabelled(range(100)) == sharded.unlabelled(range(100))
    head = single.head(50)
    assert single.ranked(head) == sharded.ranked(head)
    assert single.ranked(head[::-2]) == sharded.ranked(head[::-2])
    for name, column in single.predictions(sorted(single.tasks())).items():
        np.testing.assert_array_equal(column, sharded.predictions(sorted(single.tasks()))[name], err_msg=name)
    for one_column, other_column in zip(single.codes()[:2], sharded.codes()[:2], strict=True):
        np.testing.assert_array_equal(one_column, other_column)
    for name, column in vars(single.nearest_labelled()).items():
        np.testing.assert_array_equal(column, getattr(sharded.nearest_labelled(), name), err_msg=name)
    for most in (3, 1000):
        (ids, one), (other_ids, other) = single.pool(most), sharded.pool(most)
        np.testing.assert_array_equal(ids, other_ids)
        assert one is not None
        assert other is not None
        for name in ("features", "labels", "offered"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        np.testing.assert_array_equal(one.probabilities(one.offered), other.probabilities(other.offered))


@settings(max_examples=40, deadline=None)
@given(
    ACTIONS,
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from(["all", "majority"]),
    st.booleans(),
    st.sampled_from(["resnet18", "linear"]),
)
@example([("add", 2, 0), ("label", 1, 3), ("unlabel", 2, 0), ("replace", 1, 0)], 2, 1, "all", True, "resnet18")
def test_any_stream_of_events_gives_the_answers_of_a_single_engine(actions, n, k, rule, balance, source) -> None:
    how = {"method": Method(k, rule, batch_size=3, seed=5, balance=balance), "source": source}
    single = Engine(DIM, CLASSES, **how)
    sharded = ShardedEngine(LocalShards(n, DIM, CLASSES, how), CLASSES, **how)
    stream = Stream(single, sharded)
    versions = []
    for action in actions:
        stream.do(*action)
        versions.append((single.head_version, sharded.head_version))
    assert_same_answers(single, sharded)
    assert all(one == other for one, other in versions)


def test_a_task_that_is_not_here_is_no_answer() -> None:
    sharded = ShardedEngine(LocalShards(2, DIM, CLASSES, {}), CLASSES)
    for ask in (sharded.neighbours, lambda t: sharded.ranked([t]), lambda t: sharded.features([t])):
        with pytest.raises(KeyError):
            ask(7)


def test_actors_answer_as_a_single_engine_and_a_dead_one_is_told(cluster: Cluster) -> None:
    import ray

    from neat_backend.compute.on_ray import RayCompute
    from neat_backend.errors import ShardsLost

    how: dict[str, Any] = {
        "method": Method(k=3, batch_size=3, seed=5, balance=True),
        "device": "cpu",
        "source": "linear",
    }
    single = Engine(DIM, CLASSES, **how)
    sharded: Any = RayCompute(cluster, shards=2, device="cpu").engine(DIM, CLASSES, **how)
    stream = Stream(single, sharded)
    rng = np.random.default_rng(0)
    actions = ["add", "add", "label", "train", "invalid", "replace", "learn", "remove", "classes", "skip", "label"]
    actions += ["learn", "unlabel"]
    for action in actions * 2:
        stream.do(action, int(rng.integers(3, 12)), int(rng.integers(2**32)))
    assert_same_answers(single, sharded)
    ray.kill(sharded._shards._actors[1])
    with pytest.raises(ShardsLost, match="a shard of the engine is gone"):
        sharded.set_labels([Label(t, "cat") for t in stream.here])
