from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from neat_backend.ranking.pool import Past, Pool
from neat_backend.ranking.scores import INVALID
from neat_backend.strategies import mqnet
from neat_backend.strategies.mqnet import (
    learnt_from_last_query,
    least_confidence,
    masked_losses,
    meta_inputs,
    purity,
    transformed,
)
from neat_backend.testing.pools import LinearLearner, make_pool


def after_a_query(pool: Pool, queried: int = 30) -> Pool:
    """The same pool, the last so many labelled samples the answers to one query."""
    indices = np.random.default_rng(1).permutation(pool.labelled)[:queried]
    return replace(pool, past=(Past(indices, pool.labels[indices]),))


def test_least_confidence_is_what_the_likeliest_class_lacks() -> None:
    np.testing.assert_allclose(least_confidence(np.array([[0.7, 0.2, 0.1], [0.25, 0.5, 0.25]])), [0.3, 0.5])


def test_purity_is_the_largest_cosine_to_a_known_sample() -> None:
    known = np.array([[1.0, 0.0], [0.6, 0.8]], dtype=np.float32)
    queries = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(purity(queries, known), [0.8, 1.0, -0.6], atol=1e-6)
    np.testing.assert_array_equal(purity(queries, known[:0]), [0, 0, 0])


def test_scores_are_standardised_with_divisor_m_and_made_positive() -> None:
    # 1, 2, 3: mean 2, deviation √(2/3)
    step = math.sqrt(1.5)
    np.testing.assert_allclose(transformed(np.array([1.0, 2.0, 3.0])), [math.exp(-step), 1.0, math.exp(step)])
    np.testing.assert_array_equal(transformed(np.full(4, 0.3)), np.ones(4))
    assert transformed(np.zeros(0)).shape == (0,)


def test_targets_are_the_cross_entropy_and_0_for_invalid_ones() -> None:
    probabilities = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    expected = [math.log(2), math.log(10), 0.0]
    np.testing.assert_allclose(masked_losses(probabilities, np.array([1, 1, INVALID])), expected)


def test_the_first_query_takes_the_largest_sums() -> None:
    pool = make_pool()
    logits = pool.model.logits(pool.offered).astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    doubt = 1 - p.max(axis=1)
    near = np.array([max(float(a @ b) for b in pool.features[pool.known]) for a in pool.features[pool.offered]])
    total = sum(np.exp((s - s.mean()) / s.std()) for s in (doubt, near))
    chosen = mqnet.select(pool, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(chosen, pool.offered[np.argsort(-total)[:10]])


def test_only_known_samples_make_a_neighbourhood_pure() -> None:
    pool = make_pool()
    other = replace(pool, labels=np.where(pool.labels == INVALID, -3, pool.labels))
    a, b = (mqnet.select(p, 20, np.random.default_rng(0)) for p in (pool, other))
    np.testing.assert_array_equal(a, b)


def test_the_last_query_is_scored_as_before_its_answers() -> None:
    """The classifier is trained again without them, and they are no known neighbours of one another."""
    pool = after_a_query(make_pool())
    fitted = []

    class Watched(LinearLearner):
        def fit(self, indices, targets, n_outputs, rng, **more):
            fitted.append((indices, targets, n_outputs))
            return super().fit(indices, targets, n_outputs, rng, **more)

    learnt_from_last_query(replace(pool, learner=Watched(pool.features)), np.random.default_rng(0))
    ((indices, targets, n_outputs),) = fitted
    np.testing.assert_array_equal(indices, np.setdiff1d(pool.known, pool.past[-1].indices))
    np.testing.assert_array_equal(targets, pool.labels[indices])
    assert n_outputs == pool.n_classes


def test_what_the_network_learnt_prefers_known_and_informative_answers() -> None:
    """Ranked by the network, the last query's own samples have the larger masked losses in front."""
    pool = after_a_query(make_pool(n=600, n_offered=100, seed=3), queried=300)
    net = learnt_from_last_query(pool, np.random.default_rng(0))
    last = pool.past[-1]
    known = np.setdiff1d(pool.known, last.indices)
    model = pool.learner.fit(known, pool.labels[known], pool.n_classes, np.random.default_rng(0))
    then = replace(pool, model=model)
    order = np.argsort(-net.scores(meta_inputs(then, last.indices, known)))
    targets = masked_losses(then.probabilities(last.indices), last.answers)[order]
    assert targets[:100].mean() > 1.5 * targets[-100:].mean()


def test_the_choice_never_passes_over_one_that_is_better_in_both() -> None:
    pool = after_a_query(make_pool(n=300, n_offered=150))
    chosen = mqnet.select(pool, 40, np.random.default_rng(0))
    inputs = dict(zip(pool.offered, meta_inputs(pool, pool.offered, pool.known), strict=True))
    left = [inputs[i] for i in pool.offered if i not in set(chosen)]
    for i in chosen:
        assert not any((other > inputs[i]).all() for other in left)


@pytest.mark.parametrize("queried", [0, 1])
def test_a_last_query_without_pairs_teaches_nothing(queried: int) -> None:
    pool = after_a_query(make_pool(), queried)
    assert learnt_from_last_query(pool, np.random.default_rng(0)) is None
    np.testing.assert_array_equal(
        mqnet.select(pool, 9, np.random.default_rng(0)),
        mqnet.select(replace(pool, past=()), 9, np.random.default_rng(0)),
    )


def test_without_a_classifier_purity_decides_and_without_known_samples_too_chance() -> None:
    pool = make_pool(model=False)
    near = purity(pool.features[pool.offered], pool.features[pool.known])
    chosen = mqnet.select(pool, 10, np.random.default_rng(0))
    np.testing.assert_array_equal(chosen, pool.offered[np.argsort(-near)[:10]])
    bare = replace(pool, labels=np.full(len(pool.labels), -3))
    first, second = (mqnet.select(bare, 10, np.random.default_rng(seed)) for seed in (0, 1))
    assert set(first) != set(second)
