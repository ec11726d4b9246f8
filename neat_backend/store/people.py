"""A project's annotators: their names, and how often their labels agree with the neighbours' vote."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from neat_backend.store.arrays import ProjectArrays

_NAME = "people"


@dataclass(frozen=True)
class Person:
    """One annotator, by Label Studio's number."""

    name: str = ""  # "" = unknown
    compared: int = 0  # labels on images on which the neighbours agree
    agreed: int = 0  # of these, labels that are what most neighbours say


def write(arrays: ProjectArrays, people: dict[int, Person]) -> None:
    found = list(people.values())
    columns = {
        "annotators": np.array(list(people), np.int64),
        "names": np.array([one.name for one in found], np.str_),
        "asked": np.array([one.compared for one in found], np.int64),
        "agreed": np.array([one.agreed for one in found], np.int64),
    }
    arrays.write_snapshot(_NAME, columns)


def read(arrays: ProjectArrays) -> dict[int, Person]:
    """By annotator; empty where none were written, or by another version of this package."""
    found = arrays.read_snapshot(_NAME) or {}
    if not found.keys() >= {"annotators", "names", "asked", "agreed"}:
        return {}
    rows = zip(*(found[name].tolist() for name in ("annotators", "names", "asked", "agreed")), strict=True)
    return {annotator: Person(*rest) for annotator, *rest in rows}
