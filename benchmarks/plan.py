"""`python -m benchmarks plan`: a strategy's new plan after each label, following the labels or made from nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.report import Json, progress, report
from benchmarks.samples import random_features

SEED = 0


def plan(
    tasks: Annotated[int, typer.Option(min=20, help="Tasks of the project.")] = 20_000,
    labelled: Annotated[int, typer.Option(min=4, help="Of these, half invalid.")] = 300,
    dim: Annotated[int, typer.Option(min=2)] = 1280,
    classes: Annotated[int, typer.Option(min=2, help="Known classes.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="B; a plan has 2B tasks.")] = 50,
    labels: Annotated[int, typer.Option(min=1, help="Single labels to follow.")] = 9,
    strategy: Annotated[str, typer.Option(help="As NEAT_STRATEGY.")] = "neat_plus",
    as_json: Json = False,
) -> None:
    """A plan that follows labels, against one made from nothing, in turns; processor time of one thread of BLAS.

    `label_ms` is what comes before a plan: the neighbours, the linear classifier fitted again and applied to all tasks.
    `lock_ms` is how long a plan keeps the engine to itself; `follow_ms` and `anew_ms` are the plan itself. `same` is
    how many plans were equal. `*_best_ms` are the least of the run: on a busy machine they say most.

    Example: python -m benchmarks plan --tasks 20000 --labelled 300 --dim 1280
    """
    from threadpoolctl import threadpool_limits

    from neat_backend.ranking.engine import Engine
    from neat_backend.ranking.linear import fit_head
    from neat_backend.ranking.method import Method
    from neat_backend.records import Label
    from neat_backend.strategies import following
    from neat_backend.strategies import strategy as from_nothing
    from neat_backend.worker.steps.planning import LOOKED_AT

    if labelled + labels >= tasks:
        raise typer.BadParameter(f"--labelled {labelled} and {labels} more leave nothing of {tasks} tasks")
    rng = np.random.default_rng(0)
    names = tuple(f"class {c}" for c in range(classes))
    engine = Engine(dim, names, Method(batch_size=batch, seed=SEED), source="linear")
    engine.add_tasks(range(tasks), random_features(rng, tasks, dim))

    def answer(task: int) -> Label:
        return Label(task, invalid=True) if rng.random() < 0.5 else Label(task, names[rng.integers(classes)])

    def learn(task: int) -> None:
        engine.set_labels([answer(task)])
        _, codes, features = engine.training_data()
        for _ in engine.set_linear(fit_head(features, codes, names)):
            pass

    select = following(strategy)
    spent: dict[str, list[float]] = {"label": [], "lock": [], "follow": [], "anew": []}
    engine.set_labels([answer(int(task)) for task in rng.permutation(tasks)[:labelled]])
    same, first_ms = 0, 0.0
    with threadpool_limits(1, user_api="blas"):
        for number in range(labels + 1):
            ids, pool = _timed(spent["lock"], engine.pool, LOOKED_AT)
            if pool is None:
                raise RuntimeError("the engine has classes")
            chosen = _timed(spent["follow"], select, pool, 2 * batch, np.random.default_rng(SEED))
            anew = _timed(spent["anew"], from_nothing(strategy), pool, 2 * batch, np.random.default_rng(SEED))
            same += bool((chosen == anew).all())
            if number == 0:
                first_ms = spent["lock"].pop() + spent["follow"].pop()
            progress.print(f"plan {number} of {labels}")
            _timed(spent["label"], learn, int(ids[chosen[0]]))
    figures: dict[str, Any] = {"tasks": tasks, "labelled": labelled, "dim": dim, "classes": classes, "batch": batch}
    figures |= {"strategy": strategy, "first_plan_ms": first_ms}
    for part, found in spent.items():
        figures |= {f"{part}_ms": statistics.median(found), f"{part}_best_ms": min(found)}
    figures |= {"times_faster": statistics.median(spent["anew"]) / statistics.median(spent["follow"])}
    figures |= {"plans": labels + 1, "same": same}
    report("plan", figures, as_json)


def _timed(milliseconds: list[float], work: Callable[..., Any], *given: Any) -> Any:
    began = time.process_time()
    found = work(*given)
    milliseconds.append((time.process_time() - began) * 1e3)
    return found
