"""`python -m benchmarks export`: seconds and memory of exports of a large labelled project, made up."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.memory import resident
from benchmarks.report import Json, progress, report

FORMATS = ("csv", "jsonl", "parquet", "manifest")
ROWS_AT_ONCE = 10_000
PART = 10  # memory is measured with a tenth of the labels too: what grows with them shows
CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="class" toName="image" choice="single">'
    + "".join(f'<Choice value="class {number}"/>' for number in range(10))
    + '<Choice value="none" invalid="true"/></Choices></View>'
)


def export(
    labels: Annotated[int, typer.Option(min=PART, help="Labelled tasks.")] = 1_000_000,
    formats: Annotated[str, typer.Option(help=f"Of {', '.join(FORMATS)}; separated by commas.")] = ",".join(FORMATS),
    as_json: Json = False,
) -> None:
    """Exports of a project in which every task is labelled, compared with only reading the same rows.

    Each in a process of its own; `manifest` is a folder without images. Memory is the most that was ever resident.

    Example: python -m benchmarks export --labels 100000
    """
    wanted = formats.split(",")
    if not set(wanted) <= set(FORMATS):
        raise typer.BadParameter(f"--formats {formats!r}: give some of {', '.join(FORMATS)}")
    if not Path("/proc/self/status").exists():
        raise typer.BadParameter("memory is read from /proc, which this system does not have")
    with tempfile.TemporaryDirectory() as folder:
        for project, count in ((1, labels), (2, labels // PART)):
            progress.print(f"a project of {count:,} labels …")
            make(Path(folder), project, count)
        reading = _probe(folder, 1, "nothing")
        rows = []
        for name in wanted:
            progress.print(f"{name} …")
            part, whole = _probe(folder, 2, name), _probe(folder, 1, name)
            rows.append(
                {
                    "format": name,
                    "seconds": whole["seconds"],
                    "labels_per_second": labels / whole["seconds"],
                    "seconds_against_reading": whole["seconds"] / reading["seconds"],
                    "most_mb": whole["most_mb"],
                    "most_mb_with_a_tenth": part["most_mb"],
                    "file_mb": whole["file_mb"],
                }
            )
    report(
        "export",
        {"labels": labels, "reading_seconds": reading["seconds"], "reading_most_mb": reading["most_mb"]},
        as_json,
        rows,
        "format",
    )


def make(folder: Path, project: int, count: int) -> None:
    """A store with a project of so many tasks, each labelled by one annotator."""
    from neat_backend.records import Annotation, Task
    from neat_backend.settings import Settings
    from neat_backend.store import projects, selections, tasks
    from neat_backend.store.database import Database
    from neat_backend.store.selections import Selection

    settings = Settings.from_env({}, data_dir=folder)
    database = Database(settings.sqlalchemy_url)
    database.migrate()
    began = datetime(2026, 1, 1, tzinfo=timezone.utc)
    with database.begin() as conn:
        projects.save_connection(conn, project, label_config=CONFIG)
    for start in range(1, count + 1, ROWS_AT_ONCE):
        ids = range(start, min(start + ROWS_AT_ONCE, count + 1))
        at = {task: began + timedelta(seconds=task) for task in ids}
        answers = [
            Annotation(task, task, 1, {"class": (f"class {task % 10}",)}, False, False, at[task]) for task in ids
        ]
        with database.begin() as conn:
            tasks.upsert_tasks(conn, project, [Task(n, f"/data/upload/{project}/{n:08d}.jpg", at[n]) for n in ids], 1)
            tasks.upsert_annotations(conn, project, answers, 1)
            selections.note(conn, project, {task: Selection(task % 50, task / count) for task in ids})
    database.dispose()


def write(folder: str, project: int, name: str) -> dict[str, float]:
    """In a process of its own: one export."""
    from neat_backend import exports
    from neat_backend.settings import Settings
    from neat_backend.store.database import Database

    settings = Settings.from_env({}, data_dir=Path(folder))
    database = Database(settings.sqlalchemy_url)
    target = Path(folder) / f"out-{project}-{name}"
    began = time.monotonic()
    if name == "nothing":
        assert sum(1 for _ in exports.rows(settings, database, project, exports.Wanted()))
    elif name == "manifest":
        exports.export(settings, database, project, target, exports.Options(format="folder", images="manifest"))
        target = target / "manifest.csv"
    else:
        exports.export(settings, database, project, target, exports.Options(format=name))
    seconds = time.monotonic() - began
    size = target.stat().st_size / 1e6 if target.exists() else 0.0
    return {"seconds": seconds, "most_mb": resident()["most_mb"], "file_mb": size}


def _probe(folder: str, project: int, name: str) -> dict[str, float]:
    call = f"write({folder!r}, {project}, {name!r})"
    code = f"import json; from benchmarks.export import write; print(json.dumps({call}))"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
