"""`python -m benchmarks query`: what one query costs, strategy by strategy, on one made-up pool."""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.report import Json, progress, report
from benchmarks.samples import random_features

STRATEGIES = "neat,neat_passive,neat_plus,coreset,badge,lfosa,openmax,mqnet,eoal,bual,eaoa,e2oal,uncertainty"


def query(
    pool: Annotated[int, typer.Option(min=20, help="Samples, labelled ones included.")] = 50_000,
    labelled: Annotated[int, typer.Option(min=4, help="Of these, half invalid.")] = 4_000,
    dim: Annotated[int, typer.Option(min=2)] = 512,
    classes: Annotated[int, typer.Option(min=2, help="Known classes.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="B, samples to query.")] = 400,
    k: Annotated[int, typer.Option(min=1)] = 10,
    strategies: Annotated[str, typer.Option(help="Separated by commas.")] = STRATEGIES,
    repeat: Annotated[int, typer.Option(min=1, help="The median of so many.")] = 3,
    as_json: Json = False,
) -> None:
    """Seconds of one query of each strategy: detection, scores and choice; detectors are trained on the features.

    The classifier is there already, as it is in every round; its probabilities of the pool are computed first.

    Example: python -m benchmarks query --pool 5000 --labelled 400 --batch 50 --repeat 1
    """
    from neat_backend.experiments.linear_classifier import LinearLearner
    from neat_backend.ranking.pool import UNLABELLED, Pool
    from neat_backend.ranking.scores import INVALID
    from neat_backend.strategies import strategy

    if labelled >= pool:
        raise typer.BadParameter(f"--labelled {labelled} leaves nothing of a pool of {pool}")
    rng = np.random.default_rng(0)
    features = random_features(rng, pool, dim)
    labels = np.full(pool, UNLABELLED)
    some = rng.permutation(pool)[:labelled]
    labels[some] = rng.integers(classes, size=labelled)
    labels[some[: labelled // 2]] = INVALID
    learner = LinearLearner(features, pool)
    known = np.flatnonzero(labels >= 0)
    progress.print("training the classifier …")
    model = learner.fit(known, labels[known], classes, rng)
    state = Pool(features, labels, classes, np.flatnonzero(labels == UNLABELLED), model, learner, k)
    state.probabilities(state.offered)
    rows: list[dict[str, Any]] = []
    for name in strategies.split(","):
        select = strategy(name.strip())
        progress.print(f"{name} …")
        select(state, batch, np.random.default_rng(0))  # the first one compiles loops and starts threads
        seconds = []
        for _ in range(repeat):
            began = time.perf_counter()
            select(state, batch, np.random.default_rng(0))
            seconds.append(time.perf_counter() - began)
        rows.append({"strategy": name.strip(), "seconds": statistics.median(seconds)})
    first = rows[0]
    figures: dict[str, Any] = {
        "pool": pool,
        "labelled": labelled,
        "dim": dim,
        "classes": classes,
        "batch": batch,
        "k": k,
    }
    for row in rows:
        figures[f"{row['strategy']}_seconds"] = row["seconds"]
        figures[f"{row['strategy']}_times_{first['strategy']}"] = row["seconds"] / first["seconds"]
    report("query", figures, as_json)
