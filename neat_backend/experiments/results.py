"""Results of an experiment, read from its checkpoints: JSON and CSV for programs, records for tables and figures."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neat_backend.errors import SettingsError
from neat_backend.experiments import live_metrics, metrics
from neat_backend.experiments.checkpoints import Plan, Run, RunFolder, read_json, read_plan, write_json
from neat_backend.experiments.features import write_atomically
from neat_backend.experiments.metrics import Difference
from neat_backend.experiments.protocols import LiveProtocol, Protocol
from neat_backend.experiments.splits import Known

POINT = ("labels", "accuracy", "precision", "effective", "longest_run", "seen", "known", "invalid")


@dataclass(frozen=True)
class Record:
    """One finished run: its rounds (or points of a live run) as they are on disk, and their summary.

    summary: metrics.summary, or live_metrics.summary. codes: the answers of a live run, in order; -1 = invalid.
    """

    run: Run
    rounds: list[dict[str, Any]]
    summary: dict[str, float]
    codes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Experiment:
    folder: Path
    plan: Plan
    records: list[Record]

    def of(self, strategy: str) -> list[Record]:
        return [record for record in self.records if record.run.strategy == strategy]

    @property
    def strategies(self) -> list[str]:
        """The strategies with a finished run, in the plan's order."""
        there = {record.run.strategy for record in self.records}
        return [name for name in self.plan.strategies if name in there]

    def pairs(self, strategy: str, other: str) -> dict[tuple[int, Known], tuple[Record, Record]]:
        """The runs that both have, by seed and known classes, ascending."""
        mine, theirs = ({(one.run.seed, one.run.known): one for one in self.of(name)} for name in (strategy, other))
        return {key: (mine[key], theirs[key]) for key in sorted(mine.keys() & theirs.keys())}

    def difference(self, figure: str, strategy: str, other: str) -> Difference | None:
        """The paired difference over the runs that both have; None without any."""
        both = self.pairs(strategy, other).values()
        mine, theirs = ([pair[side].summary[figure] for pair in both] for side in (0, 1))
        return metrics.paired(mine, theirs) if both else None

    def by_draw(self, figure: str, strategy: str, other: str) -> list[float]:
        """The differences, one for each set of known classes: the mean of its seeds; pairs without the figure are
        left out."""
        found: dict[Known, list[float]] = {}
        for (_, known), (mine, theirs) in self.pairs(strategy, other).items():
            value = mine.summary.get(figure, math.nan) - theirs.summary.get(figure, math.nan)
            if not math.isnan(value):
                found.setdefault(known, []).append(value)
        return [float(np.mean(values)) for values in found.values()]


def over_draws(experiments: Iterable[Experiment], figure: str, strategy: str, other: str) -> Difference | None:
    """Mean difference and interval, a draw of known classes counting once; None where no pair has the figure."""
    draws = [value for one in experiments for value in one.by_draw(figure, strategy, other)]
    return metrics.paired(draws, [0.0] * len(draws)) if draws else None


def read(folder: Path) -> Experiment:
    """The finished runs; a run counts when its last round is there, or when its pool ran out."""
    plan = read_plan(folder)
    make = _live_record if isinstance(plan.protocol, LiveProtocol) else _batch_record
    records = [make(RunFolder(folder, run), plan.protocol) for run in _runs_there(folder, plan)]
    return Experiment(folder, plan, [record for record in records if record is not None])


def read_all(folders: Iterable[Path], kind: str = Protocol.kind) -> list[Experiment]:
    """Those of a protocol with a finished run. Raises SettingsError where there is none."""
    of_kind = [one for one in map(read, folders) if one.plan.protocol.kind == kind]
    if not of_kind:
        raise SettingsError(f"there is no experiment of the {kind} protocol in these folders; choose another --form")
    found = [one for one in of_kind if one.records]
    if not found:
        raise SettingsError("no run is finished yet; go on with neat-backend experiment resume")
    return found


def _batch_record(folder: RunFolder, protocol: Any) -> Record | None:
    rounds = folder.figures()
    if not rounds or not (len(rounds) > protocol.rounds or _ran_out(rounds)):
        return None
    rounds = rounds[: protocol.rounds + 1]
    return Record(folder.run, rounds, metrics.summary(rounds))


def _live_record(folder: RunFolder, protocol: Any) -> Record | None:
    done = folder.live()
    if done is None:
        return None
    return Record(folder.run, done["points"], live_metrics.summary(done), tuple(done["codes"]))


def _ran_out(rounds: list[dict[str, Any]]) -> bool:
    """Whether the pool ran out, so that there are fewer rounds than planned."""
    return rounds[-1]["left"] == 0


def _runs_there(folder: Path, plan: Plan) -> Iterable[Run]:
    """In the plan's order of strategies; seed and known classes are read from the first file of figures."""
    first_file = "live.json" if isinstance(plan.protocol, LiveProtocol) else "round-00.json"
    for strategy in plan.strategies:
        for path in sorted((folder / "runs" / strategy.replace(":", "+")).glob(f"*/{first_file}")):
            first = read_json(path)
            yield Run(strategy, int(first["seed"]), tuple(first["classes"]))


def write(folder: Path) -> None:
    """results.json: plan, the summary of each run, mean and deviation of each strategy (or order); results.csv: every
    round, or every point of live runs."""
    experiment = read(folder)
    kind, compared = experiment.plan.protocol.kind, experiment.plan.protocol.compared
    by_strategy = {}
    for name in experiment.strategies:
        records = experiment.of(name)
        both = {key: metrics.mean_and_std([one.summary[key] for one in records]) for key in records[0].summary}
        by_strategy[name] = {
            "runs": len(records),
            **{key: {"mean": _number(mean), "std": _number(std)} for key, (mean, std) in both.items()},
        }
    runs = [
        {
            compared: one.run.strategy,
            "seed": one.run.seed,
            "known_classes": one.run.known,
            **{key: _number(value) for key, value in one.summary.items()},
            **({"first_50": live_metrics.served(one.codes, len(one.run.known))} if kind == "live" else {}),
        }
        for one in experiment.records
    ]
    named = "orders" if kind == "live" else "strategies"
    protocol = experiment.plan.protocol.as_dict()
    more = {"differences": list(_differences(experiment))} if kind == "live" else {}
    write_json(folder / "results.json", {"kind": kind, "protocol": protocol, named: by_strategy, **more, "runs": runs})
    text = io.StringIO()
    csv.writer(text).writerows(_live_rows(experiment) if kind == "live" else _round_rows(experiment))
    write_atomically(folder / "results.csv", lambda file: file.write(text.getvalue().encode()))


def _differences(experiment: Experiment) -> Iterator[dict[str, Any]]:
    """Of each order from each of the references, for each figure at each mark; `half` of the 95 % interval."""
    for other in live_metrics.REFERENCES:
        for name in experiment.strategies:
            if name != other and experiment.pairs(name, other):
                figures = {
                    figure: over_draws([experiment], figure, name, other)
                    for figure in experiment.of(name)[0].summary
                    if "seconds" not in figure
                }
                yield {
                    "order": name,
                    "against": other,
                    **{
                        figure: {"mean": found.mean, "half": _number(found.half), "draws": found.n}
                        for figure, found in figures.items()
                        if found is not None
                    },
                }


def _live_rows(experiment: Experiment) -> Iterator[list[Any]]:
    yield ["order", "seed", "known_classes", *POINT]
    for one in experiment.records:
        for point in one.rounds:
            cells = ["" if point[name] is None else point[name] for name in POINT]
            yield [one.run.strategy, one.run.seed, " ".join(map(str, one.run.known)), *cells]


def _round_rows(experiment: Experiment) -> Iterator[list[Any]]:
    yield [
        "strategy",
        "seed",
        "known_classes",
        "round",
        "accuracy",
        "asked",
        "found",
        "precision",
        "recall",
        "recall_with_initial",
        "labelled_known",
        "labelled_invalid",
        *(f"seconds_{phase}" for phase in metrics.PHASES),
    ]
    for one in experiment.records:
        recalls, with_initial = metrics.recalls(one.rounds), metrics.recalls_with_initial(one.rounds)
        for number, row in enumerate(one.rounds):
            yield [
                one.run.strategy,
                one.run.seed,
                " ".join(map(str, one.run.known)),
                number,
                "" if row["accuracy"] is None else row["accuracy"],
                row["asked"],
                row["found"],
                row["found"] / row["asked"] if row["asked"] else "",
                recalls[number],
                with_initial[number],
                row["known"],
                row["invalid"],
                *(row["seconds"].get(phase, 0.0) for phase in metrics.PHASES),
            ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
