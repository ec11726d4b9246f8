"""Benchmarks: `neat-backend bench NAME`. Each compares in one run on one machine and reports ratios."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from neat_backend.ports import free_port

app = typer.Typer(help="Measure speed; ratios against the ordinary way, in the same run.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def report(title: str, figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"bench": title, "cores": os.cpu_count(), **figures}, indent=2))
        return
    table = Table("figure", title)
    for name, value in figures.items():
        table.add_row(name, f"{value:,.4g}" if isinstance(value, float) else str(value))
    Console().print(table)


def random_features(rng: np.random.Generator, n: int, dim: int) -> NDArray[np.float32]:
    """Features of 100 loose clusters, [n, dim], on the grid."""
    from neat_backend.core.features import to_grid

    centres = rng.normal(size=(100, dim)).astype(np.float32)
    features = np.empty((n, dim), np.float32)
    for start in range(0, n, 50_000):
        part = slice(start, min(start + 50_000, n))
        size = part.stop - part.start
        noisy = centres[rng.integers(100, size=size)] + rng.normal(size=(size, dim)).astype(np.float32)
        features[part] = to_grid(noisy)
    return features


@app.command()
def rerank(
    pool: Annotated[int, typer.Option(min=1)] = 50_000,
    labelled: Annotated[int, typer.Option(min=11)] = 5_000,
    dim: Annotated[int, typer.Option(min=2)] = 512,
    k: Annotated[int, typer.Option(min=1)] = 10,
    labels: Annotated[int, typer.Option(min=1, help="Single labels to time.")] = 50,
    as_json: Json = False,
) -> None:
    """One more label: the incremental table and ranking against a full FAISS flat search, results compared.

    Example: neat-backend bench rerank --pool 50000 --labelled 5000 --dim 512
    """
    if k > labelled:
        raise typer.BadParameter(f"there are {labelled} labelled tasks to be neighbours, fewer than {k}")
    if labels >= pool:
        raise typer.BadParameter(f"labelling {labels} leaves nothing of a pool of {pool} to compare")
    import faiss

    from neat_backend.engine import Engine
    from neat_backend.records import Label

    rng = np.random.default_rng(0)
    features = random_features(rng, pool + labelled, dim)
    classes = tuple(f"class {c}" for c in range(10))
    engine = Engine(dim, classes, k=k)
    engine.add_tasks(range(pool + labelled), features)
    some = rng.permutation(pool + labelled)[: labelled + labels]
    answers = [
        Label(int(t), None, invalid=True) if rng.random() < 0.5 else Label(int(t), classes[rng.integers(10)])
        for t in some
    ]
    engine.set_labels(answers[:labelled])
    engine.head()
    seconds = []
    for answer in answers[labelled:]:
        began = time.perf_counter()
        engine.set_labels([answer])
        engine.head()
        seconds.append(time.perf_counter() - began)

    index = faiss.IndexFlatIP(dim)
    rows = np.sort(some)
    index.add(features[rows])  # ascending ids: FAISS prefers the first of equals
    rest = np.setdiff1d(np.arange(pool + labelled), some)
    began = time.perf_counter()
    similarities, found = index.search(features[rest], k)
    full = time.perf_counter() - began
    same = total = 0
    for number, task in enumerate(rest[:: max(1, len(rest) // 2000)]):
        at = number * max(1, len(rest) // 2000)
        mine = engine.neighbours(int(task))
        # FAISS rounds in single precision: neighbours it can't tell apart may stand in another order.
        close = np.allclose([s for _, s in mine], similarities[at], atol=1e-5)
        same += {t for t, _ in mine} == set(rows[found[at]].tolist()) or close
        total += 1
    one = statistics.median(seconds)
    report(
        "rerank",
        {
            "pool": pool, "labelled": labelled, "dim": dim, "k": k,
            "one_label_ms": one * 1e3, "one_label_p95_ms": float(np.quantile(seconds, 0.95)) * 1e3,
            "full_faiss_search_ms": full * 1e3, "times_faster": full / one,
            "compared_tasks": total, "equal_tasks": same,
        },
        as_json,
    )  # fmt: skip


@app.command()
def ingest(
    seconds: Annotated[float, typer.Option(min=1, help="How long to send.")] = 10,
    rate: Annotated[float, typer.Option(min=1, help="Webhooks per second.")] = 50,
    train: Annotated[bool, typer.Option(help="Train a classifier meanwhile.")] = True,
    as_json: Json = False,
) -> None:
    """Time from sending a webhook to its acknowledgement, while a training keeps the cores busy.

    Example: neat-backend bench ingest --seconds 5 --no-train
    """
    import httpx

    from neat_backend.settings import Settings
    from neat_backend.store.arrays import ProjectArrays
    from neat_backend.training import TrainingJob, TrainingProcess

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        port = free_port()
        env = {**os.environ, "NEAT_DATA_DIR": str(folder), "HOST": "127.0.0.1", "PORT": str(port), "DATABASE_URL": "",
               "BASIC_AUTH_USER": "", "BASIC_AUTH_PASS": "", "LOG_LEVEL": "WARNING"}  # fmt: skip
        code = "from neat_backend import serve, settings; serve.serve(settings.Settings.from_env(), worker_command=())"
        server = subprocess.Popen([sys.executable, "-c", code], env=env, stdin=subprocess.DEVNULL)
        training = None
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_for(lambda: httpx.get(url + "/health", timeout=1).status_code == 200)
            if train:
                arrays = ProjectArrays(folder, 1)
                rng = np.random.default_rng(0)
                ids = np.arange(2000)
                pictures = rng.integers(0, 255, (len(ids), 64, 64, 3), dtype=np.uint8)
                arrays.append("images/64", ids, ids, pictures)
                job = TrainingJob(
                    data_dir=str(folder), project=1, round=1, classes=("a", "b"), image_size=64, epochs=1000,
                    seed=0, holdout=0.0, device="cpu",
                )  # fmt: skip
                training = TrainingProcess(job, arrays.folder("training"), time_limit_seconds=3600)
                training.start(ids, rng.integers(0, 2, len(ids)))
                running = training
                _wait_for(lambda: running.progress() is not None, 120)
            taken, failed = _send(url, seconds, rate, Settings.from_env({}).threads)
        finally:
            if training is not None:
                training.stop()
            server.terminate()
            server.wait(30)
    report(
        "ingest",
        {
            "training": train, "sent": len(taken) + failed, "not_acknowledged": failed,
            "per_second": len(taken) / seconds, "p50_ms": float(np.quantile(taken, 0.5)) * 1e3,
            "p99_ms": float(np.quantile(taken, 0.99)) * 1e3, "max_ms": max(taken) * 1e3,
        },
        as_json,
    )  # fmt: skip


def _send(url: str, seconds: float, rate: float, threads: int) -> tuple[list[float], int]:
    """Post webhooks at a steady rate; seconds of those acknowledged, and how many were not."""
    import httpx

    taken: list[float] = []
    failed = 0
    with httpx.Client(timeout=10, trust_env=False) as client:
        began = time.perf_counter()
        for number in range(int(seconds * rate)):
            time.sleep(max(0.0, began + number / rate - time.perf_counter()))
            sent = time.perf_counter()
            try:
                client.post(url + "/webhook", json=webhook(number + 1)).raise_for_status()
            except httpx.HTTPError:
                failed += 1
            else:
                taken.append(time.perf_counter() - sent)
    return taken, failed


def webhook(number: int) -> dict[str, Any]:
    """A body such as Label Studio sends when an annotation is submitted."""
    result = [{"from_name": "class", "to_name": "image", "type": "choices", "value": {"choices": ["dog"]}}]
    moment = "2026-01-01T00:00:00.000000Z"
    return {
        "action": "ANNOTATION_CREATED",
        "annotation": {
            "id": number, "task": number, "project": 1, "result": result, "was_cancelled": False,
            "ground_truth": False, "completed_by": 1, "created_at": moment, "updated_at": moment,
        },
        "task": {"id": number, "data": {"image": f"/data/upload/1/{number}.png"}, "updated_at": moment},
        "project": {"id": 1, "title": "bench", "label_config": "<View/>", "sampling": "Sequential sampling"},
    }  # fmt: skip


def _wait_for(ready: Any, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except Exception:  # not up yet, whatever the reason
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"not ready within {seconds:.0f} s")
        time.sleep(0.1)
