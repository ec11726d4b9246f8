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
from neat_backend.strategies.plus_space import COMPONENTS, Nearest, Space

DIM = COMPONENTS + 32
CLASSES = 3


def on_a_circle(degrees: list[float]) -> np.ndarray:
    """Features at these angles: the cosine of two is the cosine of the angle between them."""
    angles = np.radians(degrees)
    return to_grid(np.stack([np.cos(angles), np.sin(angles)], axis=1)).astype(np.float64)


def means(degrees: list[float], among: list[int], k: int) -> list[float]:
    nearest = Nearest(len(degrees), k)
    keys = np.arange(len(degrees), dtype=np.uint64)
    nearest.follow(on_a_circle(degrees), keys, np.array(among, np.int64), np.arange(len(degrees)))
    return nearest.means().tolist()


def test_the_mean_of_the_nearest_leaves_the_sample_itself_out() -> None:
    # Sample 0 has only sample 1 (60° away), and the other way round; sample 2 is 90° and 30° away from the two.
    assert means([0, 60, 90], [0, 1], k=2) == pytest.approx([0.5, 0.5, (0 + np.sqrt(3) / 2) / 2], abs=1e-6)


def test_with_k_1_it_is_the_nearest_alone() -> None:
    assert means([0, 60, 90], [0, 1], k=1)[2] == pytest.approx(np.sqrt(3) / 2, abs=1e-6)


def test_a_sample_with_nothing_to_compare_with_gets_the_least_cosine() -> None:
    assert means([0, 60], [0], k=5)[0] == -1
    assert means([0, 60], [], k=5) == [-1, -1]


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
        anew = Space()
        np.testing.assert_array_equal(space.follow(pool).features, anew.follow(pool).features)
        np.testing.assert_array_equal(space.nearness(), anew.nearness())


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
    chosen = following("neat_plus-near")(without, 20, np.random.default_rng(1))
    np.testing.assert_array_equal(chosen, strategy("neat_plus-near")(without, 20, np.random.default_rng(1)))
