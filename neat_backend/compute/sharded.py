"""An engine whose rows are spread over shards; what it answers equals what a single engine would.

A shard is an ordinary `Engine` that holds the tasks whose id falls to it, and as guests all labelled tasks of the
other shards: so each of its rows finds its neighbours among all labels. Similarities are exact, hence the same in
whichever shard they are computed, and the order of the whole pool is the shards' orders merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking import queues
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.head import WatchedHead
from neat_backend.ranking.labels import LabelBook
from neat_backend.ranking.linear_head import LinearHead
from neat_backend.ranking.pool import UNLABELLED, Pool
from neat_backend.ranking.scores import INVALID
from neat_backend.ranking.views import SPEAKERS, Counts, Labelled, PoolPart, Ranking, Source
from neat_backend.records import Label, Ranked, WithoutLabel

Ids = NDArray[np.int64]
_AT_ONCE = 65_536  # rows sent to a shard in one piece


class Shard:
    """A part of the rows, with the labelled tasks of all others as guests."""

    def __init__(self, dim: int, classes: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.engine = Engine(dim, classes, **settings)
        self._guests: set[int] = set()

    def reserve(self, n: int) -> None:
        self.engine.reserve(n)

    def add(self, ids: Ids, features: NDArray[np.float32]) -> None:
        self.engine.add_tasks(np.array(ids), np.array(features))  # what another process sends is read-only

    def host(self, labels: Sequence[Label], features: NDArray[np.float32]) -> None:
        """Take in labelled tasks of other shards, or their new features [n, dim]."""
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

    def tell(self, counts: Ids, labels: int, cover: Ids) -> None:
        self.engine.tell(counts, labels, cover.tolist())

    def queued(self, n: int) -> tuple[Ids, NDArray[np.float64], NDArray[np.int16]]:
        return self.engine.queued(n)

    def standing(self, tasks: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
        return self.engine.standing(tasks)

    def better(self, of: tuple[NDArray[np.float64], NDArray[np.int16], Ids]) -> Ids:
        return self.engine.better(of)

    def says(self, tasks: Sequence[int]) -> dict[str, NDArray[np.int16]]:
        return self.engine.says(tasks)

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
    """Several `Shard`s, wherever they are. Calls to one of them are carried out in the order in which they are made."""

    def __len__(self) -> int: ...

    def begin(self, method: str, args: Mapping[int, tuple[Any, ...]]) -> Callable[[], dict[int, Any]]:
        """Call a method of the shards named, each with its arguments; the results when what is returned is called."""


class LocalShards:
    """Shards in this process: for tests, and to compare with."""

    def __init__(self, n: int, dim: int, classes: Sequence[str], settings: Mapping[str, Any]) -> None:
        self._shards = [Shard(dim, classes, settings) for _ in range(n)]

    def __len__(self) -> int:
        return len(self._shards)

    def begin(self, method: str, args: Mapping[int, tuple[Any, ...]]) -> Callable[[], dict[int, Any]]:
        found = {number: getattr(self._shards[number], method)(*given) for number, given in args.items()}
        return lambda: found


class ShardedEngine(WatchedHead):
    """As `Engine`, method for method, over shards that have been started with the same settings."""

    def __init__(self, shards: Shards, classes: Sequence[str], **settings: Any) -> None:
        self._shards = shards
        self._empty = Engine(1, classes, **settings)  # defaults of settings; what a pool is made from
        self.k, self.rule, self.seed = self._empty.k, self._empty.rule, self._empty.seed
        self.batch_size = self._empty.batch_size
        self.classes = tuple(classes)
        self.class_features: NDArray[np.float32] | None = None
        self.version = self.taught_version = 0
        self.linear: LinearHead | None = None
        self._cover: Ids | None = None  # None = the tasks have changed
        self._told: Ids = np.zeros(0, np.int64)  # what the shards know of the whole
        self._book = LabelBook()
        self._ids: Ids = np.zeros(0, np.int64)  # tasks with features, ascending

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, task: int) -> bool:
        return bool(self._has([task])[0])

    # what happens

    def reserve(self, n: int) -> None:
        """Make room for n tasks in all."""
        self._all("reserve", -(-n // len(self._shards)))

    def add_tasks(self, tasks: Sequence[int] | Ids, features: NDArray[np.float32]) -> None:
        """Take in tasks with features [n, dim] on the grid; a task that is here gets the new features."""
        ids = np.asarray(tasks, np.int64)
        for start in range(0, len(ids), _AT_ONCE):
            part, values = ids[start : start + _AT_ONCE], features[start : start + _AT_ONCE]
            self._each("add", {n: (part[at], values[at]) for n, at in self._homes(part).items()})
            self._ids = np.union1d(self._ids, part)
            self._cover = None
            labelled = np.flatnonzero([task in self._book.labels for task in part.tolist()])
            self._host(part[labelled], values[labelled])
            self.taught_version += bool(len(labelled))
        self.version += 1

    def remove_tasks(self, tasks: Iterable[int]) -> None:
        """Forget tasks and their labels; unknown ones are passed over."""
        gone = np.array(list(dict.fromkeys(tasks)), np.int64)
        labelled = [task for task in gone.tolist() if task in self._book.labels]
        self.taught_version += bool(labelled)
        self._unhost(labelled)
        self._each("remove", {n: (gone[at].tolist(),) for n, at in self._homes(gone).items()})
        for task in gone.tolist():
            self._book.note(Label(task))
        self._ids = np.setdiff1d(self._ids, gone, assume_unique=True)
        self._cover = None
        self.version += bool(len(gone))

    def set_labels(self, labels: Iterable[Label]) -> None:
        """Label, relabel or unlabel tasks; the last word on a task counts. Tasks without features wait."""
        given = list(labels)
        before = {label.task: label.task in self._book.labels for label in given}
        changed = self._book.take(given, self.classes)
        if not changed:
            return
        tasks = np.array(list(changed), np.int64)
        here = tasks[self._has(tasks)].tolist()
        now = {task: task in self._book.labels for task in here}
        new = np.array([task for task in here if now[task] and not before[task]], np.int64)
        features = self._features(new)
        # A label's own shard and the others pass over their rows at the same time.
        finish = self._shards.begin(
            "set_labels",
            {n: ([changed[t] for t in tasks[at].tolist()],) for n, at in self._homes(tasks).items()},
        )
        self._unhost([task for task in here if before[task] and not now[task]])
        again = np.array([task for task in here if before[task] and now[task]], np.int64)
        self._guests_of(again, "set_labels", lambda ids: ([changed[t] for t in ids.tolist()],))
        self._host(new, features)
        finish()
        self.version += 1
        self.taught_version += 1

    def set_classes(self, classes: Sequence[str]) -> None:
        """Follow a new class list: labels of vanished classes are dropped, probabilities carried over."""
        classes = tuple(classes)
        if classes == self.classes:
            return
        self.classes = self._empty.classes = classes
        self.class_features = self.linear = None
        self._all("set_classes", classes)
        self.taught_version += 1
        self._unhost(self._book.drop_vanished(classes))
        self.version += 1

    def set_probabilities(
        self, tasks: Sequence[int] | Ids, probabilities: NDArray[np.float32], classes: Sequence[str]
    ) -> None:
        """Take the classifier's class probabilities [n, len(classes)]; tasks not here are passed over."""
        if probabilities.shape != (len(tasks), len(classes)):
            raise ValueError(f"probabilities are {probabilities.shape}, expected {(len(tasks), len(classes))}")
        ids = np.asarray(tasks, np.int64)
        given = {n: (ids[at], probabilities[at], tuple(classes)) for n, at in self._homes(ids).items()}
        self._each("set_probabilities", given)
        self.version += 1

    def taught(self) -> tuple[Ids, NDArray[np.int32], NDArray[np.float32]]:
        """What the linear head is fitted to, ascending by task: ids [m], codes [m] (class or INVALID), features."""
        ids = np.array(sorted(self._book.labels), np.int64)
        ids = ids[self._has(ids)]
        held = [self._book.labels[task] for task in ids.tolist()]
        codes = np.array([INVALID if one.choice is None else self.classes.index(one.choice) for one in held], np.int32)
        return ids, codes, self._features(ids)

    def set_linear(self, head: LinearHead | None) -> Iterator[None]:
        """Take a fitted head, for all tasks; the shards do it at the same time."""
        if head is not None and head.classes != self.classes:
            return
        self.linear = head
        self._all("set_linear", head)
        self.version += 1
        yield

    @property
    def source(self) -> Source:
        """The classifier in force."""
        return self._empty.source

    def set_source(self, source: Source) -> None:
        """Another classifier is in force. Its probabilities come next, by `set_probabilities` or `set_linear`."""
        if source != self.source:
            self._empty.source = source
            self._all("set_source", source)
            self.version += 1

    @property
    def balance(self) -> bool:
        """Whether the classes lead the order."""
        return self._empty.balance

    # what follows from it

    def _tell(self) -> None:
        """Let the shards know what each can't know alone, if it has changed."""
        counts, labels = self._book.counts(self.classes), len(self._book.labels)
        if self._cover is None and self.balance and not counts.all():
            self._cover = self._empty.spread(self._ids, self._features)
        now = counts, labels, self._ids[:0] if self._cover is None else self._cover
        told = np.concatenate([counts, [labels], now[2]])
        if not np.array_equal(told, self._told):
            self._told = told
            self._empty.tell(counts, labels, ())
            self._all("tell", *now)

    def _best(self, n: int) -> list[int]:
        """The best of the shards' n best of each queue."""
        self._tell()

        def queued(each: int) -> tuple[Ids, NDArray[np.float64], NDArray[np.int16]]:
            ids, quality, queue = (np.concatenate(columns) for columns in zip(*self._all("queued", each), strict=True))
            return ids, quality, queue

        return self._empty.first(n, queued)[0].tolist()

    def ranking(self) -> Ranking:
        """The whole pool's numbers, ascending by task id."""
        return self.copied_ranking()()

    def copied_ranking(self) -> Callable[[], Ranking]:
        """The ranking as it is now; the shards make it ready while others go on, the result is fetched when called."""
        self._tell()
        parts = self._shards.begin("ranking", dict.fromkeys(range(len(self._shards)), ()))
        return lambda: self._merged(list(parts().values()))

    def _merged(self, parts: Sequence[Ranking]) -> Ranking:
        names = [field.name for field in fields(Ranking) if field.name != "classes"]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        order = np.argsort(columns["ids"])
        columns = {name: column[order] for name, column in columns.items()}
        quality, queue = columns["quality"], columns["queue"]
        columns["place"] = queues.places(quality, queue, columns["ids"])
        columns["priority"] = self._empty.priority(quality, queue, columns["place"])
        return Ranking(**columns, classes=parts[0].classes)

    def says(self, tasks: Sequence[int]) -> dict[str, NDArray[np.int16]]:
        """Which class (-1 = none) network, linear head and neighbours' vote name for tasks that are here: [n] each."""
        ids = np.asarray(tasks, np.int64)
        homes = self._homes(ids)
        found: dict[str, NDArray[np.int16]] = {name: np.full(len(ids), -1, np.int16) for name in SPEAKERS}
        for n, part in self._each("says", {n: (ids[at].tolist(),) for n, at in homes.items()}).items():
            for name, column in part.items():
                found[name][homes[n]] = column
        return found

    def ranked(self, tasks: Sequence[int]) -> list[Ranked]:
        """Given unlabelled tasks, in the order given; `rank` is their place in that list."""
        ids = np.asarray(tasks, np.int64)
        if not self._has(ids).all():
            raise KeyError(int(ids[~self._has(ids)][0]))
        self._tell()
        homes = self._homes(ids)
        quality, queue = np.empty(len(ids)), np.empty(len(ids), np.int16)
        for n, (some, of) in self._each("standing", {n: (ids[at].tolist(),) for n, at in homes.items()}).items():
            quality[homes[n]], queue[homes[n]] = some, of
        places = np.sum(self._all("better", (quality, queue, ids)), axis=0)
        parts = self._each("ranked", {n: (ids[at].tolist(), places[at]) for n, at in homes.items()})
        found = {ranked.task: ranked for part in parts.values() for ranked in part}
        return [replace(found[task], rank=place) for place, task in enumerate(ids.tolist())]

    def neighbours(self, task: int) -> list[tuple[int, float]]:
        """A task's nearest labelled tasks, nearest first, with their similarities."""
        if task not in self:
            raise KeyError(task)
        found: list[tuple[int, float]] = self._each("neighbours", {task % len(self._shards): (task,)}).popitem()[1]
        return found

    def codes(self) -> tuple[Ids, NDArray[np.int16], tuple[str, ...]]:
        """Each task's class code, INVALID or UNLABELLED, ascending by task id, and the classes."""
        parts = self._all("codes")
        ids, codes = (np.concatenate([part[column] for part in parts]) for column in (0, 1))
        order = np.argsort(ids)
        return ids[order], codes[order], self.classes

    def nearest_labelled(self) -> Labelled:
        """Each labelled task's K nearest other labelled tasks."""
        parts = self._all("nearest_labelled")
        columns = [np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Labelled)]
        order = np.argsort(columns[0])
        return Labelled(*(column[order] for column in columns))

    @property
    def read_share(self) -> float:
        """Share of the tasks whose features had to be read when a single label last came in, over the shards."""
        return float(np.mean(self._all("read_share")))

    def pool(self, most: int) -> tuple[Ids, Pool | None]:
        """Ids and state of all labelled tasks and of at most so many others, for a strategy that looks at them all."""
        parts = self._all("pool_part", most)
        whole = PoolPart(*(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(PoolPart)))
        open_rows = np.flatnonzero(whole.codes == UNLABELLED)
        open_rows = open_rows[self._empty.drawn(whole.ids[open_rows], most)]
        taken = np.concatenate([np.flatnonzero(whole.codes != UNLABELLED), open_rows])
        taken = taken[np.argsort(whole.ids[taken])]
        part = PoolPart(*(getattr(whole, field.name)[taken] for field in fields(PoolPart)))
        self._empty.class_features = self.class_features
        return part.ids, self._empty.pool_of(part)

    def features(self, tasks: Sequence[int] | Ids) -> NDArray[np.float32]:
        """Features of tasks that are here (else KeyError): float32 [n, dim]."""
        ids = np.asarray(tasks, np.int64)
        if not self._has(ids).all():
            raise KeyError(int(ids[~self._has(ids)][0]))
        return self._features(ids)

    def tasks(self) -> list[int]:
        """All tasks with features, labelled or not."""
        return self._ids.tolist()

    def unlabelled(self, tasks: Iterable[int]) -> set[int]:
        """Those of the tasks that are in the pool: with features, without a label."""
        wanted = list(tasks)
        return {t for t, here in zip(wanted, self._has(wanted), strict=True) if here and t not in self._book.labels}

    def untrained(self) -> list[int]:
        """Tasks without the classifier's probabilities, ascending."""
        return sorted(task for part in self._all("untrained") for task in part)

    def labels(self) -> dict[int, Label]:
        """The labels of all labelled tasks, those without features included."""
        return dict(self._book.labels)

    def set_aside(self) -> Ids:
        """Tasks without a label that somebody has answered, those without features included, in no order."""
        return self._book.answered()

    def without_label(self) -> tuple[WithoutLabel, ...]:
        """Why these have none, the most frequent first."""
        return self._book.reasons()

    def counts(self) -> Counts:
        """Known and invalid count every labelled task; unlabelled only those with features."""
        labelled = int(self._has(list(self._book.labels)).sum())
        return Counts(self._book.known, self._book.invalid, len(self._ids) - labelled)

    # inside

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
        """Features of tasks that are here, fetched from their shards."""
        homes = self._homes(ids)
        found = self._each("features", {n: (ids[at].tolist(),) for n, at in homes.items()})
        if not homes:
            return np.zeros((0, 1), np.float32)
        features = np.empty((len(ids), next(iter(found.values())).shape[1]), np.float32)
        for n, at in homes.items():
            features[at] = found[n]
        return features

    def _host(self, ids: Ids, features: NDArray[np.float32]) -> None:
        """Labelled tasks become guests of all shards but their own."""
        place = {task: at for at, task in enumerate(ids.tolist())}
        self._guests_of(
            ids,
            "host",
            lambda some: ([self._book.labels[t] for t in some.tolist()], features[[place[t] for t in some.tolist()]]),
        )

    def _unhost(self, tasks: Sequence[int]) -> None:
        self._guests_of(np.array(tasks, np.int64), "remove", lambda ids: (ids.tolist(),))

    def _guests_of(self, ids: Ids, method: str, given: Callable[[Ids], tuple[Any, ...]]) -> None:
        """Call a method of every shard with what concerns its guests among the tasks."""
        home = ids % len(self._shards)
        others = {n: ids[home != n] for n in range(len(self._shards))}
        self._each(method, {n: given(some) for n, some in others.items() if len(some)})

    def _each(self, method: str, args: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        return self._shards.begin(method, args)() if args else {}

    def _all(self, method: str, *args: Any) -> list[Any]:
        return list(self._each(method, dict.fromkeys(range(len(self._shards)), args)).values())
