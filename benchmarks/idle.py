"""`python -m benchmarks idle`: what a worker costs while nobody labels, and how soon it serves the next label."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import processes
from benchmarks.processes import ENCODER, Against, cpu_seconds
from benchmarks.publish import CLASSES, INVALID, LABELLED_BEFORE, THUMBNAIL_SIDE, make_project, store
from benchmarks.report import Json, progress, quantile, report

SETTLE_SECONDS = 190.0  # after the last project is served: comparisons read what has changed within two minutes again
WORKER = "neat_backend.cli worker"


@dataclass
class Build:
    """A backend of one checkout, with projects of its own."""

    name: str
    backend: Any
    projects: list[int]
    pid: int = 0  # the worker's
    rest: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)  # of each label

    def row(self) -> dict[str, Any]:
        served = {f"label_to_served_p{share}_s": quantile(self.seconds, share / 100) for share in (50, 95)}
        return {"build": self.name, **self.rest, "labels": len(self.seconds), **served}


def idle(
    projects: Annotated[int, typer.Option(min=1, help="Projects of the worker, all in memory.")] = 20,
    tasks: Annotated[int, typer.Option(min=100, help="Tasks of each project.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, help="Time at rest that is measured.")] = 60,
    labels: Annotated[int, typer.Option(min=1, help="Annotations that are timed, in turn.")] = 20,
    pause: Annotated[float, typer.Option(min=0, help="Seconds between them.")] = 2.5,
    against: Against = None,
    as_json: Json = False,
) -> None:
    """Processor time, threads and wake-ups of a worker while nothing happens, then seconds from a label to its order.

    With a real Label Studio; features are made up and put into the store beforehand, as in `publish`. Both checkouts
    rest during the same seconds, each with projects of its own, and the labels are given in turn. Processor time is
    that of the worker's process alone, of one core; wake-ups are its threads' voluntary context switches.

    Example: python -m benchmarks idle --projects 2 --seconds 10 --labels 3
    """
    from neat_backend.demo.label_studio import LabelStudioServer

    checkouts = processes.checkouts(against)
    with (
        tempfile.TemporaryDirectory() as name,
        LabelStudioServer(Path(name) / "label-studio") as server,
        ExitStack() as stack,
    ):
        builds = [
            _start(stack, server, Path(name) / f"backend-{number}", checkout, of, projects, tasks)
            for number, (of, checkout) in enumerate(checkouts.items())
        ]
        time.sleep(SETTLE_SECONDS)
        progress.print(f"at rest for {seconds:.0f} s …")
        rest(builds, seconds)
        _label(server, builds, labels, pause)
    rows = [build.row() for build in builds]
    figures: dict[str, Any] = {"projects": projects, "tasks": tasks, "seconds": seconds}
    if against:
        for name in ("core_percent", "threads", "label_to_served_p50_s", "label_to_served_p95_s"):
            figures[f"{name}_of_the_other"] = rows[0][name] / max(rows[1][name], 1e-9)
    report("idle", figures, as_json, rows, of="build")


def _start(stack: ExitStack, server: Any, folder: Path, checkout: Path, name: str, projects: int, tasks: int) -> Build:
    from neat_backend.demo.backend import is_ranked
    from neat_backend.demo.label_studio import Annotator, choices_result
    from neat_backend.models.encoders import build_encoder

    network = build_encoder(ENCODER, device="cpu")
    annotator = Annotator(server.url, server.token, timeout_seconds=600)
    pictures = [{"data": {"image": f"/data/local-files/?d=bench/{number}.png"}} for number in range(tasks)]
    choices = [*CLASSES, INVALID]
    items: list[dict[str, Any]] = [
        {**picture, "annotations": [{"result": choices_result(choices[number % len(choices)])}]}
        for number, picture in enumerate(pictures[:LABELLED_BEFORE])
    ]
    items += pictures[LABELLED_BEFORE:]
    size, most = str(THUMBNAIL_SIDE), str(projects)
    backend = processes.backend(server, folder, checkout, NEAT_IMAGE_SIZE=size, NEAT_MAX_LIVE_PROJECTS=most)
    made = []
    for number in range(projects):
        project, ids = make_project(annotator, f"{name} {number}", items)
        refs = [picture["data"]["image"] for picture in pictures]
        store(folder / "data", project, ids, refs, network.key, network.dim, np.random.default_rng(number))
        made.append(project)
    backend.start()
    stack.callback(backend.stop)
    for project in made:
        annotator.connect_backend(project, backend.url)
        progress.print(f"{name}: project {project} …")
        backend.wait_until(project, is_ranked, every_seconds=0.25)
    (pid,) = backend.children(WORKER)
    return Build(name, backend, made, pid)


def rest(builds: list[Build], seconds: float) -> None:
    """Measure all workers during the same seconds."""
    before = [(time.monotonic(), cpu_seconds(build.pid), _of_thread(build.pid)) for build in builds]
    time.sleep(seconds)
    for build, (began, cpu, switches) in zip(builds, before, strict=True):
        took = time.monotonic() - began
        threads, active = processes.usage(build.pid).threads, _active_threads(build.pid)
        build.rest = {
            "core_percent": 100 * (cpu_seconds(build.pid) - cpu) / took,
            "threads": threads,
            "active_threads": active,
            "wake_ups_per_second": sum(n - switches.get(name, 0) for name, n in _of_thread(build.pid).items()) / took,
        }


def _of_thread(pid: int) -> dict[str, int]:
    """Voluntary context switches of each thread that exists now."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                found[task.name] = int(line.split()[1])
    return found


def _active_threads(pid: int, seconds: float = 5.0) -> int:
    """Threads that did anything within some seconds."""
    before = _of_thread(pid)
    time.sleep(seconds)
    return sum(count != before.get(name) for name, count in _of_thread(pid).items())


def _label(server: Any, builds: list[Build], labels: int, pause: float) -> None:
    """Annotate a task in a project of each build in turn, and wait until the order reflects it."""
    from neat_backend.demo.backend import labelled
    from neat_backend.demo.label_studio import Annotator

    annotator = Annotator(server.url, server.token, timeout_seconds=600)
    rng = np.random.default_rng(0)
    choices = [*CLASSES, INVALID]
    for number in range(labels):
        for build in builds if number % 2 else builds[::-1]:
            time.sleep(pause)
            project = build.projects[number % len(build.projects)]
            wanted = labelled(build.backend.status(project)) + 1
            task = annotator.next_task(project)
            assert task is not None
            began = time.perf_counter()
            annotator.annotate(task, choices[rng.integers(len(choices))])
            build.backend.wait_until(
                project,
                lambda now, wanted=wanted: labelled(now) >= wanted and now["caught_up"],
            )
            build.seconds.append(time.perf_counter() - began)
