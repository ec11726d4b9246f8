"""One experiment's folder: its plan, and of each run a file pair for each round, or one file of a live run.

plan.json                                     protocol, strategies (or orders), seeds
runs/STRATEGY/SEED-CLASSES/round-03.npz       queried samples, answers, generated samples
runs/STRATEGY/SEED-CLASSES/round-03.json      the figures of the round; written last: the round is done
runs/ORDER/SEED-CLASSES/live.json             queried samples and figures of a live run; the run is done
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import NeatError, SettingsError
from neat_backend.experiments.features import write_atomically
from neat_backend.experiments.protocols import PROTOCOLS, LiveProtocol, Protocol
from neat_backend.experiments.splits import Known
from neat_backend.ranking.pool import Generated, Past

PLAN = "plan.json"
FORMAT = "neat-experiment-1"


@dataclass(frozen=True)
class Plan:
    """An experiment's plan. `inputs` identifies the loaded data and features, "" until then. A live experiment's
    `strategies` are orders."""

    protocol: Protocol | LiveProtocol
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    inputs: str = ""

    def joined(self, other: Plan) -> Plan:
        """The plan with the strategies and seeds of both. Raises SettingsError if the protocols differ."""
        if self.protocol.kind != other.protocol.kind:
            raise SettingsError(f"the folder holds a {self.protocol.kind} experiment; choose another --out")
        mine, theirs = self.protocol.as_dict(), other.protocol.as_dict()
        different = [f"{name} {mine[name]!r} and {theirs[name]!r}" for name in mine if mine[name] != theirs[name]]
        if different:
            raise SettingsError(f"the folder holds another experiment ({', '.join(different)}); choose another --out")
        strategies = (*self.strategies, *(name for name in other.strategies if name not in self.strategies))
        return Plan(self.protocol, strategies, tuple(sorted({*self.seeds, *other.seeds})), self.inputs)

    def with_inputs(self, inputs: str) -> Plan:
        """The plan with these inputs. Raises SettingsError if an earlier start had others."""
        if self.inputs not in ("", inputs):
            raise SettingsError(
                f"the experiment was begun with other images or encoder weights ({self.inputs}, now {inputs}); "
                "restore them, or choose another --out"
            )
        return replace(self, inputs=inputs)


def write_plan(folder: Path, plan: Plan) -> None:
    write_json(folder / PLAN, {"format": FORMAT, "kind": plan.protocol.kind, **asdict(plan)})


def read_plan(folder: Path) -> Plan:
    """The plan in a folder. Raises SettingsError where it is missing or can't be read."""
    try:
        values = json.loads((folder / PLAN).read_text())
    except FileNotFoundError:
        raise SettingsError(f"{folder} holds no experiment: there is no {PLAN}") from None
    except (OSError, ValueError) as error:
        raise SettingsError(f"{folder / PLAN} can't be read: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise SettingsError(f"{folder / PLAN} is no plan of an experiment")
    kind = values.get("kind", Protocol.kind)  # earlier versions knew no other and named none
    if kind not in PROTOCOLS:
        raise SettingsError(f"{folder / PLAN} is of protocol {kind!r}; this version knows {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[kind].from_dict(values["protocol"])
    return Plan(protocol, tuple(values["strategies"]), tuple(values["seeds"]), values.get("inputs", ""))


def find_experiments(folders: list[Path]) -> list[Path]:
    """Folders with a plan, in the given ones and below. Raises SettingsError where there is none."""
    found = sorted({plan.parent for folder in folders for plan in folder.rglob(PLAN)})
    if not found:
        raise SettingsError(
            f"no experiment in {', '.join(map(str, folders))}; make one with neat-backend experiment run"
        )
    return found


@dataclass(frozen=True)
class Run:
    """One strategy (or order) with one seed and one set of known classes."""

    strategy: str
    seed: int
    known: Known

    @property
    def name(self) -> str:
        """The folder's name below `runs/`; a long list of classes is cut and made unique by a digest."""
        classes = "-".join(map(str, self.known))
        if len(classes) > 80:
            classes = classes[:60] + "-" + hashlib.sha256(classes.encode()).hexdigest()[:12]
        return f"{self.strategy.replace(':', '+')}/{self.seed}-classes-{classes}"


class RunFolder:
    """The finished rounds of one run."""

    def __init__(self, experiment: Path, run: Run) -> None:
        self._folder = experiment / "runs" / run.name
        self.run = run

    def _path(self, number: int, suffix: str) -> Path:
        return self._folder / f"round-{number:02d}.{suffix}"

    @property
    def rounds_done(self) -> int:
        """Number of finished rounds from round 0 on without a gap."""
        number = 0
        while self._path(number, "json").is_file():
            number += 1
        return number

    def write(self, number: int, figures: dict[str, Any], past: Past | None, generated: Generated | None) -> None:
        """Arrays first: a round counts when its figures are there. Atomic; a round 0 has no arrays."""
        if past is not None:
            arrays: dict[str, Any] = {"indices": past.indices, "answers": past.answers}
            if generated is not None:
                arrays |= {"inputs": generated.inputs, "targets": generated.targets}
            write_atomically(self._path(number, "npz"), lambda file: np.savez(file, **arrays))
        write_json(self._path(number, "json"), figures)

    def figures(self) -> list[dict[str, Any]]:
        """The figures of each finished round."""
        return [read_json(self._path(number, "json")) for number in range(self.rounds_done)]

    def queries(self) -> Iterator[tuple[Past, Generated | None]]:
        """The query of each finished round but round 0. Raises NeatError for a file that can't be read."""
        for number in range(1, self.rounds_done):
            path = self._path(number, "npz")
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    past = Past(_ints(arrays["indices"]), _ints(arrays["answers"]))
                    made = Generated(arrays["inputs"], _ints(arrays["targets"])) if "inputs" in arrays else None
            except (OSError, ValueError, KeyError) as error:
                raise NeatError(
                    f"{path} can't be read ({error}); delete {self._folder} to do this run again"
                ) from error
            yield past, made

    @property
    def _live(self) -> Path:
        return self._folder / "live.json"

    def live(self) -> dict[str, Any] | None:
        """The file of a finished live run; None before its end."""
        return read_json(self._live) if self._live.is_file() else None

    def write_live(self, run: dict[str, Any]) -> None:
        write_json(self._live, run)


def _ints(values: NDArray[Any]) -> NDArray[np.int64]:
    return values.astype(np.int64)


def write_json(path: Path, values: Any) -> None:
    text = json.dumps(values, indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise NeatError(f"{path} can't be read ({error}); delete its folder to do this run again") from error
    return values
