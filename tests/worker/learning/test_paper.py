"""With ResNet-18 and a fixed batch, the order is the paper's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neat_backend.ranking.engine import Engine
from neat_backend.ranking.scores import INVALID
from neat_backend.store import prequential
from neat_backend.strategies import neat
from neat_backend.worker.steps import learning as learning_module
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, FakeTraining, engine_of, label, settle, settled
from tests.worker.learning.made import backend_of


def paper_order(engine: Engine) -> dict[int, tuple[int, float, float]]:
    """What sorts the unlabelled tasks: Eq. 5 among those whose K nearest labels are all known, then known neighbours.

    Eq. 5 to six digits: equal ones may come in any order.
    """
    ids = sorted(engine.tasks())
    features = engine.features(ids).astype(np.float64)
    labels, c = engine.labels(), len(engine.classes)
    at = [place for place, task in enumerate(ids) if task in labels]
    codes = [
        INVALID if labels[ids[place]].invalid else engine.classes.index(labels[ids[place]].choice or "") for place in at
    ]
    found = {}
    for place, task in enumerate(ids):
        if task in labels:
            continue
        near = np.argsort(-(features[at] @ features[place]), kind="stable")[: engine.k]
        votes = np.zeros(c)
        for code in (codes[one] for one in near):
            if code >= 0:
                votes[code] += 1
        said = engine._probabilities[engine._table.rows([task])[0]].astype(np.float64)
        inconsistency = -(said * np.log(np.exp(votes) / np.exp(votes).sum())).sum()
        is_candidate = votes.sum() == engine.k
        known = 0 if is_candidate else -float(votes.sum())
        found[task] = (-1 if is_candidate else 0, known, -round(float(inconsistency), 6))
    return found


def test_a_fixed_batch_by_resnet18_is_the_papers(
    tmp_path: Path, server: FakeLabelStudio, trainings: list[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("nothing is fitted")

    monkeypatch.setattr(learning_module, "fit_head", never)
    choices = ("dog", "cat", "dog", "cat", "invalid", "dog", "cat", "dog", "invalid", "cat", "dog", "cat")
    with backend_of(tmp_path, server, rerank="round", classifier="resnet18", k=3) as backend:
        live = settled(backend)
        label(backend, live, *choices)
        live.rounds.step()
        trainings[0].succeed()
        live.rounds.step()
        settle(live)
        engine = engine_of(live)
        keys, order = paper_order(engine), engine.head(100)
        assert sorted(order) == sorted(keys)
        assert [keys[task] for task in order] == sorted(keys.values())
        assert server.served(PROJECT) == order[: 2 * engine.batch_size]
        assert prequential.read_head(live.context.arrays) is None
        ranking = engine.ranking()
        assert 0 < ranking.candidate.sum() < len(ranking.ids)
        assert (ranking.queue == -1).all()
        assert (ranking.known_chance == 1).all()

        ids, pool = engine.pool(10**6)
        assert pool is not None
        chosen = ids[neat.select(pool, len(order), np.random.default_rng(0))].tolist()
        assert [keys[task] for task in chosen] == sorted(keys.values())
        assert len(set(keys.values())) > len(keys) / 2
