"""`python -m benchmarks soak`: hours of work in a real Label Studio; does memory stay flat, and is nothing lost?"""

from __future__ import annotations

import csv
import json
import signal
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import processes
from benchmarks.person import INVALID, Person, Pictures
from benchmarks.processes import FIGURES, Usage
from benchmarks.rebuild import differences, rebuilt
from benchmarks.report import Json, progress, report
from neat_backend.demo.backend import Backend, is_ranked
from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from neat_backend.errors import NeatError

SETTINGS = {
    "NEAT_K": "5",
    "NEAT_BATCH_SIZE": "20",
    "NEAT_EPOCHS": "2",
    "NEAT_IMAGE_SIZE": "32",
    "NEAT_CLASSIFIER_WEIGHTS": "scratch",
}
LONGEST_RECONCILE_SECONDS, COMPARISONS = 15, 4  # the least number of comparisons, in a short run too
QUIET_SECONDS = 3.0  # without work until the backend counts as idle
AT_REST_WITHIN_SECONDS = 900.0
SAY_EVERY_SECONDS = 60.0


@dataclass(frozen=True)
class Sample:
    """One sample of the processes and the queue, some seconds after the stream began."""

    seconds: float
    web: Usage
    worker: Usage
    queued: int
    oldest_seconds: float


@dataclass
class Sampler:
    """A context manager that samples web and worker every few seconds, in a thread of its own."""

    backend: Backend
    project: int
    every_seconds: float
    samples: list[Sample] = field(default_factory=list)
    pids: dict[str, set[int]] = field(default_factory=lambda: {"web": set(), "worker": set()})

    def __enter__(self) -> Sampler:
        self._began = time.monotonic()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        self._thread.join()

    @property
    def restarts(self) -> int:
        return sum(len(pids) - 1 for pids in self.pids.values())

    def _run(self) -> None:
        while True:
            with suppress(NeatError, OSError, ValueError):
                self._look()
            if self._stopping.wait(self.every_seconds):
                return

    def _look(self) -> None:
        masters, workers = self.backend.children("gunicorn"), self.backend.children("neat_backend.cli worker")
        for name, found in (("web", masters), ("worker", workers)):
            self.pids[name].update(found)
        web = processes.total([*masters, *(child for one in masters for child in processes.children(one))])
        worker = processes.total(workers)  # a training beside it is a process of its own, and ends
        queue = self.backend.status(self.project)["queue"]
        if web is not None and worker is not None:
            now = time.monotonic() - self._began
            self.samples.append(Sample(now, web, worker, queue["count"], queue["oldest_seconds"]))


def soak(
    minutes: Annotated[
        float, typer.Option(min=0.05, help="How long to work; before and after it come some more.")
    ] = 30,
    tasks: Annotated[int, typer.Option(min=20, help="Tasks in the project, about.")] = 200,
    per_minute: Annotated[float, typer.Option(min=1, help="Doings a minute; some are of several tasks.")] = 90,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks at the processes.")] = 5,
    database_url: Annotated[str, typer.Option(help="An empty PostgreSQL database; SQLite if left out.")] = "",
    seed: Annotated[int, typer.Option(help="Of what is done in which order.")] = 0,
    samples: Annotated[Path | None, typer.Option(help="Write all samples to this CSV file.")] = None,
    as_json: Json = False,
) -> None:
    """Hours of work in a real Label Studio: web and worker must not grow, and the state must be right.

    A simulated person labels what is served, changes and takes back labels, skips, imports, deletes, exchanges
    images and presses “Start Training”; rounds are trained meanwhile. At the end the labels that the backend tells
    are compared with what the person did, and order, scores and neighbours with an engine built anew from a full
    read of Label Studio. Memory (RSS, and what of it is no file's) is flat when its median in the last third of the
    run is at most 5 % or 16 MB above that of the first, after a warm-up of a fifth; handles and threads when their
    floor has not risen by more than 2.
    Exit code 1 when anything is not as it should be.

    Example: python -m benchmarks soak --minutes 1
    """
    # SIGTERM ends the servers too, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rng = np.random.default_rng(seed)
    with (
        tempfile.TemporaryDirectory(prefix="neat-soak-") as name,
        LabelStudioServer(Path(name) / "label-studio") as server,
    ):
        folder = Path(name)
        annotator = Annotator(server.url, server.token)
        person = Person(annotator, Pictures(server.document_root / "digits"), tasks, rng)
        reconcile_seconds = min(LONGEST_RECONCILE_SECONDS, minutes * 60 / COMPARISONS)
        place = {"DATABASE_URL": database_url, "NEAT_RECONCILE_SECONDS": f"{reconcile_seconds:g}"}
        backend = processes.backend(server, folder, processes.HERE, **SETTINGS, **place)
        sampler: Sampler | None = None
        try:
            backend.start()
            person.backend = annotator.connect_backend(person.project, backend.url)
            progress.print(f"{tasks} images are being encoded …")
            backend.wait_until(person.project, is_ranked, every_seconds=0.25)
            with Sampler(backend, person.project, every) as sampler:
                worked = _work(person, minutes * 60, per_minute, rng)
                rest = _rest(backend, person, reconcile_seconds)
            figures = worked | _compared(server, backend, person, folder / "data") | rest
            status = backend.status(person.project)
        finally:
            if samples is not None and sampler is not None:
                write(samples, sampler.samples)
            backend.stop()
        log = backend.log_file.read_text(errors="replace").splitlines()
    assert sampler is not None
    rows = [_row(of, sampler.samples) for of in ("web", "worker")]
    flat = [row[key] for row in rows for key in row if key.endswith("flat")]
    errors = [line for line in log if " ERROR " in line or line.startswith("Traceback")]
    figures |= {
        "events": status["received_through"],
        "events_set_aside": status["queue"]["set_aside"],
        "rounds": sum(one["state"] == "done" for one in status["rounds"]),
        "rounds_failed": sum(one["state"] == "failed" for one in status["rounds"]),
        "most_queued": max(one.queued for one in sampler.samples),
        "longest_queued_seconds": max(one.oldest_seconds for one in sampler.samples),
        "restarts": sampler.restarts,
        "errors_logged": len(errors),
        "samples": len(sampler.samples),
        "flat": False if False in flat else None if None in flat else True,
    }
    good = _is_good(figures)
    report("soak", figures | {"good": good}, as_json, rows, of="process")
    for line in [*figures["different"][:10], *errors[:10]]:
        progress.print(line, markup=False)
    if not good:
        raise typer.Exit(1)


def _is_good(figures: dict[str, Any]) -> bool:
    """Whether nothing was lost, different or broken, and nothing grew (where there is a verdict)."""
    zeros = ("labels_lost", "labels_too_many", "events_set_aside", "rounds_failed", "restarts", "errors_logged")
    return figures["flat"] is not False and not figures["different"] and not any(figures[name] for name in zeros)


def _work(person: Person, seconds: float, per_minute: float, rng: np.random.Generator) -> dict[str, Any]:
    """Perform actions at random moments for some seconds; returns what was done."""
    began, said = time.monotonic(), 0.0
    while (now := time.monotonic() - began) < seconds:
        if now - said >= SAY_EVERY_SECONDS:
            said = now
            progress.print(f"{now / 60:.0f} of {seconds / 60:.0f} minutes, {sum(person.done.values())} actions")
        pause = float(rng.exponential(60 / per_minute))
        person.act()
        time.sleep(max(0.0, min(pause - (time.monotonic() - began - now), seconds - now)))
    return {
        "seconds": time.monotonic() - began,
        "doings": sum(person.done.values()),
        **_sorted(person.done),
        "refused_by_label_studio": person.refused,
    }


def _sorted(done: Counter[str]) -> dict[str, int]:
    return {f"done_{name}": count for name, count in sorted(done.items())}


def _rest(backend: Backend, person: Person, reconcile_seconds: float) -> dict[str, Any]:
    """Wait until all work is done: events, images, comparisons, rounds. Returns how long that took."""
    began = time.monotonic()
    quiet_since = began
    while (
        time.monotonic() - quiet_since < QUIET_SECONDS or time.monotonic() - began < reconcile_seconds + QUIET_SECONDS
    ):
        status = backend.status(person.project)
        running = any(one["state"] == "running" for one in status["rounds"])
        same = status["tasks"]["tasks"] == len(person.images)
        if not is_ranked(status) or running or not same:
            quiet_since = time.monotonic()
        if time.monotonic() - began > AT_REST_WITHIN_SECONDS:
            progress.print(f"not at rest within {AT_REST_WITHIN_SECONDS:.0f} s: {status}", markup=False)
            break
        time.sleep(0.25)
    return {"seconds_to_rest": time.monotonic() - began}


def _compared(server: LabelStudioServer, backend: Backend, person: Person, data_dir: Path) -> dict[str, Any]:
    """Compare the backend's labels with the person's, and all else with a fresh engine."""
    from neat_backend.labelstudio.client import LabelStudioClient
    from neat_backend.settings import Settings

    exported = exported_labels(backend, person.project)
    wanted = {task: "" if choice == INVALID else choice for task, choice in person.labels.items()}
    settings = Settings.from_env(SETTINGS)
    engine = rebuilt(LabelStudioClient(server.url, server.token), data_dir, person.project, settings)
    different = differences(backend, person.project, engine)
    lost = sorted(task for task, choice in wanted.items() if exported.get(task) != choice)
    too_many = sorted(set(exported) - set(wanted))
    different += [f"task {task} is labelled {exported.get(task)}, not {wanted[task]}" for task in lost]
    different += [f"task {task} is labelled {exported[task]}, and should not be" for task in too_many]
    return {
        "tasks": len(person.images),
        "labelled": len(wanted),
        "labels_lost": len(lost),
        "labels_too_many": len(too_many),
        "equals_rebuild": not different,
        "different": different,
    }


def exported_labels(backend: Backend, project: int) -> dict[int, str]:
    """Every label in the export: task → choice, "" for an invalid one."""
    path = f"/api/projects/{project}/export?format=jsonl&include_invalid=1"
    rows = [json.loads(line) for line in backend.text(path).splitlines()]
    return {int(row["task"]): str(row["label"]) for row in rows}


def _row(of: str, samples: list[Sample]) -> dict[str, Any]:
    """The trends of one process."""
    row: dict[str, Any] = {"process": of}
    for name in FIGURES:
        values = [getattr(getattr(sample, of), name) for sample in samples]
        found = processes.trend([sample.seconds for sample in samples], values, counts=not name.endswith("_mb"))
        parts = {part: value for part, value in asdict(found).items() if (name, part) != ("pss_mb", "flat")}
        row |= {f"{name}_{part}": value for part, value in parts.items()}
    return row


def write(path: Path, samples: list[Sample]) -> None:
    """All samples as CSV, one line each."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [f"{of}_{name}" for of in ("web", "worker") for name in FIGURES]
        writer.writerow(["seconds", *names, "queued", "oldest_seconds"])
        for one in samples:
            values = [getattr(getattr(one, of), name) for of in ("web", "worker") for name in FIGURES]
            writer.writerow([round(one.seconds, 2), *(round(v, 3) for v in values), one.queued, one.oldest_seconds])
