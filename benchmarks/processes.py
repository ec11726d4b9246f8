"""Backends to measure; memory, file handles, threads and processor time of processes, from /proc (Linux)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

if TYPE_CHECKING:
    from neat_backend.demo.backend import Backend
    from neat_backend.demo.label_studio import LabelStudioServer

HERE = Path(__file__).parents[1]
ENCODER = "efficientnet_lite0"
MEGABYTE = 1e6
WARM_UP_SHARE = 0.2  # of a run: caches fill, libraries are loaded at their first use
FEWEST_SAMPLES, SHORTEST_SECONDS = 30, 240.0  # after the warm-up; with less, there is no verdict
GROWTH_SHARE, GROWTH_MB = 0.05, 16.0  # of memory from the first third to the last that still counts as flat
GROWTH_COUNT = 2.0  # of handles and threads: a request that is answered just then holds some


Against = Annotated[
    Path | None, typer.Option(help="Another checkout of this repository, measured in turn in the same run.")
]


@dataclass(frozen=True)
class Usage:
    """Resources of one process, or of several together."""

    rss_mb: float
    pss_mb: float  # pages that n processes share count 1/n for each: moves when others come and go
    anonymous_mb: float  # what it has allocated: no files, no libraries
    handles: float
    threads: float


FIGURES = tuple(field.name for field in fields(Usage))


@dataclass(frozen=True)
class Trend:
    """A series after its warm-up: the level of its first and of its last third, its maximum, its slope."""

    first: float
    last: float
    most: float
    per_hour: float  # Theil-Sen: the median of the slopes between all pairs, which a few peaks don't move
    flat: bool | None  # None: too few samples to say


def checkouts(against: Path | None) -> dict[str, Path]:
    """This checkout and the other one, if any. Raises BadParameter where that has no backend."""
    if against and not (against / "neat_backend").is_dir():
        raise typer.BadParameter(f"--against {against}: there is no neat_backend in it")
    return {"this": HERE} | ({"the other": against.absolute()} if against else {})


def settings(server: LabelStudioServer, data: Path, **more: str) -> dict[str, str]:
    """Of a backend for this Label Studio, with its data in that folder."""
    place = {"LABEL_STUDIO_URL": server.url, "LABEL_STUDIO_API_KEY": server.token, "NEAT_DATA_DIR": str(data)}
    return {**place, "NEAT_ENCODER": ENCODER, **more}


def backend(server: LabelStudioServer, folder: Path, checkout: Path = HERE, **more: str) -> Backend:
    """A backend of that checkout for this Label Studio, not started yet. more: settings.

    In the folder are its log and, in `data`, its data.
    """
    from neat_backend.demo.backend import Backend
    from neat_backend.demo.ports import free_port

    code = {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}  # else the working directory comes first
    return Backend(free_port(), folder / "backend.log", code | settings(server, folder / "data", **more))


def usage(pid: int) -> Usage:
    """Raises OSError when the process is gone."""
    folder = Path(f"/proc/{pid}")
    rollup = _kilobytes(folder / "smaps_rollup")
    return Usage(
        rss_mb=rollup["Rss"] * 1024 / MEGABYTE,
        pss_mb=rollup["Pss"] * 1024 / MEGABYTE,
        anonymous_mb=rollup["Anonymous"] * 1024 / MEGABYTE,
        handles=len(os.listdir(folder / "fd")),
        threads=_kilobytes(folder / "status")["Threads"],
    )


def total(pids: Iterable[int]) -> Usage | None:
    """The sum over those that still exist; None when none does."""
    found = []
    for pid in pids:
        with contextlib.suppress(OSError, KeyError):
            found.append(usage(pid))
    return Usage(*(sum(getattr(one, name) for one in found) for name in FIGURES)) if found else None


def children(pid: int) -> list[int]:
    """The process's own children, not theirs."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return sorted(found)


def cpu_seconds(pid: int) -> float:
    """Of the process alone."""
    return sum(_cpu_seconds(pid)[:2])


def cpu_seconds_below(pid: int) -> float:
    """Of the process and those below it, also of those that have ended and were waited for."""
    return sum(_cpu_seconds(pid)) + sum(cpu_seconds_below(child) for child in children(pid))


def trend(seconds: Sequence[float], values: Sequence[float], *, counts: bool = False) -> Trend:
    """The trend of a series. counts: of handles or threads, by their floor, since work in progress is no leak."""
    from scipy.stats import theilslopes

    times, series = np.asarray(seconds, float), np.asarray(values, float)
    warm = times >= times[0] + WARM_UP_SHARE * (times[-1] - times[0])
    times, series = times[warm], series[warm]
    third = max(1, len(series) // 3)
    level = 0.1 if counts else 0.5
    first, last = float(np.quantile(series[:third], level)), float(np.quantile(series[-third:], level))
    slope = float(theilslopes(series, times)[0]) * 3600 if len(series) > 1 else 0.0
    allowed = GROWTH_COUNT if counts else max(GROWTH_MB, GROWTH_SHARE * first)
    enough = len(series) >= FEWEST_SAMPLES and times[-1] - times[0] >= SHORTEST_SECONDS
    flat = bool(last - first <= allowed) if enough else None
    return Trend(first, last, float(series.max()), slope, flat)


def _cpu_seconds(pid: int) -> list[float]:
    """Its own, as a user and in the kernel, then the same of its children that have ended and were waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return [int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in fields[11:15]]


def _kilobytes(path: Path) -> dict[str, int]:
    """`Name:  123 kB` → 123, for each line that has a number."""
    pairs = (line.partition(":")[::2] for line in path.read_text().splitlines())
    return {name: int(rest.split()[0]) for name, rest in pairs if rest.split() and rest.split()[0].isdigit()}
