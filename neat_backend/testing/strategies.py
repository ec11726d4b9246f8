"""The contract of strategies: properties of each one and of its hybrid, in every state of the labelling."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from neat_backend.ranking.pool import UNLABELLED, Past, Pool
from neat_backend.ranking.scores import INVALID
from neat_backend.strategies import HYBRID, strategy
from neat_backend.strategies.detection import candidates
from neat_backend.testing.pools import make_pool

B = 20


def after_queries(pool: Pool) -> Pool:
    """The pool with two earlier queries: half of the labelled samples, in some order."""
    queried = np.random.default_rng(1).permutation(pool.labelled)[: len(pool.labelled) // 2]
    parts = np.array_split(queried, 2)
    return replace(pool, past=tuple(Past(part, pool.labels[part]) for part in parts))


def one_class_so_far(pool: Pool) -> Pool:
    """The pool with only the samples of class 0 and the invalid ones labelled."""
    return replace(pool, labels=np.where(pool.labels > 0, UNLABELLED, pool.labels))


def nothing_but_invalid(pool: Pool) -> Pool:
    return replace(pool, labels=np.where(pool.labels >= 0, INVALID, pool.labels), model=None)


def with_class_features(pool: Pool) -> Pool:
    return replace(pool, class_features=pool.features[: pool.n_classes])


# Name → pool and batch size.
CASES: dict[str, tuple[Callable[[], Pool], int]] = {
    "the usual": (lambda: make_pool(), B),
    "after queries": (lambda: after_queries(make_pool()), B),
    "fewer left than B": (lambda: make_pool(n_offered=7), B),
    "one offered": (lambda: make_pool(n_offered=1), B),
    "none offered": (lambda: make_pool(n_offered=0), B),
    "B is 0": (lambda: make_pool(), 0),
    "B is 1": (lambda: make_pool(), 1),
    "one class": (lambda: make_pool(n_classes=1), B),
    "one class labelled of three": (lambda: one_class_so_far(make_pool()), B),
    "no invalid yet": (lambda: make_pool(invalid=False), B),
    "nothing but invalid": (lambda: nothing_but_invalid(make_pool()), B),
    "fewer labelled than K": (lambda: make_pool(n=65, n_offered=60), B),
    "nothing labelled": (lambda: make_pool(n=60, n_offered=60), B),
    "no model": (lambda: make_pool(model=False), B),
    "no model, after queries": (lambda: after_queries(make_pool(model=False)), B),
    "the authors' rule and cut": (lambda: replace(make_pool(), rule="majority", cut=2), B),
    "class names as features": (lambda: with_class_features(make_pool()), B),
}


def arrays(value: object) -> Iterator[NDArray[Any]]:
    """All arrays of a pool: its own, its model's and learner's, those of earlier queries."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from arrays(part)
    elif hasattr(value, "__dataclass_fields__"):
        for field in fields(value):  # type: ignore[arg-type]
            yield from arrays(getattr(value, field.name))


def assert_fits(chosen: NDArray[Any], pool: Pool, batch_size: int) -> None:
    assert chosen.dtype == np.int64
    assert chosen.shape == (min(batch_size, len(pool.offered)),)
    assert len(np.unique(chosen)) == len(chosen)
    assert np.isin(chosen, pool.offered).all()


class StrategyContract:
    """Inherit it as `class Test…(StrategyContract)` with `names`: each is tested alone and after NEAT's detection."""

    names: Sequence[str] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        hybrids = [HYBRID + name for name in self.names]
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", [*self.names, *hybrids])
        if "hybrid" in metafunc.fixturenames:
            metafunc.parametrize("hybrid", hybrids)
        if "case" in metafunc.fixturenames:
            metafunc.parametrize("case", CASES)

    def test_it_gives_exactly_b_different_offered_samples_and_changes_nothing(self, name: str, case: str) -> None:
        make, batch_size = CASES[case]
        pool = make()
        before = deepcopy(list(arrays(pool)))
        for array in arrays(pool):
            array.setflags(write=False)
        assert_fits(strategy(name)(pool, batch_size, np.random.default_rng(0)), pool, batch_size)
        after = list(arrays(pool))
        assert len(after) == len(before)
        for was, now in zip(before, after, strict=True):
            np.testing.assert_array_equal(was, now)

    def test_it_depends_on_nothing_but_the_pool_the_size_and_the_generator(self, name: str) -> None:
        answers = []
        for seed in (1, 2):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            answers.append(strategy(name)(after_queries(make_pool()), B, np.random.default_rng(3)))
        np.testing.assert_array_equal(answers[0], answers[1])

    def test_it_leaves_torchs_generator_as_it_was(self, name: str) -> None:
        torch.manual_seed(0)
        before = torch.get_rng_state()
        strategy(name)(after_queries(make_pool()), B, np.random.default_rng(3))
        assert torch.equal(before, torch.get_rng_state())

    def test_it_falls_back_on_what_there_is_without_a_learner(self, name: str) -> None:
        for pool in (make_pool(learner=False), make_pool(learner=False, model=False)):
            assert_fits(strategy(name)(pool, B, np.random.default_rng(0)), pool, B)

    def test_a_hybrid_asks_for_candidates_first(self, hybrid: str) -> None:
        pool = make_pool(n=400, n_offered=300)
        held = candidates(pool, B)
        assert B < len(held) < len(pool.offered)
        assert np.isin(strategy(hybrid)(pool, B, np.random.default_rng(0)), held).all()

    def test_all_offered_samples_can_be_chosen(self, name: str) -> None:
        pool = make_pool()
        chosen = strategy(name)(pool, len(pool.offered), np.random.default_rng(0))
        np.testing.assert_array_equal(np.sort(chosen), pool.offered)
