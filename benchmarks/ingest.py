"""`python -m benchmarks ingest`: how long a webhook waits for its acknowledgement."""

from __future__ import annotations

import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import numpy as np
import typer

from benchmarks.report import Json, quantile, report
from benchmarks.web import serving, wait_for, webhook

SENDERS = 4


def ingest(
    seconds: Annotated[float, typer.Option(min=1, help="How long to send.")] = 10,
    rate: Annotated[float, typer.Option(min=1, help="Webhooks per second.")] = 200,
    train: Annotated[bool, typer.Option(help="Train a classifier meanwhile.")] = True,
    as_json: Json = False,
) -> None:
    """Time from sending a webhook to its acknowledgement, while a training keeps the cores busy.

    Example: python -m benchmarks ingest --seconds 5 --no-train
    """
    from neat_backend.store.arrays import ProjectArrays
    from neat_backend.worker.steps.training import TrainingJob, TrainingProcess

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        training = None
        with serving(folder) as (url, _):
            try:
                if train:
                    arrays = ProjectArrays(folder, 1)
                    rng = np.random.default_rng(0)
                    ids = np.arange(2000)
                    pictures = rng.integers(0, 255, (len(ids), 64, 64, 3), dtype=np.uint8)
                    arrays.append("images/64", ids, ids, pictures)
                    job = TrainingJob(
                        data_dir=str(folder),
                        project=1,
                        round=1,
                        classes=("a", "b"),
                        image_size=64,
                        epochs=1000,
                        seed=0,
                        holdout=0.0,
                        device="cpu",
                    )
                    training = TrainingProcess(job, arrays.folder("training"), time_limit_seconds=3600)
                    training.start(ids, rng.integers(0, 2, len(ids)))
                    running = training
                    wait_for(lambda: running.progress() is not None, 120)
                taken, failed = send(url, seconds, rate)
            finally:
                if training is not None:
                    training.stop()
    figures = {"training": train, "asked_per_second": rate, "sent": len(taken) + failed, "not_acknowledged": failed}
    if not taken:
        report("ingest", figures, as_json)
        raise typer.Exit(1)
    report(
        "ingest",
        {
            **figures,
            "per_second": len(taken) / seconds,
            "p50_ms": quantile(taken, 0.5) * 1e3,
            "p99_ms": quantile(taken, 0.99) * 1e3,
            "max_ms": max(taken) * 1e3,
            "aim": "p99 at most 50 ms at 200 a second while training",
        },
        as_json,
    )


def send(url: str, seconds: float, rate: float) -> tuple[list[float], int]:
    """Post webhooks at a steady rate, as several request threads of Label Studio do: seconds of those acknowledged,
    and how many were not.

    One that should have gone while its sender waited for another counts from when it should have gone: a stall is
    felt by all whom it holds up.
    """
    began = time.perf_counter() + 0.1
    with ThreadPoolExecutor(SENDERS) as senders:
        numbers = [range(first, int(seconds * rate), SENDERS) for first in range(SENDERS)]
        parts = list(senders.map(lambda mine: _send(url, began, rate, mine), numbers))
    return [each for taken, _ in parts for each in taken], sum(failed for _, failed in parts)


def _send(url: str, began: float, rate: float, numbers: range) -> tuple[list[float], int]:
    """One sender's share. The standard library's client: the sender must not be what is measured."""
    address = urlsplit(url)
    taken: list[float] = []
    failed = 0
    connection = HTTPConnection(address.hostname or "", address.port, timeout=60)
    with closing(connection):
        for number in numbers:
            due = began + number / rate
            body = json.dumps(webhook(number + 1)).encode()
            time.sleep(max(0.0, due - time.perf_counter()))
            try:
                connection.request("POST", "/webhook", body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, HTTPException):
                connection.close()
                failed += 1
                continue
            if answer.status >= 300:
                failed += 1
            else:
                taken.append(time.perf_counter() - due)
    return taken, failed
