"""`python -m benchmarks capacity`: memory, disk and seconds of a project of so many tasks. Linux: read from /proc."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from benchmarks.memory import resident
from benchmarks.report import Json, numbers, progress, report
from benchmarks.samples import features_of

if TYPE_CHECKING:
    from neat_backend.ranking.engine import Engine

AT_ONCE = 8_192  # tasks of a segment; what embedding leaves are a few hundred, merged
SINGLE = 30  # labels that are timed
THUMBNAIL_SIDE = 64
COMPARED_TASKS = 1_000  # for the recall


def capacity(
    pools: Annotated[str, typer.Option(help="Tasks, one after the other.")] = "1000,10000,100000",
    dim: Annotated[int, typer.Option(min=16, help="Length of a feature.")] = 512,
    labels: Annotated[int, typer.Option(min=20, help="Labelled tasks, at most a fifth of the pool.")] = 1_000,
    features_memory: Annotated[
        float, typer.Option(help="As NEAT_FEATURES_MEMORY: more lies in a mapped file, and neighbours are approximate.")
    ] = 8e9,
    features: Annotated[
        Path | None, typer.Option(help="Features of real images, .npy [n, dim], repeated with noise; --dim is theirs.")
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Where features are written; default a temporary folder.")] = None,
    as_json: Json = False,
) -> None:
    """A project's features written as the worker does, and read into an engine as when a worker starts.

    Memory is beyond the interpreter with its libraries; `mapped_gb` of it is the file's and goes when others need it.
    Small pictures for the classifier are 64 × 64 × 3 bytes a task on disk. `recall` is the share of the K nearest
    labelled tasks that are in the table, in the mean of a thousand tasks; 1 unless neighbours are approximate.

    Example: python -m benchmarks capacity --pools 1000,10000
    """
    if not Path("/proc/self/status").exists():
        raise typer.BadParameter("memory is read from /proc, which this system does not have")
    if features is not None:
        dim = features_of(features).shape[1]
    rows, given = [], features and str(features.absolute())
    for pool in numbers(pools, "--pools", least=200):
        progress.print(f"{pool:,} tasks …")
        with tempfile.TemporaryDirectory(dir=folder) as home:
            call = f"hold({pool}, {dim}, {min(labels, pool // 5)}, {home!r}, {features_memory!r}, {given!r})"
            code = f"import json; from benchmarks.capacity import hold; print(json.dumps({call}))"
            done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
    figures = {"dim": dim, "labels": labels, "features_memory_gb": features_memory / 1e9}
    report("capacity", figures, as_json, rows, of="tasks")


def hold(pool: int, dim: int, labels: int, home: str, features_memory: float, features: str | None) -> dict[str, Any]:
    """In a process of its own."""
    from benchmarks.samples import feature_chunks, repeated
    from neat_backend.ranking.engine import Engine
    from neat_backend.ranking.neighbors import LargePool
    from neat_backend.records import Label
    from neat_backend.store.arrays import ProjectArrays
    from neat_backend.store.snapshots import write_ranking

    rng = np.random.default_rng(0)
    arrays, kind = ProjectArrays(Path(home), 1), "features/made-up"
    written = 0
    chunks = repeated(rng, features_of(Path(features)), pool, AT_ONCE) if features else None
    for chunk in chunks or feature_chunks(rng, pool, dim, AT_ONCE):
        ids = np.arange(written, written + len(chunk))
        arrays.append(kind, ids, ids, chunk)
        written += len(chunk)
    Engine(8, ("a class",)).set_labels([])  # what it imports counts as the interpreter
    del chunk, chunks, ids
    before = resident()["resident_mb"]
    classes = tuple(f"class {c}" for c in range(10))
    chosen = rng.choice(pool, labels, replace=False)
    answers = [Label(int(t), None, invalid=True) if t % 2 else Label(int(t), classes[t % 10]) for t in chosen]
    began = time.perf_counter()
    engine = Engine(dim, classes, large=LargePool("auto", features_memory, Path(home) / "scratch"))
    engine.reserve(pool)
    for segment in arrays.segments(kind):
        engine.add_tasks(segment.ids, segment.values)
    engine.set_labels(answers[:-SINGLE] or answers[:1])
    engine.head()
    load = time.perf_counter() - began
    seconds = []
    for answer in answers[-SINGLE:]:
        began = time.perf_counter()
        engine.set_labels([answer])
        engine.head()
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    write_ranking(arrays, vars(engine.ranking()))
    ranking = time.perf_counter() - began
    on_disk = sum(path.stat().st_size for path in arrays.folder("features").rglob("*") if path.is_file())
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return {
        "tasks": pool,
        "memory_gb": (resident()["resident_mb"] - before) / 1e3,
        "mapped_gb": int(status["RssFile"].split()[0]) * 1024 / 1e9 if engine.approximate else 0.0,
        "features_on_disk_gb": on_disk / 1e9,
        "pictures_on_disk_gb": pool * THUMBNAIL_SIDE**2 * 3 / 1e9,
        "load_seconds": load,
        "label_ms": statistics.median(seconds) * 1e3,
        "whole_ranking_seconds": ranking,
        "rows_read": engine.read_share,
        "approximate": engine.approximate,
        "recall": _recall(engine, rng),
    }


def _recall(engine: Engine, rng: np.random.Generator) -> float:
    """The share of the exact K nearest labelled tasks that the table has, in the mean of some tasks."""
    table = engine._table
    labelled = np.flatnonzero(table.labelled).astype(np.int32)
    rows = rng.permutation(np.flatnonzero(table.alive & ~table.labelled))[:COMPARED_TASKS].astype(np.int32)
    similarities = table.planes.exact(rows).astype(np.float64) @ table.planes.exact(labelled).astype(np.float64).T
    k = min(table.k, len(labelled))
    kth = np.partition(similarities, -k, axis=1)[:, -k]  # an equally near neighbour counts
    found = table.similarities[rows, :k] >= kth[:, None].astype(np.float32)
    return float(found.mean())
