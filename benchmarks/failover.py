"""`python -m benchmarks failover`: how soon another worker serves the next order when a project's worker is gone."""

from __future__ import annotations

import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks import processes
from benchmarks.processes import ENCODER
from benchmarks.publish import CLASSES, INVALID, THUMBNAIL_SIDE, make_project, store
from benchmarks.report import Json, progress, report
from neat_backend.settings import Settings
from neat_backend.store import projects
from neat_backend.store.database import Database

# What happens to the owner, and what the other can know of it.
WAYS = {"killed": signal.SIGKILL, "cut_off": signal.SIGSTOP}
STARTED = " started"  # in the log of a worker that looks for projects


def failover(
    times: Annotated[int, typer.Option(min=1, help="How often the owner goes, in each of the two ways.")] = 5,
    tasks: Annotated[int, typer.Option(min=300, help="Tasks of the project.")] = 1_000,
    arrays_url: Annotated[
        str, typer.Option(help="As NEAT_ARRAYS_URL: each worker then has a data folder of its own.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Seconds from the end of a project's worker until what somebody labels just then is in the order that is served.

    On PostgreSQL (DATABASE_URL names an empty database, which is empty again afterwards) and a real Label Studio, with
    a web and two workers. killed: SIGKILL; the other sees that the process is dead. cut_off: SIGSTOP, which is what it
    sees of another host that hangs or has lost its network: nothing, until the lease has run out.

    Example: DATABASE_URL=postgresql://neat@localhost/neat python -m benchmarks failover --times 3
    """
    from neat_backend.demo.label_studio import LabelStudioServer

    settings = Settings.from_env()
    if "postgresql" not in settings.sqlalchemy_url:
        raise typer.BadParameter("two hosts need PostgreSQL: let DATABASE_URL name an empty database there")
    database = Database(settings.sqlalchemy_url)
    with (
        _empty(database),
        tempfile.TemporaryDirectory() as name,
        LabelStudioServer(Path(name) / "label-studio") as server,
    ):
        rows = _measure(server, Path(name), database, settings, arrays_url, tasks, times)
    figures = {"tasks": tasks, "arrays": "an object store" if arrays_url else "one folder"}
    report("failover", figures, as_json, rows, of="worker")


@contextmanager
def _empty(database: Database) -> Iterator[None]:
    """A database without projects, and without tables afterwards."""
    database.migrate()
    with database.read() as conn:
        if projects.all(conn):
            raise typer.BadParameter(f"there are projects in {database.shown}: let DATABASE_URL name an empty database")
    try:
        yield
    finally:
        database.migrate("base")
        database.dispose()


class _Worker:
    """A worker process, ready when `wait` returns."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.log_file = folder / f"worker-{secrets.token_hex(4)}.log"
        with self.log_file.open("wb") as log:
            command = [sys.executable, "-m", "neat_backend.cli", "worker"]
            self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait(self, seconds: float = 120) -> None:
        from neat_backend.errors import NeatError

        deadline = time.monotonic() + seconds
        while STARTED not in self.log_file.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise NeatError(f"a worker did not start: {self.log_file.read_text()[-2000:]}")
            time.sleep(0.1)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def _measure(
    server: Any, folder: Path, database: Database, settings: Settings, arrays_url: str, size: int, times: int
) -> list[dict[str, Any]]:
    from neat_backend.demo.backend import Backend, is_ranked, labelled
    from neat_backend.demo.label_studio import Annotator
    from neat_backend.demo.ports import free_port
    from neat_backend.models.encoders import build_encoder

    network = build_encoder(ENCODER, device="cpu")
    rng = np.random.default_rng(0)
    annotator = Annotator(server.url, server.token, timeout_seconds=600)
    items = [{"data": {"image": f"/data/local-files/?d=bench/{number}.png"}} for number in range(size)]
    project, ids = make_project(annotator, "fail-over", items)
    variables = {
        "DATABASE_URL": settings.database_url,
        "DATABASE_PASSWORD": settings.database_password.get_secret_value(),
        "NEAT_IMAGE_SIZE": str(THUMBNAIL_SIDE),
        "NEAT_ARRAYS_URL": arrays_url,
        "NEAT_PUBLISH_INTERVAL": "0.2",
    }
    base = {name: value for name, value in os.environ.items() if name not in Settings.variables()}
    begun = 0

    def start() -> _Worker:
        nonlocal begun
        home = folder / (f"host-{begun % 2}" if arrays_url else "host-0")
        begun += 1
        return _Worker(folder, base | processes.settings(server, home, **variables))

    refs = [item["data"]["image"] for item in items]
    store(folder / "host-0", project, ids, refs, network.key, network.dim, rng)
    web_home = folder / ("web" if arrays_url else "host-0")
    web = Backend(free_port(), folder / "web.log", processes.settings(server, web_home, **variables), command="web")
    workers = [start()]
    try:
        web.start()
        annotator.connect_backend(project, web.url)
        web.wait_until(project, is_ranked, every_seconds=0.25)
        rows, count = [], 0
        for way, number in WAYS.items():
            seconds = []
            for _ in range(times):
                workers.append(start())
                workers[-1].wait()
                task = annotator.next_task(project)
                assert task is not None
                with database.read() as conn:
                    before = projects.lease_owner(conn, project)
                workers[0].process.send_signal(number)
                if way == "killed":
                    workers[0].process.wait()  # a process that nobody has waited for is not gone
                began, count = time.monotonic(), count + 1
                annotator.annotate(task, [*CLASSES, INVALID][int(rng.integers(len(CLASSES) + 1))])
                web.wait_until(
                    project,
                    lambda now, wanted=count: labelled(now) >= wanted and now["caught_up"],  # type: ignore[misc]
                    seconds=120,
                )
                seconds.append(time.monotonic() - began)
                with database.read() as conn:
                    assert before != projects.lease_owner(conn, project)
                workers.pop(0).end()
                progress.print(f"{way}: {seconds[-1]:.1f} s")
            rows.append(
                {
                    "worker": way,
                    "times": times,
                    "median_s": statistics.median(seconds),
                    "least_s": min(seconds),
                    "most_s": max(seconds),
                }
            )
        return rows
    finally:
        for worker in workers:
            worker.end()
        web.stop()
