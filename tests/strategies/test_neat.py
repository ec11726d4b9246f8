"""Algorithm 1 by hand, and in reference mode against the authors' procedure written down from its formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neat_backend.models.grid import to_grid
from neat_backend.ranking.pool import UNLABELLED, Pool
from neat_backend.ranking.scores import INVALID
from neat_backend.strategies import neat
from neat_backend.testing.pools import FixedModel, fixed_model


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def on_a_line(angles, labels, probabilities, **others):
    """A pool of unit vectors at these angles in degrees: neighbours are the samples at the nearest angles."""
    radians = np.radians(angles)
    labels = np.array(labels)
    features = to_grid(np.stack([np.cos(radians), np.sin(radians)], axis=1))
    offered = np.flatnonzero(labels == UNLABELLED)
    model = None if probabilities is None else fixed_model(probabilities)
    return Pool(features, labels, 2, offered, model, **others)


# Labelled: class 0 at 0° and 1°, class 1 at 4° and 5°, invalid at 30°, 31°; K = 2. Offered, with votes and P:
#   6: 0.4° (0, 0), P = (.9, .1): I = log(e² + 1) - 1.8 = 0.3269
#   7: 4.6° (1, 1), P = (.9, .1): I = log(e² + 1) - 0.2 = 1.9269
#   8: 2.4° (0, 1), P = (.2, .8): I = log(2e) - 1      = 0.6931
#   9: 17°  (1, invalid), not a candidate
#  10: 30.4° (invalid, invalid), not a candidate
ANGLES = [0, 1, 4, 5, 30, 31, 0.4, 4.6, 2.4, 17.8, 30.4]
LABELS = [0, 0, 1, 1, INVALID, INVALID, *[UNLABELLED] * 5]
PROBABILITIES = [[0.5, 0.5]] * 6 + [[0.9, 0.1], [0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.5, 0.5]]


def test_a_query_worked_by_hand():
    pool = on_a_line(ANGLES, LABELS, PROBABILITIES, k=2)
    assert neat.select(pool, 2, rng()).tolist() == [7, 8]
    assert neat.select(pool, 3, rng()).tolist() == [7, 8, 6]


def test_too_few_candidates_are_followed_by_those_with_most_known_neighbours():
    pool = on_a_line([*ANGLES[:-2], 17.2, 30.4], LABELS, PROBABILITIES, k=2)
    # At 17.2° the two nearest are 5° (12.2 away) and 30° (12.8 away).
    assert neat.select(pool, 9, rng()).tolist() == [7, 8, 6, 9, 10]


def test_without_a_model_agreement_of_the_neighbours_alone_counts():
    # Uniform P: (2, 0) gives log(e² + 1) - 1 = 1.1269, (1, 1) gives log(2e) - 1 = 0.6931. 6 and 7 are a tie.
    pool = on_a_line(ANGLES, LABELS, None, k=2)
    assert neat.select(pool, 3, rng()).tolist() == [6, 7, 8]


def test_nothing_is_random():
    pool = on_a_line(ANGLES, LABELS, PROBABILITIES, k=2)
    np.testing.assert_array_equal(neat.select(pool, 4, rng()), neat.select(pool, 4, np.random.default_rng(9)))


def authors_choice(pool, batch_size):
    """The authors' procedure, from its description: one sample at a time, in the pool's order.

    Cosine distances to all labelled samples; the K smallest. A sample stays when more of them are known than
    invalid. Stable sort by known neighbours, largest first; the first 2B stay. Votes; the cross-entropy of the
    softmaxed votes against the classifier's probabilities; stable sort by it, largest first; the first B.
    """
    labelled = [i for i in range(len(pool.labels)) if pool.labels[i] != UNLABELLED]
    kept = []
    for i in pool.offered.tolist():
        x = pool.features[i].astype(float)
        distances = [(-np.float32(math.fsum(x * pool.features[j].astype(float))), j) for j in labelled]
        answers = [int(pool.labels[j]) for _, j in sorted(distances)[: pool.k]]
        known, unknown = sum(a >= 0 for a in answers), sum(a < 0 for a in answers)
        if unknown < known:
            kept.append([i, known, answers])
    kept = sorted(kept, key=lambda one: one[1], reverse=True)[: 2 * batch_size]
    scored = []
    for i, _, answers in kept:
        counts = [float(sum(a == c for a in answers)) for c in range(pool.n_classes)]
        total = math.fsum(sorted(math.exp(v) for v in counts))
        logits = pool.model.logits(np.array([i]))[0].astype(float)
        exponentials = [math.exp(z - max(logits)) for z in logits]
        terms = [
            -e / math.fsum(exponentials) * (v - math.log(total)) for e, v in zip(exponentials, counts, strict=True)
        ]
        scored.append((i, round(math.fsum(terms), 9)))
    return [i for i, _ in sorted(scored, key=lambda one: one[1], reverse=True)[:batch_size]]


@st.composite
def pools(draw):
    """Pools full of ties: coarse features, coarse logits (or all equal), few labels."""
    n, n_classes = draw(st.integers(2, 50)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    coarse = draw(st.booleans())
    points = generator.normal(size=(n, 3))
    features = to_grid(np.rint(points * 2) + 0.5 if coarse else points)
    share = draw(st.sampled_from([0.3, 0.7]))
    invalid = draw(st.sampled_from([0.0, 0.3, 0.9]))
    answers = np.where(generator.random(n) < invalid, INVALID, generator.integers(0, n_classes, n))
    labels = np.where(generator.random(n) < share, answers, UNLABELLED)
    labels[0], labels[1] = 0, UNLABELLED
    scale = draw(st.sampled_from([0, 1, 5]))
    logits = np.rint(scale * generator.normal(size=(n, n_classes))).astype(np.float32)
    k = draw(st.integers(1, int(np.count_nonzero(labels != UNLABELLED))))
    offered = np.flatnonzero(labels == UNLABELLED)
    model = FixedModel(logits, features)
    return Pool(features, labels, n_classes, offered, model, k=min(k, 10), rule="majority", cut=2)


@settings(max_examples=400, deadline=None)
@given(pools(), st.integers(1, 20))
def test_in_reference_mode_the_choice_is_the_authors(pool, batch_size):
    chosen, expected = neat.select(pool, batch_size, rng()).tolist(), authors_choice(pool, batch_size)
    assert len(chosen) == min(batch_size, len(pool.offered))
    assert chosen[: len(expected)] == expected  # with fewer candidates than B theirs ends there


def test_in_reference_mode_the_cut_can_shut_out_the_largest_inconsistency():
    # K = 3. 6 and 7 have three neighbours of class 0: log(e³ + 1) - 2.7 = 0.3486 and - 2.4 = 0.6486.
    # 8 has two and an invalid one: log(e² + 1) - 0 = 2.1269.
    angles = [0, 1, 2, 20, 21, 22, 0.5, 1.5, 20.6]
    labels = [0, 0, 0, 0, 0, INVALID, *[UNLABELLED] * 3]
    probabilities = [[0.5, 0.5]] * 6 + [[0.9, 0.1], [0.8, 0.2], [0.0, 1.0]]
    pool = on_a_line(angles, labels, probabilities, k=3, rule="majority")
    assert neat.select(pool, 1, rng()).tolist() == [8]
    pool = replace(pool, cut=2)
    assert neat.select(pool, 1, rng()).tolist() == [7] == authors_choice(pool, 1)


@pytest.mark.parametrize("rule", ["all", "majority"])
def test_the_batch_goes_to_the_largest_inconsistency_of_all_candidates_without_a_cut(rule):
    pool = on_a_line(ANGLES, LABELS, PROBABILITIES, k=2, rule=rule)
    assert neat.select(pool, 1, rng()).tolist() == [7]
