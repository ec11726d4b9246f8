"""`python -m benchmarks memory`: what the worker's engine and the web process hold. Linux: read from /proc."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.report import Json, progress, report
from benchmarks.web import serving, wait_for, webhook

AIM_ENGINE_GB, AIM_WEB_MB = 2.6, 100.0
ONE_BY_ONE = 100  # of the labels
ROWS_AT_ONCE = 5_000  # few, so that making features up costs no memory to speak of


def memory(
    pool: Annotated[int, typer.Option(min=1, help="Tasks in the engine.")] = 1_000_000,
    dim: Annotated[int, typer.Option(min=2, help="Length of a feature.")] = 512,
    labels: Annotated[int, typer.Option(min=0, help="Labelled tasks.")] = 1_000,
    webhooks: Annotated[int, typer.Option(min=0, help="Webhooks sent to the web process.")] = 1_000,
    as_json: Json = False,
) -> None:
    """Memory of an engine with a large pool beyond the interpreter with its libraries, and of the web process.

    Each in a process of its own: what is resident at the end, and the most that was ever resident.

    Example: python -m benchmarks memory --pool 50000
    """
    if not Path("/proc/self/status").exists():
        raise typer.BadParameter("memory is read from /proc, which this system does not have")
    if labels > pool:
        raise typer.BadParameter(f"{labels} labels are more than a pool of {pool} has tasks")
    bare = _probe("bare()")
    progress.print(f"an engine of {pool:,} tasks …")
    full = _probe(f"engine({pool}, {dim}, {labels})")
    engine_gb = (full["resident_mb"] - bare["resident_mb"]) / 1e3
    web = _web(webhooks)
    report(
        "memory",
        {
            "pool": pool,
            "dim": dim,
            "labels": labels,
            "interpreter_gb": bare["resident_mb"] / 1e3,
            "with_engine_gb": full["resident_mb"] / 1e3,
            "engine_beyond_gb": engine_gb,
            "engine_beyond_most_gb": (full["most_mb"] - bare["most_mb"]) / 1e3,
            "features_alone_in_single_precision_gb": pool * dim * 4 / 1e9,
            "aim_engine_gb_at_1000000_x_512": AIM_ENGINE_GB,
            "webhooks": webhooks,
            "web_mb": web["resident_mb"],
            "web_most_mb": web["most_mb"],
            "aim_web_mb": AIM_WEB_MB,
            "web_over_aim": web["resident_mb"] / AIM_WEB_MB,
        },
        as_json,
    )


def resident(pid: int | str = "self") -> dict[str, float]:
    """Resident memory of a process in MB (10^6 bytes), now and at its most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return {name: int(kilobytes[key]) * 1024 / 1e6 for name, key in (("resident_mb", "VmRSS"), ("most_mb", "VmHWM"))}


def bare() -> dict[str, float]:
    """In a process of its own: the interpreter with what an engine imports, and no tasks."""
    from neat_backend.ranking.engine import Engine

    Engine(8, ("a class",)).set_labels([])
    return resident()


def engine(pool: int, dim: int, labels: int) -> dict[str, float]:
    """In a process of its own: an engine with made-up features, which come in chunks as from the store."""
    import numpy as np

    from benchmarks.samples import feature_chunks
    from neat_backend.ranking.engine import Engine
    from neat_backend.records import Label

    rng = np.random.default_rng(0)
    classes = tuple(f"class {c}" for c in range(10))
    live = Engine(dim, classes)
    live.reserve(pool)  # as when a project is loaded
    added = 0
    for chunk in feature_chunks(rng, pool, dim, ROWS_AT_ONCE):
        live.add_tasks(np.arange(added, added + len(chunk)), chunk)
        added += len(chunk)
    chosen = rng.choice(pool, labels, replace=False)
    answers = [Label(int(t), None, invalid=True) if t % 2 else Label(int(t), classes[t % 10]) for t in chosen]
    live.set_labels(answers[:-ONE_BY_ONE])  # as when a project is loaded
    for answer in answers[-ONE_BY_ONE:]:  # as when somebody labels
        live.set_labels([answer])
        live.head()
    return resident()


def _probe(call: str) -> dict[str, float]:
    code = f"import json; from benchmarks.memory import bare, engine; print(json.dumps({call}))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _web(webhooks: int) -> dict[str, float]:
    """The web's worker process, started as `serve` does, after so many webhooks."""
    import httpx

    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (url, supervisor):
        with httpx.Client(timeout=30, trust_env=False) as client:
            for number in range(webhooks):
                client.post(url + "/webhook", json=webhook(number + 1)).raise_for_status()
        # supervisor → gunicorn's master → its worker
        found: list[dict[str, Any]] = []
        wait_for(lambda: bool(_children(supervisor)) and bool(_children(_children(supervisor)[0])))
        for master in _children(supervisor):
            found += [resident(worker) for worker in _children(master)]
    return max(found, key=lambda one: float(one["resident_mb"]))


def _children(pid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry))
    return found
