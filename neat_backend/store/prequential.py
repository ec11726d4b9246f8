"""Predict, then learn: what each classifier said of a label before it had learnt it. A snapshot of the worker's.

A label costs nothing extra and is a test that nobody has trained on (prequential evaluation: Dawid, 1984).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.store.arrays import ProjectArrays

SPEAKERS = ("resnet18", "linear", "vote")  # the columns of `right`; as the engine's
WINDOW = 100  # of the last labels of known classes
SHOWN_FROM = 20  # labels; of fewer, a share means little
RIGHT, WRONG, SILENT = 1, 0, -1
_NAME, _HEAD = "prequential", "linear"


@dataclass(frozen=True)
class Prequential:
    """right: int8 [n, 3], n at most WINDOW, oldest first; in_force: the classifier that leads the order, and why."""

    right: NDArray[np.int8] = field(default_factory=lambda: np.zeros((0, len(SPEAKERS)), np.int8))
    in_force: str = ""
    why: str = ""
    tested: int = 0  # labels in all

    def counts(self, name: str) -> tuple[int, int]:
        """How often it was right, of how many labels on which it said anything."""
        column = self.right[:, SPEAKERS.index(name)]
        return int((column == RIGHT).sum()), int((column != SILENT).sum())

    @property
    def leader_counts(self) -> tuple[int, int]:
        """The same of the classifier in force; 0 of 0 before there is one."""
        return self.counts(self.in_force) if self.in_force in SPEAKERS else (0, 0)


def write(arrays: ProjectArrays, found: Prequential) -> None:
    arrays.write_snapshot(_NAME, {name: np.array(value) for name, value in vars(found).items()})


def read(arrays: ProjectArrays) -> Prequential:
    """What was written last; nothing tested where nothing was, or another version of this package has written it."""
    found: Mapping[str, NDArray] = arrays.read_snapshot(_NAME) or {}
    if not found.keys() >= {one.name for one in fields(Prequential)} or found["right"].shape[1:] != (len(SPEAKERS),):
        return Prequential()
    return Prequential(found["right"], str(found["in_force"]), str(found["why"]), int(found["tested"]))


def write_head(arrays: ProjectArrays, head: Mapping[str, Any] | None) -> None:
    """The linear classifier that the labels gave last, by the names of its fields; None = there is none."""
    found = {name: np.array(value) for name, value in (head or {}).items()}
    arrays.write_snapshot(_HEAD, found | {"is_there": np.array(head is not None)})


def read_head(arrays: ProjectArrays) -> dict[str, Any] | None:
    """The fields of the linear classifier; None where there is none."""
    found = arrays.read_snapshot(_HEAD)
    if found is None or not found.pop("is_there", False) or not found.keys() >= {"classes", "unknown"}:
        return None
    return found | {"classes": tuple(found["classes"].tolist()), "unknown": bool(found["unknown"])}
