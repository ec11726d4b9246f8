"""neat_plus: a sample of the known part of the pool, and a batch that covers it where the classifier is unsure.

One query:

1.  p(x), how likely x is of a known class (`plus_detector`).
2.  Candidates are drawn with probability proportional to p, without replacement (Efraimidis and Spirakis, 2006), p
    being weighted so that all predicted classes have the same sum of it (`evened`): nothing is cut off, so no class is
    lost, and those that are hard to detect are not drawn less.
3.  u(x) = 1 - (P₁ - P₂) + 0.05, P₁ and P₂ being the classifier's two largest probabilities (margin sampling, Scheffer
    et al. 2001; the 0.05 leaves sure samples a little to say). Without a classifier u is the same for all.
4.  Greedy facility location (Wei, Iyer and Bilmes, ICML 2015): each choice c has the largest

        p(c)^γ u(c) / (1 + n(c))² · Σ_x w(x) u(x) · max(0, s(x, c) - covered(x))

    w(x) is how much of the known part x stands for: the weighted p over its chance to be drawn. covered(x) is the
    largest similarity s of x to a labelled known sample or to an earlier choice. n(c) is the number of labels that c's
    predicted class has, earlier choices of this batch counting p each: classes stay in balance.
5.  γ ≥ 0 is the smallest whose batch has a mean p of the precision wanted: that is `pool.target_precision`, plus
    twice what the queries so far were below it, or minus twice what they were above. More purity than wanted would
    cost variety and lose the classes that are hard to tell from unknown ones.
6.  A class without a label looks like what is unknown. While there are any, their share of the batch is drawn at
    random.

`neat_plus-PART-…` is the same without those of PARTS. `docs/neat-plus.md` has measurements, `benchmarks/neat-plus.md`
those of each part. `pool.k`, `pool.rule` and `pool.cut` belong to NEAT and are not used; neither is the learner.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import SettingsError
from neat_backend.ranking.hashing import mixed
from neat_backend.ranking.pool import Indices, Past, Pool, Select
from neat_backend.strategies import plus_detector
from neat_backend.strategies.plus_space import Space

Floats = NDArray[np.float64]

LEAST_UNCERTAIN = 0.05
LEAST_KNOWN = 1e-9
MOST_WANTED = 0.95  # mean p of a batch
MOST_PURITY = 8.0  # γ
FEEDBACK = 2.0  # how much of a lack of precision the next query makes up for
HALVINGS = 5  # of the range of γ
MOST_EVENED = 10.0  # the weight of a class that the pool seems to have little of
HEAD = 1000  # candidates, or HEAD_BATCHES · B if that is more
HEAD_BATCHES = 5
PARTS = (*plus_detector.PARTS, "uncertainty", "balance", "target")  # that can be left out


def select(pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
    """B offered samples in the order of the greedy choice; see the module."""
    return Following()(pool, batch_size, rng)


class Following:
    """`select` for one pool again and again while it is labelled: keeps its space, and gives the same answers.

    Samples are told apart by the pool's keys: a sample with other features needs another key, or a new `Following`.
    """

    def __init__(self, parts: frozenset[str] = frozenset(PARTS)) -> None:
        self._parts, self._space = parts, Space()

    def __call__(self, pool: Pool, batch_size: int, rng: np.random.Generator) -> Indices:
        """B offered samples in the order of the greedy choice; see the module."""
        return _select(pool, batch_size, rng, self._parts, self._space)


def without(parts: Sequence[str]) -> Select:
    """The same with some of PARTS left out. Raises SettingsError for what is none of them.

    soft: see plus_detector.probability_known. uncertainty: u = 1. balance: n = 0, and candidates drawn by p as
    it is. target: γ = 0.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise SettingsError(f"neat_plus has no part {unknown[0]!r}: {', '.join(PARTS)}")
    kept = frozenset(PARTS) - set(parts)
    return lambda pool, batch_size, rng: Following(kept)(pool, batch_size, rng)


def _select(pool: Pool, batch_size: int, rng: np.random.Generator, parts: frozenset[str], space: Space) -> Indices:
    """Before any known sample is labelled there is nothing to tell known from unknown by: then those most like a class
    name come first, or, where the encoder reads no text, a random sample is covered evenly."""
    size = min(batch_size, len(pool.offered))
    if not size:
        return pool.offered[:0].copy()
    p: Floats = np.ones(len(pool.labels))
    unseen = 0
    if len(pool.known):
        pool = space.follow(pool)
        p = np.maximum(plus_detector.probability_known(pool, parts), LEAST_KNOWN)
        unseen = pool.n_classes - len(np.unique(pool.labels[pool.known]))
    elif pool.class_features is not None:
        likeness = (pool.features[pool.offered] @ pool.class_features.T).max(axis=1)
        return pool.offered[np.argsort(-likeness, kind="stable")[:size]]
    else:
        pool = space.follow(pool)
    waits = -np.log(uniform(pool.sample_keys, int(rng.integers(2**62))))  # exponential, one for each sample
    at_random = pool.offered[np.argsort(waits[pool.offered])[: round(size * unseen / pool.n_classes)]]
    offered = np.setdiff1d(pool.offered, at_random)
    size -= len(at_random)
    probabilities = pool.probabilities(offered)
    even = evened(p[offered], probabilities) if "balance" in parts else p[offered]
    places, share = drawn(even, max(HEAD, HEAD_BATCHES * size), waits[offered])
    head, probabilities = offered[places], probabilities[places]
    unsure = uncertainty(probabilities) if "uncertainty" in parts else np.ones(len(head))
    counts = np.bincount(pool.labels[pool.known], minlength=pool.n_classes).astype(np.float64)
    classes = probabilities.argmax(axis=1) if "balance" in parts else None
    similarities = pool.features[head] @ pool.features[head].T  # [m, m]
    np.fill_diagonal(similarities, 1)
    covered = (pool.features[head] @ pool.features[pool.known].T).max(axis=1, initial=-1)
    mass = (share * unsure).astype(np.float32)
    candidates = Candidates(similarities, mass, covered, p[head], classes, counts)

    def batch(purity: float) -> Indices:
        return candidates.cover(p[head] ** purity * unsure, size)

    wanted = wanted_precision(pool.past, pool.target_precision) if "target" in parts else 0.0
    return mixed_in(head[steered(batch, p[head], wanted)], at_random, len(pool.labelled))


def mixed_in(chosen: Indices, at_random: Indices, labelled: int) -> Indices:
    """Both in one order, each in its own, evenly: of so many first labels, as many are random as there is a share.

    labelled: labels so far. A plan that is made again after each label has a random sample as often at its first place.
    """
    size = len(chosen) + len(at_random)
    turns = (labelled + np.arange(size + 1)) * len(at_random) // max(size, 1)
    found = np.empty(size, np.int64)
    found[np.diff(turns) > 0], found[np.diff(turns) == 0] = at_random, chosen
    return found


def wanted_precision(past: tuple[Past, ...], target: float) -> float:
    """The precision of the next query: the target, plus FEEDBACK times what all queries so far were
    below it, in [0, MOST_WANTED]."""
    answers = np.concatenate([query.answers for query in past]) if past else np.zeros(0)
    lacking = target - float((answers >= 0).mean()) if len(answers) else 0.0
    return float(np.clip(target + FEEDBACK * lacking, 0, MOST_WANTED))


def steered(batch: Callable[[float], Indices], p: Floats, wanted: float) -> Indices:
    """The batch of the smallest γ in [0, MOST_PURITY] whose mean p is the wanted one; by halving."""
    chosen = batch(0.0)
    if not len(chosen) or p[chosen].mean() >= wanted:
        return chosen
    low, high = 0.0, MOST_PURITY
    chosen = batch(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = batch(middle)
        if p[tried].mean() < wanted:
            low = middle
        else:
            high, chosen = middle, tried
    return chosen


def uniform(keys: NDArray[np.uint64], seed: int) -> Floats:
    """A number in (0, 1) for each key [n], drawn by the seed: the same for a key, whatever other keys there are."""
    return ((mixed(keys.view(np.int64), seed) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def evened(p: Floats, probabilities: Floats) -> Floats:
    """p [m] times Σ_c P(c) · M / M_c, M_c = Σ p P(c) being what the pool seems to have of class c, M their mean.

    probabilities: P, [m, C]. So each class has the same sum of it. A class counts at most MOST_EVENED times.
    """
    sums = p @ probabilities
    weighted: Floats = p * (probabilities @ (sums.mean() / np.maximum(sums, sums.mean() / MOST_EVENED)))
    return weighted


def drawn(p: Floats, size: int, waits: Floats) -> tuple[Indices, Floats]:
    """Places of `size` of p [m] > 0, or of all, drawn by p, ascending; and how much of the known each stands for.

    Those with the smallest keys e / p are drawn, e = waits [m] being exponential; below the key τ of the next, with a
    chance of π = 1 - exp(-τp). Each stands for p / π: the same where few are drawn of many, p where all are.
    """
    if len(p) <= size:
        return np.arange(len(p)), p
    keys = waits / p
    order = np.argsort(keys, kind="stable")
    places = np.sort(order[:size])
    return places, p[places] / -np.expm1(-keys[order[size]] * p[places])


def uncertainty(probabilities: Floats) -> Floats:
    """u = 1 - (P₁ - P₂) + LEAST_UNCERTAIN of each row of [m, C]: float64 [m]; with one class, LEAST_UNCERTAIN."""
    if probabilities.shape[1] < 2:
        return np.full(len(probabilities), LEAST_UNCERTAIN)
    largest = -np.partition(-probabilities, 1, axis=1)[:, :2]
    uncertain: Floats = 1 - (largest[:, 0] - largest[:, 1]) + LEAST_UNCERTAIN
    return uncertain


@dataclass(frozen=True)
class Candidates:
    """Candidates [m] of a batch, each standing for some of the pool's known part.

    similarities: float32 [m, m], symmetric, 1 on the diagonal. mass, p: [m]. covered: [m], largest similarity to a
    labelled known sample. classes: [m], or None to leave classes alone; counts: [C], labels of each class.
    """

    similarities: NDArray[np.float32]
    mass: NDArray[np.float32]
    covered: NDArray[np.float32]
    p: Floats
    classes: Indices | None
    counts: Floats

    @cached_property
    def covers(self) -> Floats:
        """What each covers as the first choice: [m]."""
        return np.maximum(self.similarities - self.covered, 0) @ self.mass

    def cover(self, worth: Floats, size: int) -> Indices:
        """`size` of them in the order of the greedy choice, each the one with the largest gain

            gain(c) = worth(c) / (1 + counts(class of c))² · Σ_x mass(x) · max(0, s(x, c) - covered(x))

        worth: [m]. covered(x) grows with each choice to the similarity to the nearest chosen, counts by its p. Ties go
        to the smaller index. Gains only shrink, so a candidate is looked at again only when it is the best so far by
        its last known gain (Minoux's accelerated greedy, 1978).
        """
        counts, covered = self.counts.copy(), self.covered

        def gain(c: int, covers: float) -> float:
            share = 1.0 if self.classes is None else 1 / (1 + float(counts[self.classes[c]])) ** 2
            return float(worth[c]) * share * covers

        # Negative gain, candidate, choices when it was computed.
        queue = [(-gain(c, covers), c, 0) for c, covers in enumerate(self.covers.tolist())]
        heapq.heapify(queue)
        chosen: list[int] = []
        while queue and len(chosen) < size:
            _, c, when = heapq.heappop(queue)
            if when < len(chosen):
                covers = float(np.maximum(self.similarities[c] - covered, 0) @ self.mass)
                heapq.heappush(queue, (-gain(c, covers), c, len(chosen)))
                continue
            chosen.append(c)
            covered = np.maximum(covered, self.similarities[c])
            if self.classes is not None:
                counts[self.classes[c]] += self.p[c]
        return np.array(chosen, dtype=np.int64)
