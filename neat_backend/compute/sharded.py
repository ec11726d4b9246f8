"""An engine whose rows are spread over shards; its answers equal those of a single engine.

A shard is an ordinary `Engine` that holds its own tasks and, as guests, all labelled tasks of the other shards: so
each of its rows finds its neighbours among all labels. Similarities are exact, so every shard computes the same ones,
and the order of the whole pool is the shards' orders merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.compute.shards import Ids, ShardedRows, Shards
from neat_backend.ranking import queues
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.head import WatchedHead
from neat_backend.ranking.linear_head import LinearHead
from neat_backend.ranking.order import as_drawn, with_draws
from neat_backend.ranking.pool import UNLABELLED, Pool
from neat_backend.ranking.repeats import Groups, repeats
from neat_backend.ranking.scores import INVALID
from neat_backend.ranking.views import PREDICTORS, Labelled, PoolPart, Ranking, Source
from neat_backend.records import Label, Ranked

_AT_ONCE = 65_536  # rows sent to a shard in one piece


class ShardedEngine(ShardedRows, WatchedHead):
    """The interface of `Engine` over shards that were started with the same settings."""

    def __init__(self, shards: Shards, classes: Sequence[str], **settings: Any) -> None:
        super().__init__(shards)
        self._empty = Engine(1, classes, **settings)  # without tasks; for methods that need none
        self.k, self.rule, self.seed = self._empty.k, self._empty.rule, self._empty.seed
        self.batch_size, self.draws = self._empty.batch_size, self._empty.draws
        self.classes = tuple(classes)
        self.class_features: NDArray[np.float32] | None = None
        self.version = self.training_version = self.pool_version = 0
        self._groups = Groups.none()  # of near-duplicates
        self._gone: set[int] = set()
        self.linear: LinearHead | None = None
        self._cover: Ids | None = None  # None = the tasks have changed
        self._known_whole: Ids = np.zeros(0, np.int64)  # labels and cover last sent to the shards
        self._repeats: Ids = np.zeros(0, np.int64)  # the last near-duplicates that can wait, sent to the shards

    # changes

    def reserve(self, n: int) -> None:
        """Reserve capacity for n tasks in all."""
        self._all("reserve", -(-n // len(self._shards)))

    def add_tasks(self, tasks: Sequence[int] | Ids, features: NDArray[np.float32]) -> None:
        """Add tasks with features [n, dim] on the grid; a task that exists gets the new features."""
        ids = np.asarray(tasks, np.int64)
        for start in range(0, len(ids), _AT_ONCE):
            part, values = ids[start : start + _AT_ONCE], features[start : start + _AT_ONCE]
            self._mark_gone(part[self._has(part)].tolist())
            self._each("add", {n: (part[at], values[at]) for n, at in self._homes(part).items()})
            self._ids = np.union1d(self._ids, part)
            self.pool_version += 1
            self._cover = None
            labelled = np.flatnonzero([task in self._book.labels for task in part.tolist()])
            self._host(part[labelled], values[labelled])
            self.training_version += bool(len(labelled))
        self.version += 1

    def remove_tasks(self, tasks: Iterable[int]) -> None:
        """Remove tasks and their labels; unknown tasks are ignored."""
        gone = np.array(list(dict.fromkeys(tasks)), np.int64)
        labelled = [task for task in gone.tolist() if task in self._book.labels]
        self._mark_gone(gone[self._has(gone)].tolist())
        self.training_version += bool(labelled)
        self._unhost(labelled)
        self._each("remove", {n: (gone[at].tolist(),) for n, at in self._homes(gone).items()})
        for task in gone.tolist():
            self._book.note(Label(task))
        self._ids = np.setdiff1d(self._ids, gone, assume_unique=True)
        self._cover = None
        self.version += bool(len(gone))

    def set_labels(self, labels: Iterable[Label]) -> None:
        """Label, relabel or unlabel tasks; a task's last label counts. Labels of tasks without features are kept."""
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
        # A label's own shard and the others search their rows at the same time.
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
        self.training_version += 1

    def set_classes(self, classes: Sequence[str]) -> None:
        """Change the class list: drop labels of removed classes, carry probabilities over."""
        classes = tuple(classes)
        if classes == self.classes:
            return
        self.classes = self._empty.classes = classes
        self.class_features = self.linear = None
        self._all("set_classes", classes)
        self.training_version += 1
        self._unhost(self._book.drop_vanished(classes))
        self.version += 1

    def set_probabilities(
        self, tasks: Sequence[int] | Ids, probabilities: NDArray[np.float32], classes: Sequence[str]
    ) -> None:
        """Set the classifier's class probabilities [n, len(classes)]; unknown tasks are ignored."""
        if probabilities.shape != (len(tasks), len(classes)):
            raise ValueError(f"probabilities are {probabilities.shape}, expected {(len(tasks), len(classes))}")
        ids = np.asarray(tasks, np.int64)
        given = {n: (ids[at], probabilities[at], tuple(classes)) for n, at in self._homes(ids).items()}
        self._each("set_probabilities", given)
        self.version += 1

    def training_data(self) -> tuple[Ids, NDArray[np.int32], NDArray[np.float32]]:
        """The linear head's training data, by task: ids [m], codes [m] (class or INVALID), features [m, dim]."""
        ids = np.array(sorted(self._book.labels), np.int64)
        ids = ids[self._has(ids)]
        held = [self._book.labels[task] for task in ids.tolist()]
        codes = np.array([INVALID if one.choice is None else self.classes.index(one.choice) for one in held], np.int32)
        return ids, codes, self._features(ids)

    def set_linear(self, head: LinearHead | None) -> Iterator[None]:
        """Apply a fitted head to all tasks; the shards do it at the same time."""
        if head is not None and head.classes != self.classes:
            return
        self.linear = head
        self._all("set_linear", head)
        self.version += 1
        yield

    def set_groups(self, groups: Groups) -> None:
        """Set the groups of near-duplicates."""
        self._groups = groups
        self.version += 1

    def take_gone(self) -> set[int]:
        """Tasks removed or given other features since the last call."""
        gone, self._gone = self._gone, set()
        return gone

    @property
    def source(self) -> Source:
        """The classifier in force."""
        return self._empty.source

    def set_source(self, source: Source) -> None:
        """Put another classifier in force; `set_probabilities` or `set_linear` then sets its probabilities."""
        if source != self.source:
            self._empty.source = source
            self._all("set_source", source)
            self.version += 1

    @property
    def balance(self) -> bool:
        """Whether the order keeps the classes in balance."""
        return self._empty.balance

    # what follows from it

    def _update_shards(self) -> None:
        """Send the shards the state of the whole pool that they can't compute alone, if it has changed."""
        counts, labels = self._book.counts(self.classes), len(self._book.labels)
        if self._cover is None and self.balance and not counts.all():
            self._known_whole = self._ids[:0]  # tasks with new features are in other rows of their shards
            self._cover = self._empty.spread(self._ids, self._features)
        now = counts, labels, self._ids[:0] if self._cover is None else self._cover
        whole = np.concatenate([counts, [labels], now[2]])
        if not np.array_equal(whole, self._known_whole):
            self._known_whole = whole
            self._empty.set_whole(counts, labels, ())
            self._all("set_whole", *now, self._repeats)
        repeated = self._repeated()
        if not np.array_equal(repeated, self._repeats):
            self._repeats = repeated
            self._all("set_whole", *now, repeated)

    def _repeated(self) -> Ids:
        """The near-duplicates that can wait, as `Order` has them; the shards know the cover."""
        if not self._empty.skip_duplicates or not len(self._groups.tasks):
            return self._ids[:0]
        here = self._has(self._groups.tasks)
        ids, groups, quality = self._groups.tasks[here], self._groups.groups[here], np.empty(here.sum())
        homes = self._homes(ids)
        for n, some in self._each("worth", {n: (ids[at].tolist(),) for n, at in homes.items()}).items():
            quality[homes[n]] = some
        labelled = np.isin(ids, np.fromiter(self._book.labels, np.int64))
        return ids[repeats(groups, quality, labelled, ~labelled & ~np.isin(ids, self._book.answered()))]

    def _mark_gone(self, tasks: Sequence[int]) -> None:
        """Record tasks whose features are about to be removed."""
        self._gone.update(tasks)
        self._groups = self._groups.without(tasks)
        self.pool_version += 1

    def _all_ids(self) -> Ids:
        return self._ids

    def _best(self, n: int) -> tuple[list[int], NDArray[np.float64]]:
        """The best of the shards' n best of each queue, and their priorities."""
        self._update_shards()

        def queued(each: int) -> tuple[Ids, NDArray[np.float64], NDArray[np.int16]]:
            ids, quality, queue = (np.concatenate(columns) for columns in zip(*self._all("queued", each), strict=True))
            return ids, quality, queue

        ids, _, priorities = self._empty.first(n, queued)
        return ids.tolist(), priorities

    def ranking(self) -> Ranking:
        """The whole pool's numbers, ascending by task id."""
        return self.copied_ranking()()

    def copied_ranking(self) -> Callable[[], Ranking]:
        """The ranking as it is now; the shards make it ready while others go on, the result is fetched when called."""
        self._update_shards()
        drawn = self.draw_priorities()
        parts = self._shards.begin("ranking", dict.fromkeys(range(len(self._shards)), ()))
        return lambda: self._merged(list(parts().values()), drawn)

    def _merged(self, parts: Sequence[Ranking], drawn: Mapping[int, float]) -> Ranking:
        names = [field.name for field in fields(Ranking) if field.name != "classes"]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        order = np.argsort(columns["ids"])
        columns = {name: column[order] for name, column in columns.items()}
        quality, queue = columns["quality"], columns["queue"]
        columns["place"] = queues.places(quality, queue, columns["ids"])
        columns["priority"] = self._empty.priority(quality, queue, columns["place"])
        return with_draws(Ranking(**columns, classes=parts[0].classes), drawn)

    def predictions(self, tasks: Sequence[int]) -> dict[str, NDArray[np.int16]]:
        """The class (-1 = none) that network, linear head and neighbours' vote predict for each task: [n] each."""
        ids = np.asarray(tasks, np.int64)
        homes = self._homes(ids)
        found: dict[str, NDArray[np.int16]] = {name: np.full(len(ids), -1, np.int16) for name in PREDICTORS}
        for n, part in self._each("predictions", {n: (ids[at].tolist(),) for n, at in homes.items()}).items():
            for name, column in part.items():
                found[name][homes[n]] = column
        return found

    def ranked(self, tasks: Sequence[int]) -> list[Ranked]:
        """The numbers of unlabelled tasks, in the given order; `rank` is their place in that list."""
        ids = np.asarray(tasks, np.int64)
        if not self._has(ids).all():
            raise KeyError(int(ids[~self._has(ids)][0]))
        self._update_shards()
        homes = self._homes(ids)
        quality, queue = np.empty(len(ids)), np.empty(len(ids), np.int16)
        for n, (some, of) in self._each("standing", {n: (ids[at].tolist(),) for n, at in homes.items()}).items():
            quality[homes[n]], queue[homes[n]] = some, of
        places = np.sum(self._all("better", (quality, queue, ids)), axis=0)
        parts = self._each("ranked", {n: (ids[at].tolist(), places[at]) for n, at in homes.items()})
        found = {ranked.task: ranked for part in parts.values() for ranked in part}
        drawn = self.draw_priorities()
        return [as_drawn(replace(found[task], rank=place), drawn) for place, task in enumerate(ids.tolist())]

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
        """Share of the tasks whose features the last single label had to read, over the shards."""
        return float(np.mean(self._all("read_share")))

    def pool(self, most: int) -> tuple[Ids, Pool | None]:
        """Ids and state of all labelled tasks and at most `most` others, for a strategy that looks at them all."""
        self._update_shards()
        parts = self._all("pool_part", most)
        whole = PoolPart(*(np.concatenate([getattr(p, field.name) for p in parts]) for field in fields(PoolPart)))
        open_rows = np.flatnonzero(whole.codes == UNLABELLED)
        open_rows = open_rows[self._empty.drawn(whole.ids[open_rows], most)]
        taken = np.concatenate([np.flatnonzero(whole.codes != UNLABELLED), open_rows])
        taken = taken[np.argsort(whole.ids[taken])]
        part = PoolPart(*(getattr(whole, field.name)[taken] for field in fields(PoolPart)))
        self._empty.class_features = self.class_features
        return part.ids, self._empty.pool_of(part)

    def untrained(self) -> list[int]:
        """Tasks without the classifier's probabilities, ascending."""
        return sorted(task for part in self._all("untrained") for task in part)
