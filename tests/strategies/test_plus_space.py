"""What neat_plus keeps while labels come: it has the numbers of a space, and gives the plans, that were made anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neat_backend.models.grid import to_grid
from neat_backend.ranking.hashing import mixed
from neat_backend.ranking.pool import UNLABELLED, Pool
from neat_backend.ranking.scores import INVALID
from neat_backend.strategies import following, strategy
from neat_backend.strategies.plus_space import COMPONENTS, Space

DIM = COMPONENTS + 32
CLASSES = 3


def samples(n: int, dim: int = DIM) -> np.ndarray:
    """In eight clusters, features of such length that they are cut to components."""
    rng = np.random.default_rng(2)
    return to_grid(rng.normal(size=(8, dim))[np.arange(n) % 8] + 0.7 * rng.normal(size=(n, dim)))


def pool_of(features: np.ndarray, labels: np.ndarray, tasks: np.ndarray) -> Pool:
    """The pool of some tasks, given as rows of all features and labels."""
    codes = labels[tasks]
    return Pool(
        features[tasks], codes, CLASSES, np.flatnonzero(codes == UNLABELLED), keys=mixed(tasks.astype(np.int64), 1)
    )


FEATURES = samples(240)
CODES = [*range(CLASSES), INVALID, UNLABELLED]
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("label"), st.integers(0, 239), st.sampled_from(CODES)),
        st.tuples(st.just("leave"), st.integers(0, 239), st.just(0)),
        st.tuples(st.just("come"), st.integers(0, 239), st.just(0)),
    ),
    max_size=12,
)


@pytest.mark.parametrize("dim", [DIM, COMPONENTS])
@settings(max_examples=15)
@given(steps=st.lists(CHANGES, min_size=1, max_size=5))
def test_following_labels_and_tasks_is_the_same_as_starting_anew(
    dim: int, steps: list[list[tuple[str, int, int]]]
) -> None:
    features = FEATURES if dim == DIM else samples(240, dim)
    labels = np.where(np.arange(240) < 40, np.resize(CODES[:4], 240), UNLABELLED)
    here = np.arange(240) < 200
    space = Space()
    for changes in steps:
        for kind, task, code in changes:
            if kind == "label":
                labels[task] = code
            else:
                here[task] = kind == "come"
        pool = pool_of(features, labels, np.flatnonzero(here))
        np.testing.assert_array_equal(space.follow(pool).features, Space().follow(pool).features)


@settings(max_examples=10)
@given(asked=st.lists(st.tuples(st.integers(0, 9), st.sampled_from(CODES)), min_size=1, max_size=6))
def test_a_plan_that_followed_labels_is_the_one_made_from_nothing(asked: list[tuple[int, int]]) -> None:
    labels = np.where(np.arange(240) < 40, np.resize(CODES[:4], 240), UNLABELLED)
    select = following("neat_plus")
    for place, code in asked:  # the next label is one of the plan's first ten, or takes one back
        pool = pool_of(FEATURES, labels, np.arange(240))
        plan = select(pool, 20, np.random.default_rng(7))
        anew = strategy("neat_plus")(pool, 20, np.random.default_rng(7))
        np.testing.assert_array_equal(plan, anew)
        labels[plan[place] if code != UNLABELLED else place] = code


def test_components_keep_the_cosines_of_what_varies_in_few_directions() -> None:
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(400, 10)) @ np.linalg.qr(rng.normal(size=(DIM, 10)))[0].T  # [400, DIM], ten directions
    flat -= flat.mean(axis=0)
    features = to_grid(flat)
    pool = pool_of(features, np.full(400, UNLABELLED), np.arange(400))
    found = Space().follow(pool).features
    moved = features - features.mean(axis=0)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    assert found.shape == (400, COMPONENTS)
    np.testing.assert_allclose(found @ found.T, moved @ moved.T, atol=2e-3)


def test_equal_samples_have_a_direction_too() -> None:
    pool = pool_of(np.repeat(FEATURES[:1], 30, axis=0), np.full(30, UNLABELLED), np.arange(30))
    found = Space().follow(pool).features
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def test_other_strategies_are_followed_as_they_are() -> None:
    pool = pool_of(FEATURES, np.where(np.arange(240) < 40, 0, UNLABELLED), np.arange(240))
    chosen = following("random")(pool, 20, np.random.default_rng(1))
    np.testing.assert_array_equal(chosen, strategy("random")(pool, 20, np.random.default_rng(1)))
    without = replace(pool, target_precision=0.9)
    chosen = following("neat_plus-soft")(without, 20, np.random.default_rng(1))
    np.testing.assert_array_equal(chosen, strategy("neat_plus-soft")(without, 20, np.random.default_rng(1)))
