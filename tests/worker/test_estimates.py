"""How many known images are left: by hand where it can be, and in simulated projects whose labels were chosen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from sklearn.datasets import load_digits

from neat_backend.models.grid import to_grid
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.linear import fit_head
from neat_backend.ranking.method import Method
from neat_backend.ranking.scores import INVALID
from neat_backend.records import Label
from neat_backend.worker.steps.estimates import (
    LEAST_DRAWS,
    MOST_TAUGHT,
    SHIFTS,
    Drawn,
    known_left,
    log_odds,
    posterior,
    score_draws,
)


def drawn(known: int, invalid: int, logit: float = 0.0) -> Drawn:
    return Drawn(np.full(known + invalid, logit), np.arange(known + invalid) < known, known, known)


def clouds(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit features around three directions, and their codes; the last one is of no known class."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 3, n)
    found = np.eye(8)[codes] + rng.normal(0, 0.1, (n, 8))
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found.astype(np.float32), np.where(codes < 2, codes, INVALID)


class TestPosterior:
    def test_without_a_draw_it_is_the_prior(self) -> None:
        """Student's t with 3 degrees of freedom: 16 / 9 times as likely at its centre as a scale off."""
        weights = posterior(drawn(0, 0))
        centre, off = (weights[np.abs(SHIFTS - place).argmin()] for place in (-0.8, 0.0))
        assert centre == weights.max()
        assert centre / off == pytest.approx(16 / 9, rel=1e-6)
        assert weights.sum() == pytest.approx(1)

    def test_many_draws_outweigh_it(self) -> None:
        weights = posterior(drawn(900, 100, logit=-1.0))
        shift = float(weights @ SHIFTS)
        assert expit(-1.0 + shift) == pytest.approx(0.9, abs=0.01)


class TestKnownLeft:
    def test_fewer_than_five_draws_say_nothing(self) -> None:
        assert LEAST_DRAWS == 5
        assert known_left(drawn(2, 2), np.zeros(10), np.zeros(2)) is None
        assert known_left(drawn(2, 3), np.zeros(10), np.zeros(2)) is not None

    def test_where_nothing_tells_tasks_apart_it_is_the_share_of_the_draws(self) -> None:
        found = known_left(drawn(300, 700), np.zeros(10_000), np.zeros(50))
        assert found is not None
        assert found.known == pytest.approx(3000, rel=0.02)
        assert found.wanted == pytest.approx(15, rel=0.02)
        half = 10_000 * 1.96 * np.sqrt(0.3 * 0.7 / 1000)
        assert found.low == pytest.approx(3000 - half, abs=60)
        assert found.high == pytest.approx(3000 + half, abs=60)

    def test_an_empty_pool_holds_none_and_the_range_keeps_to_the_pool(self) -> None:
        found = known_left(drawn(3, 3), np.zeros(0), np.zeros(0))
        assert found is not None
        assert (found.low, found.high, found.wanted) == (0, 0, 0)
        found = known_left(drawn(50, 0), np.full(7, 5.0), np.zeros(0))
        assert found is not None
        assert 0 <= found.low <= found.known <= found.high <= 7

    def test_a_head_that_is_sure_of_the_chosen_ones_is_corrected(self) -> None:
        """It gives 0.9 to all; of the draws, 30 of 100 are known."""
        sure = float(log_odds(np.array([0.9]))[0])
        found = known_left(drawn(30, 70, sure), np.full(1000, sure), np.zeros(0))
        assert found is not None
        assert found.low < 300 < found.high < 500


class TestScoredDraws:
    def test_each_is_scored_by_a_head_that_has_not_learnt_it(self) -> None:
        """A wrong label on a draw does not make the head say it."""
        features, codes = clouds(200)
        draws = np.arange(200) % 10 == 0
        flipped = codes.copy()
        flipped[draws] = np.where(codes[draws] == INVALID, 0, INVALID)
        found = score_draws(features, flipped, ["a", "b"], draws, np.random.default_rng(0))
        assert ((found.logits > 0) != found.known).mean() > 0.9
        right = score_draws(features, codes, ["a", "b"], draws, np.random.default_rng(0))
        assert ((right.logits > 0) == right.known).all()
        assert (right.tested, right.right) == (int((codes[draws] >= 0).sum()),) * 2

    @pytest.mark.parametrize("codes", [[0, 0, 1, 1, 0, 1], [INVALID] * 6, [0, 1, 0, 1, 0, INVALID]], ids=str)
    def test_where_labels_tell_nothing_all_are_alike(self, codes: list[int]) -> None:
        found = score_draws(clouds(6)[0], np.array(codes), ["a", "b"], np.arange(6) > 1, np.random.default_rng(0))
        assert (found.logits == 0).all()
        assert found.known.tolist() == [code >= 0 for code in codes[2:]]

    def test_of_many_labels_a_sample_is_learnt_and_every_draw_is_kept(self) -> None:
        features, codes = clouds(MOST_TAUGHT + 500)
        draws = np.arange(len(codes)) % 7 == 0
        found = score_draws(features, codes, ["a", "b"], draws, np.random.default_rng(0))
        assert found.known.tolist() == (codes[draws] >= 0).tolist()


def test_chosen_labels_do_not_mislead_it() -> None:
    """The order goes for known digits; the ranges hold in at least nine of ten moments of four such projects."""
    digits = load_digits()
    features = to_grid(digits.data - digits.data.mean(axis=0))
    holds, widths = [], []
    for seed in range(4):
        known = np.isin(digits.target, np.random.default_rng(seed).permutation(10)[:3])
        classes = [str(name) for name in np.unique(digits.target[known])]
        engine = Engine(
            64, classes, Method(k=10, batch_size=20, seed=seed, balance=True, random_share=0.1), source="linear"
        )
        engine.add_tasks(np.arange(len(known)), features)
        for number in range(1, 201):
            task = engine.head(1)[0]
            engine.set_labels([Label(task, str(digits.target[task])) if known[task] else Label(task, invalid=True)])
            if number % 20:
                continue
            ids, codes, taught = engine.training_data()
            for _ in engine.set_linear(fit_head(taught, codes, classes)):
                pass
            ranking = engine.ranking()
            scored = score_draws(taught, codes, classes, np.isin(ids, engine.sample()), np.random.default_rng(0))
            found = known_left(scored, log_odds(ranking.known_chance), np.zeros(0))
            if found is not None:
                holds.append(found.low <= known[ranking.ids].sum() <= found.high)
                widths.append((found.high - found.low) / len(ranking.ids))
        assert (codes >= 0).mean() > 1.5 * known.mean(), "the labels are no random sample"
    assert len(holds) > 25
    assert np.mean(holds) >= 0.9
    assert np.mean(widths) < 0.4
