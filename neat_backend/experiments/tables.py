"""Results as tables in the paper's form: mean ± standard deviation over the runs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column
from rich.table import Table as RichTable

from neat_backend.errors import SettingsError
from neat_backend.experiments import metrics
from neat_backend.experiments.metrics import Difference
from neat_backend.experiments.protocols import LiveProtocol
from neat_backend.experiments.results import Experiment, Record, over_draws, read_all

STYLES = ("text", "markdown", "csv", "json")
CURVE, FOUND = ("first_accuracy", "area", "accuracy"), ("cumulative_precision", "effective")


@dataclass(frozen=True)
class Table:
    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""

    def show(self, console: Console) -> None:
        """Framed where the terminal is wide enough, else as plain text."""
        columns = [Column(name, justify="left" if i == 0 else "right") for i, name in enumerate(self.head)]
        table = RichTable(*columns, title=self.title, caption=self.note)
        for row in self.rows:
            table.add_row(*row)
        if console.is_terminal and console.measure(table).maximum <= console.width:
            console.print(table)
        else:
            console.print(self.as_text("text"), end="", markup=False, highlight=False, soft_wrap=True)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: each row by the names of its columns."""
        rows = [dict(zip(self.head, row, strict=True)) for row in self.rows]
        return {"title": self.title, "rows": rows, "note": self.note}

    def as_text(self, style: str) -> str:
        """Raises SettingsError for an unknown style."""
        if style == "json":
            return json.dumps(self.as_dict(), indent=2) + "\n"
        if style == "csv":
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([self.head, *self.rows])
            return text.getvalue()
        if style == "markdown":
            lines = [self.head, ["---", *["---:"] * (len(self.head) - 1)], *self.rows]
            note = f"\n{self.note}\n" if self.note else ""
            return f"{self.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines) + note
        if style == "text":
            lines = [self.head, *self.rows]
            widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
            shown = [
                "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
            ]
            return "\n".join([self.title, *shown, self.note]).rstrip() + "\n"
        raise SettingsError(f"--format {style!r}: must be one of {', '.join(STYLES)}")


def percent(values: Sequence[float]) -> str:
    mean, std = metrics.mean_and_std([100 * value for value in values])
    if math.isnan(mean):
        return "-"
    return f"{mean:.2f}" + ("" if math.isnan(std) else f" ± {std:.2f}")


def number(values: Sequence[float], digits: int = 1) -> str:
    mean, std = metrics.mean_and_std(values)
    return f"{mean:.{digits}f}" + ("" if math.isnan(std) else f" ± {std:.{digits}f}")


def seconds(values: Sequence[float]) -> str:
    return f"{metrics.mean_and_std(values)[0]:.3g}"


def column(records: Sequence[Record], figure: str) -> list[float]:
    return [record.summary[figure] for record in records]


def described(experiment: Experiment) -> str:
    protocol = experiment.plan.protocol
    if isinstance(protocol, LiveProtocol):
        return (
            f"{protocol.dataset}, {protocol.known} known classes ({protocol.choice}), {protocol.start} labels of each "
            f"at the start, B = {protocol.batch}, K = {protocol.k}, {protocol.encoder}, {protocol.classifier} in rounds"
        )
    start = f"{100 * protocol.initial:g} %" if protocol.initial < 1 else f"{protocol.initial:.0f} labels"
    return (
        f"{protocol.dataset}, {protocol.known} known classes, {start} at the start, B = {protocol.batch}, "
        f"{protocol.rounds} queries, K = {protocol.k}, {protocol.encoder}, {protocol.classifier}"
    )


def difference(found: Difference | None, scale: float = 100.0) -> str:
    if found is None:
        return "-"
    half = "" if math.isnan(found.half) else f" ± {scale * found.half:.2f}"
    return f"{scale * found.mean:+.2f}{half}"


def strategies_table(folders: Sequence[Path], against: str | None = None) -> Table:
    """Each strategy's figures, in percent; with `against`, paired differences and their 95 % intervals too."""
    experiments = read_all(folders)
    head = [
        "strategy",
        "runs",
        "accuracy",
        "area",
        "after query 1",
        "precision",
        "recall",
        "with initial",
        "known",
        "effective",
    ]
    if against is not None:
        head += [f"accuracy vs. {against}", "area vs.", "after query 1 vs.", "known vs."]
    rows = []
    for experiment in experiments:
        for name in experiment.strategies:
            records = experiment.of(name)
            row = [
                name if len(experiments) == 1 else f"{experiment.folder.name}: {name}",
                str(len(records)),
                percent(column(records, "accuracy")),
                percent(column(records, "area")),
                percent(column(records, "first_accuracy")),
                percent(column(records, "cumulative_precision")),
                percent(column(records, "recall")),
                percent(column(records, "recall_with_initial")),
                number(column(records, "found")),
                percent(column(records, "effective")),
            ]
            if against is not None:
                row += [
                    difference(experiment.difference(f, name, against)) for f in ("accuracy", "area", "first_accuracy")
                ]
                row.append(difference(experiment.difference("found", name, against), 1.0))
            rows.append(row)
    return Table(
        "; ".join(map(described, experiments)),
        head,
        rows,
        "Mean ± standard deviation over runs, in percent; accuracy and recall after the last query, area under the "
        "accuracy curve, precision over all queries, known samples found, effective classes over C of all labels"
        + ("" if against is None else "; differences in points, paired by seed and known classes, ± 95 % interval"),
    )


def differences_table(folders: Sequence[Path], against: str | None = None) -> Table:
    """What each strategy has beyond `against` (default: neat), over the draws of all experiments together."""
    experiments, against = read_all(folders), against or "neat"
    names = dict.fromkeys(name for one in experiments for name in one.strategies if name != against)
    rows = []
    for name in names:
        found = [over_draws(experiments, figure, name, against) for figure in (*CURVE, *FOUND)]
        if found[0] is not None:
            rows.append([name, str(found[0].n), *map(difference, found)])
    return Table(
        "; ".join(map(described, experiments)),
        [f"strategy minus {against}", "draws", "after query 1", "area", "accuracy", "precision", "effective"],
        rows,
        "Differences in points, paired; each draw of known classes counts once, ± 95 % interval over draws",
    )


def price_table(folders: Sequence[Path], class_seconds: float, none_seconds: float) -> Table:
    """What the queries cost an annotator, and what each minute has brought."""
    experiments = read_all(folders)
    rows = []
    for experiment in experiments:
        for name in experiment.strategies:
            spent = [float(metrics.minutes(one.rounds, class_seconds, none_seconds)[-1]) for one in experiment.of(name)]
            curves = [metrics.accuracies(one.rounds) for one in experiment.of(name)]
            gained = [
                100 * float(curve[-1] - curve[0]) / cost if cost else math.nan
                for curve, cost in zip(curves, spent, strict=True)
            ]
            shown = name if len(experiments) == 1 else f"{experiment.folder.name}: {name}"
            rows.append([shown, number(spent), percent([float(curve[-1]) for curve in curves]), number(gained, 2)])
    return Table(
        "; ".join(map(described, experiments)),
        ["strategy", "minutes", "accuracy", "points a minute"],
        rows,
        f"Mean ± standard deviation over runs: minutes for all queries at {class_seconds:g} s for a class and "
        f"{none_seconds:g} s for none of them, accuracy after the last, and points of accuracy gained for each minute",
    )


def queries_table(folders: Sequence[Path], against: str | None = None) -> Table:
    """Precision of each query and accuracy after it, in percent."""
    experiments = read_all(folders)
    rounds = max(len(record.rounds) for one in experiments for record in one.records) - 1
    rows = []
    for experiment in experiments:
        for name in experiment.strategies:
            records = experiment.of(name)
            shown = name if len(experiments) == 1 else f"{experiment.folder.name}: {name}"
            for figure, curves in (
                ("precision", [[math.nan, *metrics.precisions(one.rounds)] for one in records]),
                ("accuracy", [list(metrics.accuracies(one.rounds)) for one in records]),
            ):
                cells = [[curve[i] for curve in curves if i < len(curve)] for i in range(rounds + 1)]
                means = [100 * metrics.mean_and_std(cell)[0] if cell else math.nan for cell in cells]
                rows.append([shown, figure, *("" if math.isnan(mean) else f"{mean:.1f}" for mean in means)])
    head = ["strategy", "figure", "start", *(str(number) for number in range(1, rounds + 1))]
    return Table("; ".join(map(described, experiments)), head, rows, "Means over runs, by query, in percent")


def timings_table(folders: Sequence[Path], against: str | None = None) -> Table:
    """Seconds of one round, by phase, and of a whole run."""
    experiments = read_all(folders)
    rows = []
    for experiment in experiments:
        for name in experiment.strategies:
            records = experiment.of(name)
            rows.append(
                [
                    name if len(experiments) == 1 else f"{experiment.folder.name}: {name}",
                    *(seconds(column(records, f"seconds_{phase}")) for phase in (*metrics.PHASES, "total")),
                ]
            )
    return Table(
        "; ".join(map(described, experiments)),
        ["strategy", *metrics.PHASES, "whole run"],
        rows,
        "Mean seconds of a round: detection and choice, detectors trained for it, samples made, the classifier's "
        "inference for it, its training, its test; and of a whole run",
    )


# Form → what the rows differ in, and its heading in the paper (Tables 1 and 2, appendix).
ABLATIONS = {
    "encoders": ("encoder", "model"),
    "k": ("k", "# of neighbours"),
    "batch": ("batch", "query batch"),
    "classifiers": ("classifier", "classifier"),
}


def ablation_table(form: str, folders: Sequence[Path], strategy: str) -> Table:
    """Final accuracy of one strategy against encoder, K, B or classifier; all strategies for classifiers."""
    field, heading = ABLATIONS[form]
    rows = []
    every = form == "classifiers"
    for experiment in sorted(read_all(folders), key=lambda one: _order(one, field)):
        for name in experiment.strategies if every else [strategy]:
            records = experiment.of(name)
            if records:
                protocol = experiment.plan.protocol
                rows.append(
                    [
                        protocol.dataset,
                        str(getattr(protocol, field)),
                        name,
                        percent(column(records, "accuracy")),
                        percent(column(records, "cumulative_precision")),
                        percent(column(records, "recall")),
                    ]
                )
    if not rows:
        raise SettingsError(f"no finished run of {strategy}; name another with --strategy")
    head = ["dataset", heading, "strategy", "accuracy", "precision", "recall"]
    title = f"Accuracy after the last query{'' if every else f' of {strategy}'} by {field}"
    return Table(title, head, rows, "Mean ± standard deviation over runs, in percent")


def _order(experiment: Experiment, field: str) -> tuple[str, float, str]:
    value = getattr(experiment.plan.protocol, field)
    return (experiment.plan.protocol.dataset, value if isinstance(value, int) else 0, str(value))
