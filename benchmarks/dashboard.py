"""`python -m benchmarks dashboard`: what the pages and their JSON cost in a small and in a large project."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.report import Json, numbers, progress, report
from benchmarks.web import serving

PROJECT = 7
CLASSES = tuple(f"class {number}" for number in range(5))
CLUSTERS = 10  # of these, one for each class, the others of none
ROUNDS = 10


def dashboard(
    tasks: Annotated[str, typer.Option(help="Tasks of the projects, separated by commas.")] = "1000,100000",
    dim: Annotated[int, typer.Option(min=2, help="Length of a feature.")] = 128,
    repeat: Annotated[int, typer.Option(min=1, help="The median of so many.")] = 5,
    as_json: Json = False,
) -> None:
    """Seconds and bytes of every page and of what it fetches, by the number of tasks.

    The projects have ten rounds of 50 labels (fewer in small ones); each is served by the web process on its own.

    Example: python -m benchmarks dashboard --tasks 300,3000 --dim 16
    """
    rows = [_measured(count, dim, repeat) for count in numbers(tasks, "--tasks", least=300)]
    first, last = rows[0], rows[-1]
    figures: dict[str, Any] = {"dim": dim}
    for name in first:
        if name.endswith("_bytes"):
            figures[f"{name}_times_smallest"] = last[name] / first[name]
    report("dashboard", figures, as_json, rows, "tasks")


def _measured(count: int, dim: int, repeat: int) -> dict[str, Any]:
    import httpx

    row: dict[str, Any] = {"tasks": count}
    with tempfile.TemporaryDirectory() as folder:
        progress.print(f"making a project of {count:,} tasks …")
        task = _prepared(Path(folder), count, dim)
        paths = {
            "home": "/",
            "page": f"/projects/{PROJECT}",
            "task": f"/projects/{PROJECT}/tasks/{task}",
            "status": f"/api/projects/{PROJECT}",
            "insight": f"/api/projects/{PROJECT}/insight",
            "ranking": f"/api/projects/{PROJECT}/ranking",
            "map": f"/api/projects/{PROJECT}/map",
            "marks": f"/api/projects/{PROJECT}/map/marks",
            "picture": f"/api/projects/{PROJECT}/tasks/{task}/thumbnail",
        }
        with serving(Path(folder)) as (url, _), httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            for name, path in paths.items():
                seconds = []
                for _ in range(repeat + 1):
                    began = time.perf_counter()
                    answer = client.get(path, headers={"Accept": "text/html"})
                    seconds.append(time.perf_counter() - began)
                    answer.raise_for_status()
                row[f"{name}_milliseconds"] = 1000 * statistics.median(seconds[1:])
                row[f"{name}_bytes"] = answer.num_bytes_downloaded
    return row


def _prepared(folder: Path, count: int, dim: int) -> int:
    """A project with labels, in a data folder; the task that comes next."""
    from benchmarks.projects import Samples, prepare
    from neat_backend.models.grid import to_grid
    from neat_backend.settings import Settings
    from neat_backend.store.database import Database

    settings = Settings.from_env({}, data_dir=folder, batch_size=min(50, count // (2 * ROUNDS)))
    database = Database(settings.sqlalchemy_url)
    database.migrate()
    rng = np.random.default_rng(0)
    cluster = rng.integers(0, CLUSTERS, count)
    centres = rng.normal(0, 1, (CLUSTERS, dim)).astype(np.float32)
    features = to_grid(centres[cluster] + rng.normal(0, 0.7, (count, dim)).astype(np.float32))
    truth = np.where(cluster < len(CLASSES), cluster, -1)
    engine = prepare(settings, database, PROJECT, Samples(features, truth, CLASSES), ROUNDS)
    database.dispose()
    return engine.head(1)[0]
