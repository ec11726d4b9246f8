"""Figures of merit of live runs: the balance of the classes, and the sequence of tasks that an annotator sees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

MARKS = (20, 50, 100, 200, 300)  # labels after which tables give figures; each is a point of a run
REFERENCES = ("random", "paper")  # orders that the others are compared with
FIGURES = ("accuracy", "precision", "effective", "longest_run", "seen")
FIRST = 50  # tasks served, whose classes are counted
PHASES = ("fit", "apply", "order", "round", "testing")


def effective_classes(counts: Sequence[int] | NDArray[np.int64]) -> float:
    """exp(entropy of the shares of the classes' labels) / C, in (0, 1]; counts [C]. 0 without a label.

    1 where all classes have equally many, 1/C where one has all (Hill 1973: the number of order 1).
    Worked example: counts 1, 1, 2: entropy 2 · ¼ ln 4 + ½ ln 2 = 1.0397, exp = 2.8284, over 3 = 0.9428.
    """
    shares = np.asarray(counts, np.float64)
    if not shares.sum():
        return 0.0
    shares = shares[shares > 0] / shares.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()) / len(counts))


def longest_run(codes: Sequence[int]) -> int:
    """The longest sequence of answers of one known class; an invalid answer (-1) ends it."""
    return max((len(list(run)) for code, run in groupby(codes) if code >= 0), default=0)


def seen_after(codes: Sequence[int], start: Sequence[int], n_classes: int) -> int | None:
    """The number of answers until each class has a label, including the initial ones; None = never."""
    missing = set(range(n_classes)) - set(start)
    for number, code in enumerate(codes, 1):
        if not missing:
            return number - 1
        missing.discard(code)
    return None if missing else len(codes)


def marks(labels: int) -> list[int]:
    """Those of MARKS that a run with so many labels has, and its end."""
    return sorted({*(mark for mark in MARKS if mark <= labels), labels})


def served(codes: Sequence[int], n_classes: int, first: int = FIRST) -> list[int]:
    """How many of the first tasks served are of each class, and last how many of none of them: C + 1 numbers."""
    return [codes[:first].count(code) for code in (*range(n_classes), -1)]


def summary(run: Mapping[str, Any]) -> dict[str, float]:
    """The figures that tables are made of, of one run (live_loop.run_labels); NaN = there is none.

    accuracy_50 and so on: after 50 labels, for each of `marks` that the run has. most_first: of the first tasks served,
    those of the class that has most. filled_agree, filled_right_agree and so on: of queried tasks, how many had a
    choice filled in by this mode of NEAT_PREFILL, and how many of these were right. seconds_fit and so on: for each
    queried label.
    """
    points = {point["labels"]: point for point in run["points"]}
    values = {f"{name}_{mark}": _number(points[mark][name]) for mark in marks(max(points)) for name in FIGURES}
    values["all_seen_after"] = _number(run["all_seen_after"])
    values["most_first"] = float(max(served(run["codes"], len(run["classes"]))[:-1]))
    for mode, (filled, right) in (run.get("filled") or {}).items():
        values[f"filled_{mode}"], values[f"filled_right_{mode}"] = float(filled), float(right)
    for phase in PHASES:
        values[f"seconds_{phase}"] = run["seconds"].get(phase, 0.0) / max(1, len(run["codes"]))
    return values


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
