"""Results of the worker for people to look at, beside the order itself. Snapshots:

`map`       every task's place on the map; written when tasks have come or gone, and then rarely
`states`    what every task is labelled with; written soon after labels have changed
`insight`   known images left, likely mistakes, the scores' histogram; some while after labels have changed
`duplicates`  groups of near-duplicates; written when tasks have come or gone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from neat_backend.store import tasks
from neat_backend.store.arrays import ProjectArrays

INVALID, UNLABELLED = -1, -3  # in `States.codes`, as in the engine
BINS = 20  # of the histogram, over priorities 0 … 1
LEAST_DRAWS = 5  # labelled random draws; below it, nothing is estimated; as in worker.steps.estimates


@dataclass(frozen=True)
class Map:
    """Places on a square map of 65,535 steps each way."""

    ids: NDArray[np.int64]  # [n], ascending
    places: NDArray[np.uint16]  # [n, 2]


@dataclass(frozen=True)
class States:
    """What tasks with features are labelled with."""

    ids: NDArray[np.int64]  # [n], ascending
    codes: NDArray[np.int16]  # [n], index into classes, INVALID or UNLABELLED
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Mistake:
    """A labelled task whose label may be wrong."""

    task: int
    label: str | None  # None = invalid
    chance: float  # of its being a mistake
    neighbours_say: str | None  # None = invalid
    votes: int  # how many of its K nearest labelled tasks say that
    own_votes: int  # how many have its own label
    similarity: float  # mean cosine of those that say otherwise


@dataclass(frozen=True)
class Insight:
    """Numbers about the pool and the labels at one moment."""

    labelled: int  # tasks with features and a label
    known: int  # of these, of known classes
    pool: int  # unlabelled tasks with features, those left out that somebody has answered
    left: float  # known ones among them, estimated; NaN = too few random draws to say
    left_low: float
    left_high: float
    in_head: float  # known ones expected among the next batch, NaN = as above
    head: int  # how many these are
    candidates: NDArray[np.int64]  # [BINS] of the pool, by priority
    others: NDArray[np.int64]  # [BINS]
    k: int
    mistakes: tuple[Mistake, ...]  # likeliest first
    more_mistakes: int  # beyond those
    classes: tuple[str, ...] = ()
    class_labels: tuple[int, ...] = ()  # of each class
    class_left: tuple[float, ...] = ()  # of each class in the pool, estimated; NaN = nothing to say it from
    answered: int = 0  # unlabelled tasks with features that somebody has answered
    random_share: float = 0.0  # of the tasks asked for, drawn at random
    draws: int = 0  # labelled tasks that are a random sample
    draws_tested: int = 0  # known ones of these for which a linear classifier that had not learnt them named a class
    draws_right: int = 0  # of these, the right one


@dataclass(frozen=True)
class Duplicates:
    """Groups of near-duplicates; a group's number is its smallest task."""

    tasks: NDArray[np.int64]  # [n], ascending by group and by id
    groups: NDArray[np.int64]  # [n]
    kind: str  # of the features that they were found from
    similarity: float  # that they have at least
    skipped: bool = False  # one task of each group is queried


_TUPLES = ("classes", "class_labels", "class_left")
_NEEDED = {one.name for one in fields(Insight) if one.default is MISSING and one.name != "mistakes"}
_NEEDED |= {"draws"}  # an earlier version's ranges were made otherwise
_NEEDED |= {f"mistake_{one.name}" for one in fields(Mistake)}


def write_map(arrays: ProjectArrays, found: Map) -> None:
    arrays.write_snapshot("map", {"ids": found.ids, "places": found.places})


def read_map(arrays: ProjectArrays) -> Map | None:
    found = arrays.read_snapshot("map")
    return None if found is None else Map(found["ids"], found["places"])


def write_states(arrays: ProjectArrays, found: States) -> None:
    classes = np.array(found.classes, np.str_)
    arrays.write_snapshot("states", {"ids": found.ids, "codes": found.codes, "classes": classes})


def read_states(arrays: ProjectArrays) -> States | None:
    found = arrays.read_snapshot("states")
    return None if found is None else States(found["ids"], found["codes"], tuple(found["classes"].tolist()))


def write_insight(arrays: ProjectArrays, found: Insight) -> None:
    rest = {one.name: np.array(getattr(found, one.name)) for one in fields(Insight) if one.name != "mistakes"}
    rest |= {"classes": np.array(found.classes, np.str_), "class_labels": np.array(found.class_labels, np.int64)}
    mistakes = {f"mistake_{one.name}": _column(found.mistakes, one.name) for one in fields(Mistake)}
    arrays.write_snapshot("insight", rest | mistakes)


def read_insight(arrays: ProjectArrays) -> Insight | None:
    """The insight written last; None when there is none, or it lacks fields that this version requires.

    Optional fields that an older file lacks get their defaults.
    """
    found = arrays.read_snapshot("insight")
    if found is None or not found.keys() >= _NEEDED:
        return None
    columns = [found[f"mistake_{one.name}"].tolist() for one in fields(Mistake)]
    mistakes = tuple(
        Mistake(task, label or None, chance, say or None, *rest)
        for task, label, chance, say, *rest in zip(*columns, strict=True)
    )
    values: dict[str, Any] = {
        one.name: found[one.name] if found[one.name].ndim else found[one.name].item()
        for one in fields(Insight)
        if one.name in found
    }
    values |= {name: tuple(found[name].tolist()) for name in _TUPLES if name in found}
    return Insight(mistakes=mistakes, **values)


def write_duplicates(arrays: ProjectArrays, found: Duplicates) -> None:
    arrays.write_snapshot("duplicates", {name: np.array(value) for name, value in vars(found).items()})


def read_duplicates(arrays: ProjectArrays) -> Duplicates | None:
    found = arrays.read_snapshot("duplicates")
    if found is None:
        return None
    return Duplicates(
        found["tasks"], found["groups"], str(found["kind"]), float(found["similarity"]), bool(found["skipped"])
    )


def unconfirmed(conn: Connection, project: int, mistakes: Sequence[Mistake]) -> list[Mistake]:
    """Those of these that still have an answer, none of them marked as ground truth; in their order."""
    if not mistakes:
        return []
    answers = tasks.annotations_of(conn, project, [mistake.task for mistake in mistakes])
    open_to_doubt = {task for task, found in answers.items() if not any(one.ground_truth for one in found)}
    return [mistake for mistake in mistakes if mistake.task in open_to_doubt]


def _column(mistakes: tuple[Mistake, ...], name: str) -> NDArray[Any]:
    values = [getattr(one, name) for one in mistakes]
    if name in ("label", "neighbours_say"):
        return np.array([value or "" for value in values], np.str_)
    return np.array(values, np.float64 if name in ("chance", "similarity") else np.int64)
