"""`python -m benchmarks first-order`: from connecting a project to the first order that annotators are served."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import processes
from benchmarks.processes import ENCODER, Against, cpu_seconds_below
from benchmarks.publish import LABEL_CONFIG, FastImport, started
from benchmarks.report import Json, numbers, progress, report
from benchmarks.samples import make_files

FILES, SIDE = 64, 256  # different images, and their side in pixels; many tasks share one
LOOK_SECONDS = 0.05
HANGS_SECONDS = 1800.0
SETTLE_SECONDS = 5.0  # after the worker's start; in use it has been running for longer
WORKER = "neat_backend.worker.worker"  # the logger of its start
AIM_SECONDS = 5.0
# Lines of the worker's log, by the words that they hold: what takes the time until the first order.
STAGES = {
    "connected": "connected from",
    "loaded": "tasks with features",
    "slice_read": "tasks read for a first order",
    "encoder_ready": "ready in",
    "slice_encoded": "images embedded",
    "published": "on, ",
}
Times = dict[str, float]


def first_order(
    tasks: Annotated[str, typer.Option(help="Sizes of projects.")] = "10000",
    repeat: Annotated[int, typer.Option(min=1, help="Projects of each size; the median is reported.")] = 1,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Until all is read and encoded, not only the first order.")
    ] = True,
    against: Against = None,
    fast_import: FastImport = False,
    as_json: Json = False,
) -> None:
    """Seconds from connecting a project (POST /api/ml) until progress is shown and the first order is served.

    A real Label Studio on SQLite serves the images, of which there are 64 for all tasks. Its table of tasks is filled
    by SQL. Web and worker have just been started, and nothing is stored or loaded yet. The first order is served when
    the project's model version is ours; then `next` has to give a task of it. Processor time until then is that of
    our processes, and of Label Studio's.

    Example: python -m benchmarks first-order --tasks 10000 --no-wait
    """
    sizes = numbers(tasks, "--tasks", least=600)
    checkouts = processes.checkouts(against)
    rows = []
    for size in sizes:
        found: dict[str, list[Times]] = {name: [] for name in checkouts}
        with tempfile.TemporaryDirectory() as name, started(Path(name) / "label-studio", fast_import) as server:
            make_files(server.document_root / "bench", FILES, SIDE, "jpg", np.random.default_rng(0))
            for number in range(repeat):
                for build, checkout in list(checkouts.items())[:: -1 if number % 2 else 1]:
                    progress.print(f"{build}: a project of {size:,} tasks …")
                    folder = Path(name) / f"backend-{build.replace(' ', '-')}-{number}"
                    found[build].append(_measure(server, folder, checkout, size, wait))
        for build, runs in found.items():
            medians = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            rows.append({"run": f"{size:,}, {build}", **medians})
    report(
        "first-order",
        {
            "repeat": repeat,
            "images": f"{FILES} files of {SIDE} px, used by all tasks",
            "encoder": ENCODER,
            "fast_import": fast_import,
            "aim": f"at most {AIM_SECONDS:.0f} s from connecting to the first order",
        },
        as_json,
        rows,
        of="run",
    )


def _measure(server: Any, folder: Path, checkout: Path, size: int, wait: bool) -> Times:
    """One project, made, filled and connected to a backend that has just started; what took how long."""
    from neat_backend.demo.label_studio import Annotator

    annotator = Annotator(server.url, server.token, timeout_seconds=HANGS_SECONDS)
    project = annotator.create_project(f"{size} tasks", LABEL_CONFIG)
    annotator.add_local_files(project, server.document_root / "bench")
    (first,) = annotator.import_tasks(project, [{"data": {"image": image(0)}}])
    fill(server.folder / "label_studio.sqlite3", first, size)
    backend = processes.backend(server, folder, checkout, NEAT_LOG_FORMAT="json")
    try:
        backend.start()
        _wait_for_worker(backend.log_file)
        found = _follow(server, annotator, backend, project, wait)
    finally:
        backend.stop()
    return found


def _follow(server: Any, annotator: Any, backend: Any, project: int, wait: bool) -> Times:
    ours, theirs = cpu_seconds_below(backend.pid), cpu_seconds_below(server.pid)
    connected_at, began = time.time(), time.perf_counter()
    annotator.connect_backend(project, backend.url)
    found = {"connect_answered_s": time.perf_counter() - began}
    while not {"progress_s", "first_order_s"} <= found.keys():
        status = backend.status(project)
        if "progress_s" not in found and status["progress"]["eta_seconds"] is not None:
            found["progress_s"] = time.perf_counter() - began
        if "first_order_s" not in found and status["model_version"] != "neat":
            found["first_order_s"] = time.perf_counter() - began
            found["our_processor_s"] = cpu_seconds_below(backend.pid) - ours
            found["label_studio_processor_s"] = cpu_seconds_below(server.pid) - theirs
        _give_up(began, status)
        time.sleep(LOOK_SECONDS)
    switched = annotator.call("GET", f"/api/projects/{project}/?include=id,model_version")["model_version"]
    assert switched.startswith("neat-r"), switched
    asked = time.perf_counter()
    task = annotator.next_task(project)
    found["next_answered_s"] = time.perf_counter() - asked
    assert annotator.call("GET", f"/api/predictions/?task={task}&project={project}"), f"task {task} has no prediction"
    found |= {f"log_{name}_s": at - connected_at for name, at in _stages(backend.log_file).items()}
    while wait:
        status = backend.status(project)
        if "all_read_s" not in found and status["synced_at"] is not None:
            found["all_read_s"] = time.perf_counter() - began
        if status["state"] == "ready" and status["tasks"]["pending"] == 0 and "all_read_s" in found:
            found["all_encoded_s"] = time.perf_counter() - began
            break
        _give_up(began, status)
        time.sleep(1)
    return found


def _wait_for_worker(log_file: Path) -> None:
    began = time.perf_counter()
    while not any(line["logger"] == WORKER and line["message"].endswith("started") for line in _lines(log_file)):
        _give_up(began, {})
        time.sleep(LOOK_SECONDS)
    time.sleep(SETTLE_SECONDS)


def _give_up(began: float, status: Mapping[str, Any]) -> None:
    if time.perf_counter() - began > HANGS_SECONDS:
        raise RuntimeError(f"not there after {HANGS_SECONDS:.0f} s: {status}")


def _stages(log_file: Path) -> Times:
    """When the worker logged each stage first, as seconds since 1970."""
    found: Times = {}
    for line in _lines(log_file):
        for name, words in STAGES.items():
            if words in line["message"] and name not in found:
                found[name] = datetime.fromisoformat(line["time"].replace("Z", "+00:00")).timestamp()
    return found


def _lines(log_file: Path) -> list[dict[str, Any]]:
    """The lines of a log in JSON; others are left out."""
    found = []
    for text in log_file.read_text().splitlines():
        with contextlib.suppress(ValueError):
            found.append(json.loads(text))
    return [line for line in found if isinstance(line, dict)]


def image(number: int) -> str:
    return f"/data/local-files/?d=bench/{number % FILES:06d}.jpg"


def fill(database: Path, task: int, size: int) -> None:
    """Copy a task in Label Studio's SQLite file until its project has so many, each with one of the images."""
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as conn, conn:
        names = [row[1] for row in conn.execute("PRAGMA table_info(task)")]
        row = dict(zip(names, conn.execute("SELECT * FROM task WHERE id = ?", (task,)).fetchone(), strict=True))
        marks = ", ".join("?" for _ in names)
        conn.executemany(f"INSERT INTO task ({', '.join(names)}) VALUES ({marks})", _copies(row, size))


def _copies(row: Mapping[str, Any], size: int) -> Iterable[tuple[Any, ...]]:
    for number in range(1, size):
        more = {
            "id": row["id"] + number,
            "inner_id": row["inner_id"] + number,
            "data": json.dumps({"image": image(number)}),
        }
        yield tuple({**row, **more}.values())
