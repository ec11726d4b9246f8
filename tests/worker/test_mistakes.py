"""How likely labels are mistakes: made-up features whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from neat_backend.ranking.pool import UNLABELLED
from neat_backend.ranking.scores import INVALID
from neat_backend.worker.steps import mistakes

CLASSES = 3
K = 10


def sample(n: int, noise: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Unit features around four centres; the last of them is invalid."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, CLASSES + 1, n)
    features = np.eye(16)[codes] + rng.normal(0, noise, (n, 16)) * rng.uniform(0, 1, (n, 1))  # easy and hard ones
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features.astype(np.float32), np.where(codes == CLASSES, INVALID, codes)


def near(features: NDArray[np.float32], codes: NDArray[np.int64]) -> NDArray[np.int64]:
    similar = features @ features.T
    np.fill_diagonal(similar, -2)
    return codes[np.argsort(-similar, axis=1)[:, :K]]


def chances(features: NDArray[np.float32], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    return mistakes.chances(features, codes, near(features, codes), CLASSES, np.random.default_rng(0))


@pytest.mark.parametrize("seed", range(3))
def test_changed_labels_are_listed_and_hardly_any_other(seed: int) -> None:
    features, codes = sample(300, 0.1, seed)
    changed = np.random.default_rng(seed).choice(300, 15, replace=False)
    given = codes.copy()
    for row in changed:  # to a class, from one to "none of these", and back
        given[row] = {INVALID: 0, 0: INVALID}.get(int(codes[row]), 0)
    found = mistakes.listed(chances(features, given))
    assert len(np.intersect1d(found, changed)) >= 12
    assert len(np.setdiff1d(found, changed)) <= 3


@pytest.mark.parametrize("noise", [0.1, 0.25, 0.5, 2.0])
def test_where_nothing_is_wrong_the_list_is_empty_however_hard_the_images_are(noise: float) -> None:
    for seed in range(3):
        features, codes = sample(300, noise, seed)
        assert not len(mistakes.listed(chances(features, codes)))


def test_the_likeliest_mistake_comes_first_and_no_more_than_expected() -> None:
    assert mistakes.listed(np.array([0.5, 0.0, 0.9, 0.45, 0.1, 0.6])).tolist() == [2, 5, 0]  # 2.55 expected
    assert mistakes.listed(np.array([0.3] * 10)).tolist() == []  # three are expected, but which?


@pytest.mark.parametrize(("n", "reason"), [(30, "few labels"), (300, "one answer")])
def test_without_enough_to_learn_from_nothing_is_said(n: int, reason: str) -> None:
    features, codes = sample(n, 0.25)
    if reason == "one answer":
        codes[:] = 1
    assert not chances(features, codes).any()


def test_an_answer_that_few_labels_give_is_left_alone() -> None:
    features, codes = sample(300, 0.25)
    rare = np.flatnonzero(codes == 2)
    codes[rare[4:]] = 1
    found = chances(features, codes)
    assert not found[rare[:4]].any()


def test_fewer_neighbours_than_k_are_taken_as_they_are() -> None:
    features, codes = sample(300, 0.1)
    changed = np.random.default_rng(0).choice(300, 12, replace=False)
    codes[changed] = (codes[changed] + 1) % CLASSES
    nearest = near(features, codes)
    nearest[:, 5:] = UNLABELLED
    found = mistakes.listed(mistakes.chances(features, codes, nearest, CLASSES, np.random.default_rng(0)))
    assert len(np.intersect1d(found, changed)) >= 9
