from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from neat_backend import strategies
from neat_backend.errors import NeatError
from neat_backend.experiments import loop
from neat_backend.experiments.checkpoints import Run, RunFolder
from neat_backend.experiments.loop import FirstModels, run_rounds
from neat_backend.experiments.protocols import Protocol
from neat_backend.ranking.pool import UNLABELLED, Generated
from neat_backend.ranking.scores import INVALID

PROTOCOL = Protocol("squares", 2, 6, "colour", batch=10, rounds=4, classifier="linear", k=3)
KNOWN = (0, 3)


def at_random(pool, batch_size, rng):
    return rng.permutation(pool.offered)[:batch_size]


@pytest.fixture
def seen(monkeypatch):
    """The pools that the strategy "random" is given; it draws at random."""
    pools = []

    def select(pool, batch_size, rng):
        pools.append(pool)
        return at_random(pool, batch_size, rng)

    replace(monkeypatch, SimpleNamespace(select=select))
    return pools


def replace(monkeypatch, module) -> None:
    monkeypatch.setattr(strategies, "strategy", lambda name: module.select)
    monkeypatch.setattr(strategies, "module", lambda name: module)


def go(samples, folder, protocol=PROTOCOL, strategy="random", seed=0, **more):
    return run_rounds(protocol, samples, RunFolder(folder, Run(strategy, seed, KNOWN)), **more)


def without_times(figures):
    return [{key: value for key, value in one.items() if key != "seconds"} for one in figures]


def test_labels_grow_by_b_and_stay_disjoint(samples, seen, tmp_path):
    figures = go(samples, tmp_path)
    assert [one["round"] for one in figures] == [0, 1, 2, 3, 4]
    assert [one["known"] + one["invalid"] for one in figures] == [6, 16, 26, 36, 46]
    assert (figures[0]["known"], figures[0]["invalid"]) == (6, 0)
    assert all(0 <= one["accuracy"] <= 1 for one in figures)
    assert all(0.5 <= one["effective"] <= 1 for one in figures)  # of two classes
    for number, pool in enumerate(seen):
        assert len(pool.labelled) + len(pool.offered) == 200
        assert (pool.labels[pool.offered] == UNLABELLED).all()
        assert len(pool.past) == number
        truth = np.select([samples.labels[:200] == code for code in KNOWN], [0, 1], INVALID)
        assert (pool.labels[pool.labelled] == truth[pool.labelled]).all()
    assert sum(one["found"] for one in figures) == figures[-1]["known"] - 6


def test_all_strategies_of_a_seed_begin_with_the_same_labels_and_classifier(samples, seen, tmp_path):
    go(samples, tmp_path, strategy="random")
    go(samples, tmp_path, strategy="neat")
    go(samples, tmp_path, strategy="random", seed=1)
    first, second, other = seen[0], seen[4], seen[8]
    assert np.array_equal(first.labels, second.labels)
    assert np.array_equal(first.model.logits(np.arange(200)), second.model.logits(np.arange(200)))
    assert not np.array_equal(first.labels, other.labels)


def test_the_first_classifier_is_trained_once_for_all_strategies_of_a_seed(samples, seen, tmp_path, monkeypatch):
    fits = []
    fit = samples.learner.fit
    monkeypatch.setattr(samples.learner, "fit", lambda *a, **k: fits.append(1) or fit(*a, **k))
    shared = FirstModels()
    one = go(samples, tmp_path, strategy="random", first_models=shared)
    two = go(samples, tmp_path, strategy="neat", first_models=shared)
    assert len(fits) == 1 + 2 * PROTOCOL.rounds
    assert one[0]["seconds"]["training"] == two[0]["seconds"]["training"] > 0


class Stop(Exception):
    pass


def stop_after(number):
    def on_round(done, figures):
        if done == number:
            raise Stop

    return on_round


@pytest.mark.parametrize("number", [0, 2, 4])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(samples, tmp_path, number):
    whole = go(samples, tmp_path / "whole", strategy="neat")
    with pytest.raises(Stop):
        go(samples, tmp_path / "stopped", strategy="neat", on_round=stop_after(number))
    folder = RunFolder(tmp_path / "stopped", Run("neat", 0, KNOWN))
    assert folder.rounds_done == number + 1
    resumed = go(samples, tmp_path / "stopped", strategy="neat")
    assert without_times(resumed) == without_times(whole)
    for mine, theirs in zip(folder.queries(), RunFolder(tmp_path / "whole", folder.run).queries(), strict=True):
        assert np.array_equal(mine[0].indices, theirs[0].indices)
        assert np.array_equal(mine[0].answers, theirs[0].answers)


def test_a_round_without_its_figures_is_done_again(samples, tmp_path):
    whole = go(samples, tmp_path)
    folder = tmp_path / "runs" / Run("random", 0, KNOWN).name
    (folder / "round-04.json").unlink()
    (folder / "round-04.npz").write_bytes(b"half of it")
    assert without_times(go(samples, tmp_path)) == without_times(whole)


def test_samples_that_a_strategy_makes_are_trained_on_and_survive_a_stop(samples, tmp_path, monkeypatch):
    trained = []
    fit = samples.learner.fit

    def counted(*arguments, generated=None, **more):
        trained.append(0 if generated is None else len(generated.targets))
        return fit(*arguments, generated=generated, **more)

    def generate(pool, chosen, rng):
        answered = chosen[pool.labels[chosen] >= 0]
        noise = 0.01 * rng.normal(size=(len(answered), 4))
        return Generated((pool.learner.inputs(answered) + noise).astype(np.float32), pool.labels[answered])

    monkeypatch.setattr(samples.learner, "fit", counted)
    replace(monkeypatch, SimpleNamespace(select=at_random, generate=generate))
    whole = go(samples, tmp_path / "whole")
    found = np.cumsum([one["found"] for one in whole]).tolist()
    assert trained == found
    with pytest.raises(Stop):
        go(samples, tmp_path / "stopped", on_round=stop_after(2))
    assert without_times(go(samples, tmp_path / "stopped")) == without_times(whole)


def test_a_pool_that_runs_out_ends_the_run(samples, seen, tmp_path):
    figures = go(samples, tmp_path, Protocol("squares", 2, 6, "colour", batch=150, rounds=4, classifier="linear"))
    assert [one["asked"] for one in figures] == [0, 150, 44]
    assert figures[-1]["left"] == 0
    assert len(go(samples, tmp_path, Protocol("squares", 2, 6, "colour", batch=150, rounds=4))) == 3


@pytest.mark.parametrize(
    ("select", "words"),
    [
        (lambda pool, size, rng: pool.offered[:3], "where 10 samples were wanted"),
        (lambda pool, size, rng: np.repeat(pool.offered[:5], 2), "a sample twice"),
        (lambda pool, size, rng: np.concatenate([pool.labelled[:1], pool.offered[:9]]), "was not offered"),
        (lambda pool, size, rng: pool.offered[:10].astype(float), "where 10 samples were wanted"),
    ],
)
def test_a_strategy_that_breaks_its_contract_is_named(samples, tmp_path, monkeypatch, select, words):
    replace(monkeypatch, SimpleNamespace(select=select))
    with pytest.raises(NeatError, match=f"strategy random.*{words}"):
        go(samples, tmp_path)


def test_checkpoints_of_other_data_are_not_gone_on_with(samples, tmp_path):
    go(samples, tmp_path, strategy="random", on_round=lambda *_: None)
    turned = loop.Samples(samples.features, samples.labels[::-1].copy(), samples.learner)
    with pytest.raises(NeatError):
        go(turned, tmp_path, strategy="random")


def test_a_broken_checkpoint_is_named(samples, tmp_path):
    go(samples, tmp_path)
    path = tmp_path / "runs" / Run("random", 0, KNOWN).name / "round-02.npz"
    path.write_bytes(b"broken")
    with pytest.raises(NeatError, match=r"round-02\.npz can't be read"):
        go(samples, tmp_path)
    path.with_suffix(".json").write_text("{")
    with pytest.raises(NeatError, match=r"round-02\.json can't be read"):
        go(samples, tmp_path)


def test_what_the_model_computes_for_a_query_counts_as_inference(samples, tmp_path, monkeypatch):
    def select(pool, batch_size, rng):
        pool.model.logits(pool.offered)
        pool.learner.fit(pool.known, pool.labels[pool.known], 2, rng).embeddings(pool.offered)
        return at_random(pool, batch_size, rng)

    replace(monkeypatch, SimpleNamespace(select=select))
    assert set(go(samples, tmp_path)[1]["seconds"]) == {"query", "inference", "detector", "training", "testing"}
