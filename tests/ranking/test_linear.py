"""The linear head: a regularised logistic regression, as scikit-learn fits it, and quick."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from neat_backend.ranking import linear
from neat_backend.ranking.linear import HEAD_PENALTY, NAME_SCALE, PENALTY, fit_head, fit_weights, name_head
from neat_backend.ranking.linear_head import LinearHead
from neat_backend.ranking.scores import INVALID
from tests.ranking.test_neighbors import grid

CLASSES = ("cat", "dog", "owl")


def labelled(counts: dict[int, int], dim: int = 16, seed: int = 0, spread: float = 0.5) -> tuple[Any, Any]:
    """Features around a centre for each code, and the codes, in no order."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.repeat(list(counts), list(counts.values())))
    centres = np.abs(rng.normal(size=(10, dim)))
    return grid(centres[codes] + spread * rng.normal(size=(len(codes), dim))), codes


def by_sklearn(features: NDArray[Any], targets: NDArray[Any], weights: NDArray[Any], penalty: float) -> Any:
    """The minimum of the same loss: scikit-learn multiplies the samples' losses by C and sums, we take their mean.

    Of two outputs it fits the difference alone, whose penalty is half as large as that of both.
    """
    outputs = int(targets.max()) + 1
    c = (2 if outputs == 2 else 1) / (penalty * weights.sum())
    return LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(features, targets, sample_weight=weights)


def fitted(features: NDArray[Any], codes: NDArray[Any]) -> LinearHead:
    head = fit_head(features, codes, CLASSES)
    assert head is not None
    return head


@pytest.mark.parametrize(
    "counts",
    [{0: 30, 1: 30, 2: 30}, {0: 50, 1: 10, 2: 3}, {0: 40, 1: 20, INVALID: 25}, {0: 20, 2: 5}, {1: 12, INVALID: 30}],
)
@pytest.mark.parametrize(("tolerance", "off"), [(1e-6, 1e-3), (linear.HEAD_TOLERANCE, 0.1)])
def test_it_is_scikit_learns_logistic_regression_with_these_class_weights(
    counts: dict[int, int], tolerance: float, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "HEAD_TOLERANCE", tolerance)
    features, codes = labelled(counts)
    chosen = sorted(code for code in counts if code >= 0)
    targets = np.array([len(chosen) if code == INVALID else chosen.index(code) for code in codes])
    n_known = sum(count for code, count in counts.items() if code >= 0)
    weight = {place: n_known / len(chosen) / counts[code] for place, code in enumerate(chosen)} | {len(chosen): 1.0}
    # Standardised as one: by the mean, and by the root of the mean squared distance from it.
    centred = features - features.mean(axis=0)
    scaled = centred / np.sqrt((centred**2).sum() / (len(features) - 1))
    expected = by_sklearn(scaled, targets, np.array([weight[t] for t in targets]), HEAD_PENALTY).predict_proba(scaled)

    probabilities, chance = fitted(features, codes).predict(features)
    known = expected[:, : len(chosen)]
    np.testing.assert_allclose(chance, known.sum(axis=1), atol=off)
    np.testing.assert_allclose(probabilities[:, chosen], known / known.sum(axis=1, keepdims=True), atol=off)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from([0, 1, 2, INVALID]), st.integers(1, 12), min_size=2), st.integers(0, 2**32 - 1))
def test_probabilities_are_of_the_classes_that_have_labels_and_sum_to_one(counts: dict[int, int], seed: int) -> None:
    features, codes = labelled(counts, seed=seed)
    probabilities, chance = fitted(features, codes).predict(features)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert (probabilities >= 0).all()
    assert not probabilities[:, [c for c in range(3) if c not in counts]].any()
    assert ((chance >= 0) & (chance <= 1)).all()
    if INVALID not in counts:
        assert (chance == 1).all()


@pytest.mark.parametrize("counts", [{}, {0: 5}, {INVALID: 5}])
def test_with_fewer_than_two_outputs_there_is_no_head(counts: dict[int, int]) -> None:
    if counts:
        features, codes = labelled(counts)
    else:
        features, codes = np.zeros((0, 16), np.float32), np.zeros(0, np.int32)
    assert fit_head(features, codes, CLASSES) is None


def test_two_labels_are_enough() -> None:
    features, codes = labelled({0: 1, 1: 1})
    probabilities, _ = fitted(features, codes).predict(features)
    assert probabilities.argmax(axis=1).tolist() == codes.tolist()


def test_labels_that_are_all_on_one_image_tell_nothing_and_break_nothing() -> None:
    features = np.repeat(labelled({0: 1})[0], 6, axis=0)
    probabilities, chance = fitted(features, np.array([0, 1, 0, 1, INVALID, INVALID])).predict(features)
    np.testing.assert_allclose(probabilities[:, :2], 0.5, atol=0.01)
    np.testing.assert_allclose(chance, 4 / 6, atol=0.01)


def test_classes_weigh_alike_and_invalid_labels_as_many_as_they_are() -> None:
    rng = np.random.default_rng(0)
    features = grid(1 + 0.3 * rng.normal(size=(400, 16)))  # all of one kind: there is nothing to tell them apart by
    codes = np.repeat([0, 1, INVALID], [180, 20, 200])
    probabilities, chance = fitted(features, codes).predict(features)
    assert probabilities[:, :2].mean(axis=0).tolist() == pytest.approx([0.5, 0.5], abs=0.1)  # not .9 and .1
    assert chance.mean() == pytest.approx(0.5, abs=0.05)


def test_a_fit_is_the_same_each_time() -> None:
    features, codes = labelled({0: 400, 1: 300, 2: 600, INVALID: 300})
    one, two = fitted(features, codes), fitted(features, codes)
    for name in ("weights", "biases", "columns"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


@pytest.mark.parametrize("n", [90, 2 * 640, 2 * 640 + 1, 4000])
def test_few_samples_and_many_agree_with_a_tight_fit(n: int) -> None:
    """Of more than 1,280, a part is fitted first."""
    features, targets = labelled({0: n // 3, 1: n // 3, 2: n - 2 * (n // 3)}, spread=0.8)
    rough = features @ fit_weights(features, targets, 3)[0] + fit_weights(features, targets, 3)[1]
    machine = by_sklearn(features, targets, np.ones(n), PENALTY)
    exponentials = np.exp(rough - rough.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        exponentials / exponentials.sum(axis=1, keepdims=True), machine.predict_proba(features), atol=0.02
    )


def test_the_loss_is_no_larger_than_at_scikit_learns_minimum() -> None:
    features, targets = labelled({0: 1500, 1: 600, 2: 300}, spread=0.8)
    importance = np.random.default_rng(1).uniform(0.5, 2, len(targets))
    share = importance / importance.sum()

    def loss(weights: NDArray[Any], biases: NDArray[Any]) -> float:
        logits = features.astype(np.float64) @ weights + biases
        own = logits[np.arange(len(targets)), targets]
        entropy = np.log(np.exp(logits).sum(axis=1)) - own
        return float(share @ entropy + PENALTY / 2 * (weights**2).sum())

    best = by_sklearn(features, targets, importance, PENALTY)
    ours = loss(*fit_weights(features, targets, 3, sample_weights=importance))
    assert ours == pytest.approx(loss(best.coef_.T, best.intercept_), abs=1e-4)


def test_nothing_to_learn_from_is_said() -> None:
    with pytest.raises(ValueError, match="no labelled samples"):
        fit_weights(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), 2)


def test_the_head_of_names_takes_a_task_for_the_class_that_its_feature_is_likest() -> None:
    # Cosines of 0.2 and 0.17 with the classes' names and 0.18 with "thing": logits 20, 17 and 18.
    names = np.eye(3, dtype=np.float32)
    task = np.array([[0.20, 0.17, 0.18]], np.float32)
    probabilities, chance = name_head(names, ("cat", "dog")).predict(task)
    assert NAME_SCALE == 100
    assert probabilities[0].tolist() == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(3))], rel=1e-4)
    total = np.exp([20, 17, 18])
    assert chance[0] == pytest.approx(total[:2].sum() / total.sum(), rel=1e-4)


def test_a_task_that_is_surely_none_of_the_classes_still_has_one_that_it_is_likest_to() -> None:
    probabilities, chance = name_head(np.eye(3, dtype=np.float32), ("cat", "dog")).of_logits(
        np.array([[-2000.0, -2001.0, 500.0]], np.float32)
    )
    assert chance[0] == 0
    assert probabilities[0].tolist() == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], rel=1e-4)
