"""The order that the worker writes for the web, in two files, so that a label is cheap in a large project too.

`head`     the first tasks with their numbers, the counts and the classes; written whenever any of it changes
`ranking`  every unlabelled task's numbers; written as often as its size allows, so it may be a little older

The head also names the tasks that have left the pool since the ranking was written. The worker writes it first and
readers read it first, so the ranking that they read is the one that this list refers to, or newer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any

import numpy as np

from neat_backend.records import Ranked, WithoutLabel
from neat_backend.store import kinds
from neat_backend.store.arrays import ProjectArrays

_COLUMNS = ("priority", "inconsistency", "known_neighbours", "candidate", "predicted", "known_chance", "queue", "place")
_NO_CLASS = ("predicted", "queue")  # columns of indices into the classes, -1 = none


@dataclass(frozen=True)
class Head:
    """The first tasks of the order, and the counts."""

    tasks: Sequence[Ranked]  # best first
    classes: tuple[str, ...]
    known: int  # labelled tasks
    invalid: int
    unlabelled: int  # the pool, with the tasks of the head
    event: int  # highest inbox event that it reflects
    model_version: str = ""  # switched on in Label Studio, "" = none yet
    left: tuple[int, ...] = ()  # tasks that have left the pool since the ranking was written, ascending
    features: str = ""  # the kind of array that holds the features, "" = unknown
    without_label: tuple[WithoutLabel, ...] = ()  # answered tasks that have no label, by reason


def write_head(arrays: ProjectArrays, head: Head) -> None:
    """Replace the head."""
    rest = {field.name: np.array(getattr(head, field.name)) for field in fields(Head)[2:]}
    rest["left"] = np.array(head.left, np.int64)
    rest["without_label"] = np.array(json.dumps([astuple(one) for one in head.without_label]))
    places = {name: place for place, name in enumerate(head.classes)}
    rest["vote"] = np.array([-1 if one.vote is None else places[one.vote] for one in head.tasks], np.int16)
    rest["votes"] = np.array([one.votes for one in head.tasks], np.int16)
    rest["drawn"] = np.array([one.drawn for one in head.tasks], np.bool_)
    arrays.write_snapshot("head", _table(head.tasks, head.classes) | rest)


def read_head(arrays: ProjectArrays) -> Head | None:
    """The head that was written last; None when there is none or it is damaged."""
    found = arrays.read_snapshot("head")
    if found is None or not found.keys() >= set(_COLUMNS):
        return None
    return Head(
        tasks=tuple(row(found, at, at) for at in range(len(found["ids"]))),
        classes=tuple(found["classes"].tolist()),
        known=int(found["known"]),
        invalid=int(found["invalid"]),
        unlabelled=int(found["unlabelled"]),
        event=int(found["event"]),
        model_version=str(found["model_version"]),
        left=tuple(found["left"].tolist()),
        features=str(found.get("features", "")),
        without_label=tuple(WithoutLabel(*one) for one in json.loads(str(found.get("without_label", "[]")))),
    )


def write_ranking(arrays: ProjectArrays, ranking: Mapping[str, Any]) -> None:
    """Replace the ranking.

    `ids` int64 [n] ascending, `classes`, and of each id `priority` and `inconsistency` float64, `known_neighbours`
    int16, `candidate` bool, `known_chance` float32, `place` int64, `predicted` and `queue` int16 (index into classes,
    -1 = none).
    """
    classes = np.array(ranking["classes"], np.str_)
    columns = {name: ranking[name] for name in ("ids", *_COLUMNS)} | {"classes": classes}
    columns["queue"] = np.where(ranking["queue"] < len(classes), ranking["queue"], -1).astype(np.int16)
    arrays.write_snapshot("ranking", columns)


def read_ranking(arrays: ProjectArrays, head: Head | None) -> dict[str, Any] | None:
    """The numbers of every unlabelled task as `write_ranking` takes them, with the head's as the newer ones; None when
    nothing has been written. head: what `read_head` has given just before."""
    ranking = arrays.read_snapshot("ranking")
    if ranking is not None and not ranking.keys() >= set(_COLUMNS):
        ranking = None  # of an earlier version; a new one is written soon
    if head is None:
        return ranking
    if ranking is None:
        ranking = _table((), head.classes)
    if ranking["classes"].tolist() != list(head.classes):
        places = {name: place for place, name in enumerate(head.classes)}
        renamed = np.array([*(places.get(name, -1) for name in ranking["classes"].tolist()), -1], np.int16)
        ranking |= {name: renamed[ranking[name]] for name in _NO_CLASS}
        ranking |= {"classes": np.array(head.classes, np.str_)}
    newer = _table(sorted(head.tasks, key=lambda task: task.task), head.classes)
    gone = np.isin(ranking["ids"], head.left)
    new = ~np.isin(newer["ids"], ranking["ids"])
    if gone.any() or new.any():
        at = np.searchsorted(ranking["ids"][~gone], newer["ids"][new])
        for name in ("ids", *_COLUMNS):
            ranking[name] = np.insert(ranking[name][~gone], at, newer[name][new])
    at = np.searchsorted(ranking["ids"], newer["ids"])
    for name in _COLUMNS:
        ranking[name][at] = newer[name]
    ranking["drawn"] = np.isin(ranking["ids"], [task.task for task in head.tasks if task.drawn])
    return ranking


def row(ranking: Mapping[str, Any], at: int, rank: int) -> Ranked:
    """One task of a ranking as a record."""
    predicted, queue = (int(ranking[name][at]) for name in _NO_CLASS)
    votes = int(ranking["votes"][at]) if "votes" in ranking else 0  # only the head has them
    return Ranked(
        task=int(ranking["ids"][at]),
        rank=rank,
        priority=float(ranking["priority"][at]),
        inconsistency=float(ranking["inconsistency"][at]),
        known_neighbours=int(ranking["known_neighbours"][at]),
        candidate=bool(ranking["candidate"][at]),
        predicted=str(ranking["classes"][predicted]) if predicted >= 0 else None,
        vote=str(ranking["classes"][ranking["vote"][at]]) if votes else None,
        votes=votes,
        known_chance=float(ranking["known_chance"][at]),
        queue=str(ranking["classes"][queue]) if queue >= 0 else None,
        place=int(ranking["place"][at]),
        drawn=bool(ranking["drawn"][at]) if "drawn" in ranking else False,  # as votes
    )


def place(arrays: ProjectArrays, head: Head | None, task: int) -> Ranked | None:
    """A task of the pool with its rank in the whole order; None when it is not in the order. See `places`."""
    return places(arrays, head, [task]).get(task)


def places(arrays: ProjectArrays, head: Head | None, tasks: Iterable[int]) -> dict[int, Ranked]:
    """Those of the tasks that are in the pool, with their ranks in the whole order.

    The head comes first, as it is, then the others by priority, ties by smaller id. For tasks of the head the ranking
    is not read. head: what `read_head` has given just before.
    """
    first = {one.task: one for one in head.tasks} if head is not None else {}
    wanted = set(tasks)
    found = {task: first[task] for task in wanted & first.keys()}
    rest = np.array(sorted(wanted - first.keys()), np.int64)
    ranking = read_ranking(arrays, head) if len(rest) else None
    if ranking is None or not len(ranking["ids"]):
        return found
    ids, priority = ranking["ids"], ranking["priority"]
    at = np.minimum(np.searchsorted(ids, rest), len(ids) - 1)
    at = at[ids[at] == rest]
    behind = np.ones(len(ids), bool)
    behind[np.searchsorted(ids, np.array(sorted(first), np.int64))] = False
    for here in at.tolist():
        better = (priority > priority[here]) | ((priority == priority[here]) & (ids < ids[here]))
        found[int(ids[here])] = row(ranking, here, len(first) + int(np.count_nonzero(better & behind)))
    return found


def features_kind(arrays: ProjectArrays, head: Head | None) -> str:
    """The kind of array that holds the features in use; "" when there are none."""
    if head is not None and head.features:
        return head.features
    found = arrays.kinds(kinds.FEATURES)
    return found[-1] if found else ""


def _table(tasks: Sequence[Ranked], classes: Sequence[str]) -> dict[str, Any]:
    """The tasks' numbers as columns, in the order given."""
    places = {name: place for place, name in enumerate(classes)}
    return {
        "ids": np.array([task.task for task in tasks], np.int64),
        "priority": np.array([task.priority for task in tasks], np.float64),
        "inconsistency": np.array([task.inconsistency for task in tasks], np.float64),
        "known_neighbours": np.array([task.known_neighbours for task in tasks], np.int16),
        "candidate": np.array([task.candidate for task in tasks], np.bool_),
        "predicted": np.array([-1 if task.predicted is None else places[task.predicted] for task in tasks], np.int16),
        "known_chance": np.array([task.known_chance for task in tasks], np.float32),
        "queue": np.array([-1 if task.queue is None else places[task.queue] for task in tasks], np.int16),
        "place": np.array([task.place for task in tasks], np.int64),
        "classes": np.array(classes, np.str_),
    }
