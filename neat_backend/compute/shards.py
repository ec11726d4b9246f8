"""A part of an engine's rows, and the calls to several such parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.engine import Engine
from neat_backend.ranking.labels import LabelBook
from neat_backend.ranking.linear_head import LinearHead
from neat_backend.ranking.method import Method
from neat_backend.ranking.views import Counts, Labelled, PoolPart, Ranking, Source
from neat_backend.records import Label, Ranked, WithoutLabel

Ids = NDArray[np.int64]


class Shard:
    """A part of the rows, with the labelled tasks of all others as guests."""

    def __init__(self, dim: int, classes: Sequence[str], settings: Mapping[str, Any]) -> None:
        method = replace(settings.get("method", Method()), random_share=0.0)  # the whole engine draws
        self.engine = Engine(dim, classes, **{**settings, "method": method})
        self._guests: set[int] = set()

    def reserve(self, n: int) -> None:
        self.engine.reserve(n)

    def add(self, ids: Ids, features: NDArray[np.float32]) -> None:
        self.engine.add_tasks(np.array(ids), np.array(features))  # what another process sends is read-only

    def host(self, labels: Sequence[Label], features: NDArray[np.float32]) -> None:
        """Add labelled tasks of other shards as guests, or their new features [n, dim]."""
        ids = [label.task for label in labels]
        self._guests.update(ids)
        self.engine.add_tasks(ids, np.array(features))
        self.engine.set_labels(labels)

    def remove(self, tasks: Sequence[int]) -> None:
        self.engine.remove_tasks(tasks)
        self._guests.difference_update(tasks)

    def set_labels(self, labels: Sequence[Label]) -> None:
        self.engine.set_labels(labels)

    def set_classes(self, classes: Sequence[str]) -> None:
        self.engine.set_classes(classes)

    def set_probabilities(self, ids: Ids, probabilities: NDArray[np.float32], classes: Sequence[str]) -> None:
        self.engine.set_probabilities(ids, probabilities, classes)

    def features(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return self.engine.features(ids)

    def set_linear(self, head: LinearHead | None) -> None:
        for _ in self.engine.set_linear(head):
            pass

    def set_source(self, source: Source) -> None:
        self.engine.set_source(source)

    def set_whole(self, counts: Ids, labels: int, cover: Ids, repeated: Ids) -> None:
        self.engine.set_whole(counts, labels, cover.tolist(), repeated.tolist())

    def worth(self, tasks: Sequence[int]) -> NDArray[np.float64]:
        return self.engine.worth(tasks)

    def queued(self, n: int) -> tuple[Ids, NDArray[np.float64], NDArray[np.int16]]:
        return self.engine.queued(n)

    def standing(self, tasks: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
        return self.engine.standing(tasks)

    def better(self, of: tuple[NDArray[np.float64], NDArray[np.int16], Ids]) -> Ids:
        return self.engine.better(of)

    def predictions(self, tasks: Sequence[int]) -> dict[str, NDArray[np.int16]]:
        return self.engine.predictions(tasks)

    def ranked(self, tasks: Sequence[int], places: Ids) -> list[Ranked]:
        return self.engine.ranked(tasks, places)

    def ranking(self) -> Ranking:
        return self.engine.ranking()

    def neighbours(self, task: int) -> list[tuple[int, float]]:
        return self.engine.neighbours(task)

    def codes(self) -> tuple[Ids, NDArray[np.int16], tuple[str, ...]]:
        ids, codes, classes = self.engine.codes()
        own = self._own(ids)
        return ids[own], codes[own], classes

    def nearest_labelled(self) -> Labelled:
        found = self.engine.nearest_labelled()
        own = self._own(found.ids)
        return Labelled(found.ids[own], found.codes[own], found.similarities[own])

    def _own(self, ids: Ids) -> NDArray[np.bool_]:
        return ~np.isin(ids, np.fromiter(self._guests, np.int64))

    def untrained(self) -> list[int]:
        return [task for task in self.engine.untrained() if task not in self._guests]

    def pool_part(self, most: int) -> PoolPart:
        return self.engine.pool_part(most, without=self._guests)

    def read_share(self) -> float:
        return self.engine.read_share


class Shards(Protocol):
    """Several `Shard`s, local or remote. Calls to one of them run in the order in which they were made."""

    def __len__(self) -> int: ...

    def begin(self, method: str, args: Mapping[int, tuple[Any, ...]]) -> Callable[[], dict[int, Any]]:
        """Call a method of the named shards, each with its arguments; calling the result returns their results."""


class ShardedRows:
    """The tasks of a pool whose rows are spread over shards: task t is a row of shard t modulo their number."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._book = LabelBook()
        self._ids: Ids = np.zeros(0, np.int64)  # tasks with features, ascending

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, task: int) -> bool:
        return bool(self._has([task])[0])

    def features(self, tasks: Sequence[int] | Ids) -> NDArray[np.float32]:
        """Features of tasks: float32 [n, dim]. Raises KeyError for an unknown task."""
        ids = np.asarray(tasks, np.int64)
        if not self._has(ids).all():
            raise KeyError(int(ids[~self._has(ids)][0]))
        return self._features(ids)

    def tasks(self) -> list[int]:
        """All tasks with features, labelled or not."""
        return self._ids.tolist()

    def unlabelled(self, tasks: Iterable[int]) -> set[int]:
        """The tasks among these that are in the pool: with features, without a label."""
        wanted = list(tasks)
        return {t for t, here in zip(wanted, self._has(wanted), strict=True) if here and t not in self._book.labels}

    def labels(self) -> dict[int, Label]:
        """The labels of all labelled tasks, those without features included."""
        return dict(self._book.labels)

    def set_aside(self) -> Ids:
        """Tasks without a label that somebody has answered, those without features included, in no order."""
        return self._book.answered()

    def without_label(self) -> tuple[WithoutLabel, ...]:
        """Why the tasks set aside have no label, the most frequent reason first."""
        return self._book.reasons()

    def counts(self) -> Counts:
        """Known and invalid count every labelled task; unlabelled only those with features."""
        labelled = int(self._has(list(self._book.labels)).sum())
        return Counts(self._book.known, self._book.invalid, len(self._ids) - labelled)

    def _has(self, tasks: Sequence[int] | Ids) -> NDArray[np.bool_]:
        wanted = np.asarray(tasks, np.int64)
        if not len(self._ids):
            return np.zeros(len(wanted), bool)
        at = np.minimum(np.searchsorted(self._ids, wanted), len(self._ids) - 1)
        return self._ids[at] == wanted

    def _homes(self, ids: Ids) -> dict[int, NDArray[np.int64]]:
        """Shard → the places of its tasks in `ids`; those without any are left out."""
        home = ids % len(self._shards)
        return {int(n): np.flatnonzero(home == n) for n in np.unique(home)}

    def _features(self, ids: Ids) -> NDArray[np.float32]:
        """Features of tasks, fetched from their shards."""
        homes = self._homes(ids)
        found = self._each("features", {n: (ids[at].tolist(),) for n, at in homes.items()})
        if not homes:
            return np.zeros((0, 1), np.float32)
        features = np.empty((len(ids), next(iter(found.values())).shape[1]), np.float32)
        for n, at in homes.items():
            features[at] = found[n]
        return features

    def _host(self, ids: Ids, features: NDArray[np.float32]) -> None:
        """Add labelled tasks as guests to all shards but their own."""
        place = {task: at for at, task in enumerate(ids.tolist())}
        self._guests_of(
            ids,
            "host",
            lambda some: ([self._book.labels[t] for t in some.tolist()], features[[place[t] for t in some.tolist()]]),
        )

    def _unhost(self, tasks: Sequence[int]) -> None:
        self._guests_of(np.array(tasks, np.int64), "remove", lambda ids: (ids.tolist(),))

    def _guests_of(self, ids: Ids, method: str, given: Callable[[Ids], tuple[Any, ...]]) -> None:
        """Call a method of every shard for its guests among the tasks."""
        home = ids % len(self._shards)
        others = {n: ids[home != n] for n in range(len(self._shards))}
        self._each(method, {n: given(some) for n, some in others.items() if len(some)})

    def _each(self, method: str, args: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        return self._shards.begin(method, args)() if args else {}

    def _all(self, method: str, *args: Any) -> list[Any]:
        return list(self._each(method, dict.fromkeys(range(len(self._shards)), args)).values())
