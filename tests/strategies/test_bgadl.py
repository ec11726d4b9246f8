from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from neat_backend.ranking.scores import INVALID
from neat_backend.strategies import bgadl, vae_acgan
from neat_backend.strategies.bgadl import bald
from neat_backend.testing.pools import make_pool


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_acgan, "LEAST_STEPS", 5)
    monkeypatch.setattr(vae_acgan, "MOST_STEPS", 5)


def test_two_passes_that_agree_say_nothing_and_two_that_contradict_say_one_bit() -> None:
    sure = 1000.0
    passes = np.array([[[sure, 0], [0, 0], [sure, 0]], [[sure, 0], [0, 0], [0, sure]]])
    # agree and sure; agree that nothing is known; each sure of another class: H(½, ½) - 0
    np.testing.assert_allclose(bald(passes), [0, 0, math.log(2)], atol=1e-12)


def test_mutual_information_of_two_passes_by_hand() -> None:
    passes = np.log(np.array([[[0.8, 0.2]], [[0.4, 0.6]]]))

    def entropy(*p: float) -> float:
        return -sum(q * math.log(q) for q in p)

    np.testing.assert_allclose(bald(passes), [entropy(0.6, 0.4) - (entropy(0.8, 0.2) + entropy(0.4, 0.6)) / 2])


@given(arrays(np.float32, (4, 6, 3), elements=st.floats(-50, 50, width=32)))
def test_mutual_information_lies_between_0_and_the_classes_and_passes_allow(passes: np.ndarray) -> None:
    values = bald(passes)
    assert (values >= 0).all()
    assert (values <= math.log(3) + 1e-9).all()


def test_the_samples_on_which_the_passes_disagree_most_come_first() -> None:
    class Table:
        n_outputs = 2

        def dropout_logits(self, indices: np.ndarray, passes: int, rng: np.random.Generator) -> np.ndarray:
            swing = indices[None, :, None] * np.array([1.0, -1.0])  # [1, m, 2], larger for a larger index
            signs = np.where(np.arange(passes) % 2, 1.0, -1.0)[:, None, None]
            return (0.05 * signs * swing).astype(np.float32)

    pool = replace(make_pool(), model=Table())
    chosen = bgadl.select(pool, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(chosen, pool.offered[::-1][:10])


def test_a_pool_scored_in_parts_is_scored_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class Still:
        n_outputs = 3

        def dropout_logits(self, indices: np.ndarray, passes: int, rng: np.random.Generator) -> np.ndarray:
            assert len(indices) <= bgadl.CHUNK
            return np.stack([np.outer(np.cos(indices), [p, 1.0, 0]) for p in range(passes)]).astype(np.float32)

    pool = replace(make_pool(), model=Still())
    whole = bgadl.select(pool, 60, np.random.default_rng(0))
    monkeypatch.setattr(bgadl, "CHUNK", 7)
    np.testing.assert_array_equal(whole, bgadl.select(pool, 60, np.random.default_rng(0)))


@pytest.mark.usefixtures("few_steps")
def test_each_newly_answered_known_sample_makes_one_of_its_class() -> None:
    pool = make_pool()
    chosen = pool.labelled[::3]
    assert (pool.labels[chosen] == INVALID).any()
    made = bgadl.generate(pool, chosen, np.random.default_rng(0))
    known = chosen[pool.labels[chosen] >= 0]
    np.testing.assert_array_equal(made.targets, pool.labels[known])
    assert made.inputs.shape == (len(known), 16)
    assert made.inputs.dtype == np.float32
    assert made.targets.dtype == np.int64
    assert np.isfinite(made.inputs).all()
    pool.learner.fit(pool.known, pool.labels[pool.known], 3, np.random.default_rng(0), generated=made)


@pytest.mark.usefixtures("few_steps")
def test_the_same_generator_state_makes_the_same_samples() -> None:
    pool = make_pool()
    first, second, other = (bgadl.generate(pool, pool.known[:9], np.random.default_rng(s)).inputs for s in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-3


@pytest.mark.parametrize("chosen", [np.zeros(0, dtype=np.int64), None], ids=["none", "only invalid"])
def test_nothing_known_among_the_chosen_makes_nothing(chosen: np.ndarray | None) -> None:
    pool = make_pool()
    made = bgadl.generate(pool, pool.invalid if chosen is None else chosen, np.random.default_rng(0))
    assert made.inputs.shape == (0, 16)
    assert made.targets.shape == (0,)
    assert made.inputs.dtype == np.float32
    assert made.targets.dtype == np.int64


def test_without_a_learner_nothing_is_made() -> None:
    pool = make_pool(learner=False)
    assert len(bgadl.generate(pool, pool.known, np.random.default_rng(0)).targets) == 0


def test_without_a_classifier_the_choice_is_at_random() -> None:
    pool = make_pool(model=False)
    first, second = (bgadl.select(pool, 10, np.random.default_rng(seed)) for seed in (0, 1))
    assert set(first) != set(second)
