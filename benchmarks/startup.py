"""`python -m benchmarks startup`: how soon the command line answers, beside an interpreter that imports typer alone."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Annotated

import typer

from benchmarks.report import Json, report

PROGRAM = ("-m", "neat_backend.cli")
RUNS: dict[str, tuple[str, ...]] = {
    "bare": ("-c", "pass"),
    "typer": ("-c", "import typer"),
    "version": (*PROGRAM, "--version"),
    "help": (*PROGRAM, "--help"),
    "command_help": (*PROGRAM, "status", "--help"),
    "status": (*PROGRAM, "status"),
}


def startup(
    repeat: Annotated[int, typer.Option(min=1, help="The median of so many, in turn.")] = 7, as_json: Json = False
) -> None:
    """Seconds of `python -c "import typer"`, of `--help` and of `status`, in turn; the ratio is that of processor time.

    Processor time is what a quiet machine would take, also on a busy one. `status` reads an empty database.

    Example: python -m benchmarks startup --repeat 3
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in RUNS}
    with tempfile.TemporaryDirectory() as folder:
        _cost(RUNS["status"], folder)  # makes the database, and bytecode
        for _ in range(repeat):
            for name, words in RUNS.items():
                found[name].append(_cost(words, folder))
    rows = [
        {
            "run": name,
            "seconds": statistics.median(wall for wall, _ in costs),
            "processor_seconds": statistics.median(cpu for _, cpu in costs),
        }
        for name, costs in found.items()
    ]
    by_name = {name: statistics.median(cpu for _, cpu in costs) for name, costs in found.items()}
    ratios = {f"{name}_times_typer": by_name[name] / by_name["typer"] for name in ("help", "command_help", "status")}
    report("startup", {"repeat": repeat, **ratios}, as_json, rows, of="run")


def _cost(words: Sequence[str], folder: str) -> tuple[float, float]:
    """Seconds on the clock, and of processor time."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    env = {**os.environ, "NEAT_DATA_DIR": folder, "DATABASE_URL": ""}
    subprocess.run([sys.executable, *words], env=env, stdout=subprocess.DEVNULL, check=True)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
