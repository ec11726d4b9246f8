"""Prequential evaluation (Dawid, 1984): each classifier predicts a label before it is trained on it.

So each label is a test sample at no extra cost. The worker writes the results as a snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.store.arrays import ProjectArrays

PREDICTORS = ("resnet18", "linear", "vote")  # the columns of `right`; as the engine's
WINDOW = 100  # of the last labels of known classes
SHOWN_FROM = 20  # labels; of fewer, a share means little
RIGHT, WRONG, SILENT = 1, 0, -1
_NAME, _HEAD = "prequential", "linear"


@dataclass(frozen=True)
class Prequential:
    """right: int8 [n, 3], n at most WINDOW, oldest first; in_force: the classifier that leads the order, and why."""

    right: NDArray[np.int8] = field(default_factory=lambda: np.zeros((0, len(PREDICTORS)), np.int8))
    in_force: str = ""
    why: str = ""
    tested: int = 0  # labels in all

    def counts(self, name: str) -> tuple[int, int]:
        """How often a classifier was right, and on how many labels it predicted a class."""
        column = self.right[:, PREDICTORS.index(name)]
        return int((column == RIGHT).sum()), int((column != SILENT).sum())

    @property
    def leader_counts(self) -> tuple[int, int]:
        """As `counts`, for the classifier in force; (0, 0) before there is one."""
        return self.counts(self.in_force) if self.in_force in PREDICTORS else (0, 0)


def write(arrays: ProjectArrays, found: Prequential) -> None:
    arrays.write_snapshot(_NAME, {name: np.array(value) for name, value in vars(found).items()})


def read(arrays: ProjectArrays) -> Prequential:
    """The results written last; empty where there are none, or from another version of this package."""
    found: Mapping[str, NDArray] = arrays.read_snapshot(_NAME) or {}
    if not found.keys() >= {one.name for one in fields(Prequential)} or found["right"].shape[1:] != (len(PREDICTORS),):
        return Prequential()
    return Prequential(found["right"], str(found["in_force"]), str(found["why"]), int(found["tested"]))


def write_head(arrays: ProjectArrays, head: Mapping[str, Any] | None) -> None:
    """Write the fields of the present linear classifier; None = there is none."""
    found = {name: np.array(value) for name, value in (head or {}).items()}
    arrays.write_snapshot(_HEAD, found | {"is_there": np.array(head is not None)})


def read_head(arrays: ProjectArrays) -> dict[str, Any] | None:
    """The fields of the linear classifier; None where there is none."""
    found = arrays.read_snapshot(_HEAD)
    if found is None or not found.pop("is_there", False) or not found.keys() >= {"classes", "unknown"}:
        return None
    return found | {"classes": tuple(found["classes"].tolist()), "unknown": bool(found["unknown"])}
