"""Results of live experiments as tables: each order's figures by label, and how it differs from others."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from neat_backend.errors import SettingsError
from neat_backend.experiments.live_metrics import FIRST, PHASES, REFERENCES, marks, served
from neat_backend.experiments.protocols import LiveProtocol
from neat_backend.experiments.results import Experiment, Record, over_draws, read_all
from neat_backend.experiments.tables import Table, column, described
from neat_backend.ranking.prefill import MODES

_FILLED = ("filled", "filled_right")
SHOWN = (("accuracy", 100.0, 1), ("precision", 100.0, 0), ("effective", 1.0, 2))  # figure, scale, decimals


def live_table(folders: Sequence[Path], against: str | None = None) -> Table:
    """After 50, 100, 200 and 300 labels: each order's figures, and what it differs by from `against` (REFERENCES)."""
    experiments = read_all(folders, LiveProtocol.kind)
    every = sorted({mark for one in experiments for mark in marks(_last(one))})
    shown = [mark for mark in every if mark >= FIRST] or every
    rows = [
        [prefix + name, str(len(experiment.of(name))), *(_figures(experiment, name, mark) for mark in shown)]
        for prefix, (experiment,) in _groups(experiments, together=False)
        for name in experiment.strategies
    ]
    others = REFERENCES if against is None else (against,)
    if against is not None and not any(against in one.strategies for one in experiments):
        raise SettingsError(f"--against {against!r}: has no finished run here; name another order")
    for place, other in enumerate(others):
        compared = others[: place + 1]  # each of these with those before it
        for prefix, group in _groups(experiments, together=True):
            for name in dict.fromkeys(name for one in group for name in one.strategies):
                draws = [len({known for _, known in one.pairs(name, other)}) for one in group]
                if name not in compared and np.count_nonzero(draws) >= min(2, len(group)):
                    cells = [_differences(group, name, other, mark) for mark in shown]
                    rows.append([f"{prefix}{name} − {other}", str(sum(draws)), *cells])
    return Table(
        "; ".join(map(described, experiments)),
        ["order", "runs", *(f"{mark} labels" for mark in shown)],
        rows,
        "Accuracy / precision, in percent / effective classes over C: means over runs. Differences in the same units, "
        "± 95 % interval over draws of known classes, the seeds of a draw averaged first; beside them how many draws",
    )


def served_table(folders: Sequence[Path], against: str | None = None) -> Table:
    """The annotator's view: classes of the first 50 tasks, labels until all are seen, runs of one class; and times."""
    experiments = read_all(folders, LiveProtocol.kind)
    rows = []
    for prefix, (experiment,) in _groups(experiments, together=False):
        for name in experiment.strategies:
            records = experiment.of(name)
            all_seen = np.array(column(records, "all_seen_after"))
            never = int(np.isnan(all_seen).sum())
            counts = np.array([served(one.codes, len(one.run.known)) for one in records])  # [runs, C + 1]
            classes = np.sort(counts[:, :-1], axis=1)[:, ::-1].mean(axis=0)
            soon = "" if never == len(records) else f"{np.nanmean(all_seen):.0f}"
            rows.append(
                [
                    prefix + name,
                    f"{_mean(records, 'seen_20'):.1f}",
                    ", ".join([*([soon] if soon else []), *([f"{never} never"] if never else [])]),
                    " ".join(f"{count:.0f}" for count in classes[:5]) + (" …" if len(classes) > 5 else ""),
                    f"{counts[:, -1].mean():.0f}",
                    f"{_mean(records, f'longest_run_{_last(experiment)}'):.1f}",
                    *(f"{1000 * _mean(records, f'seconds_{phase}'):.0f}" for phase in PHASES),
                ]
            )
    return Table(
        "; ".join(map(described, experiments)),
        [
            "order",
            "seen after 20",
            "all seen after",
            f"first {FIRST}",
            "unknown",
            "longest run",
            *(f"{phase} ms" for phase in PHASES),
        ],
        rows,
        "Means over runs: classes that have a label after 20; labels until all have, and runs in which they never had; "
        f"of the first {FIRST} tasks, how many are of the class that has most, the second and so on, and of no known "
        "class; most of one class in a row; milliseconds for each label",
    )


def prefill_table(folders: Sequence[Path], against: str | None = None) -> Table:
    """Pre-filled choices by mode of NEAT_PREFILL: share of tasks, and share of right choices."""
    experiments = read_all(folders, LiveProtocol.kind)
    rows = []
    for prefix, (experiment,) in _groups(experiments, together=False):
        for name in experiment.strategies:
            records = [one for one in experiment.of(name) if "filled_off" in one.summary]
            queried = sum(len(one.codes) for one in records)
            for mode in MODES if records else ():
                filled, right = (sum(one.summary[f"{what}_{mode}"] for one in records) for what in _FILLED)
                correct = f"{100 * right / filled:.1f} % ({right:.0f} of {filled:.0f})" if filled else "-"
                rows.append([prefix + name, mode, str(len(records)), f"{100 * filled / queried:.1f} %", correct])
    return Table(
        "; ".join(map(described, experiments)),
        ["order", "NEAT_PREFILL", "runs", "pre-filled", "right"],
        rows,
        "Of the queried tasks of all runs, those with a choice filled in; of these, those with the right one",
    )


def _groups(experiments: Sequence[Experiment], together: bool) -> Iterator[tuple[str, list[Experiment]]]:
    """Each experiment by itself with what its rows are called, and all of them."""
    several = len(experiments) > 1
    for one in experiments:
        yield f"{one.folder.name}: " if several else "", [one]
    if several and together:
        yield "all: ", list(experiments)


def _last(experiment: Experiment) -> int:
    protocol = experiment.plan.protocol
    assert isinstance(protocol, LiveProtocol)
    return protocol.labels


def _mean(records: Sequence[Record], figure: str) -> float:
    """Of the runs that have the figure; NaN without any."""
    values = [one.summary[figure] for one in records if not math.isnan(one.summary.get(figure, math.nan))]
    return float(np.mean(values)) if values else math.nan


def _figures(experiment: Experiment, order: str, mark: int) -> str:
    means = [(_mean(experiment.of(order), f"{name}_{mark}"), scale, digits) for name, scale, digits in SHOWN]
    return " / ".join("-" if math.isnan(mean) else f"{scale * mean:.{digits}f}" for mean, scale, digits in means)


def _differences(experiments: Sequence[Experiment], order: str, other: str, mark: int) -> str:
    cells = []
    for name, scale, digits in SHOWN:
        found = over_draws(experiments, f"{name}_{mark}", order, other)
        if found is None:
            cells.append("-")
            continue
        half = "" if math.isnan(found.half) else f" ± {scale * found.half:.{digits}f}"
        cells.append(f"{scale * found.mean:+.{digits}f}{half}")
    return " / ".join(cells)
