"""One project's live state: labels in, ranking out. Knows nothing of Label Studio, HTTP or files.

The state after any sequence of calls equals that of a fresh engine given the same tasks, labels and
probabilities: neighbours are exact, and a task's place depends on its own numbers alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neat_backend.models.devices import resolve_device
from neat_backend.ranking import cover, formulas, queues, scores
from neat_backend.ranking.hashing import mixed
from neat_backend.ranking.labels import LabelBook
from neat_backend.ranking.linear_head import LinearHead
from neat_backend.ranking.neighbors import NONE, LargePool, NeighborTable, Rows
from neat_backend.ranking.pool import UNLABELLED, Pool
from neat_backend.ranking.scores import INVALID, KnownRule
from neat_backend.records import Label, Ranked, WithoutLabel

_PRIORITY_STEPS = 2.0**32  # priorities nearer to each other than this count as equal
_TIE_STEPS = 2.0**20
_FEW = 16  # of a queue
_HEAD_ROWS = 16_384  # that a new head is applied to at a time

Source = Literal["resnet18", "linear"]
SPEAKERS = ("resnet18", "linear", "vote")  # that name a class for a task


@dataclass(frozen=True)
class Ranking:
    """The order of the whole pool at one moment, ascending by task id; arrays of one length n."""

    ids: NDArray[np.int64]
    priority: NDArray[np.float64]  # sort by this, then by id
    quality: NDArray[np.float64]  # what it is worth before the classes are balanced; strictly between ties too
    queue: NDArray[np.int16]  # that it waits in, see ranking.queues; -1 = the only one, without balance
    place: NDArray[np.int64]  # how many of its queue come before it
    known_chance: NDArray[np.float32]  # probability of a known class by the linear head
    inconsistency: NDArray[np.float64]
    known_neighbours: NDArray[np.int16]
    candidate: NDArray[np.bool_]
    predicted: NDArray[np.int16]  # index into classes; -1 before the first round
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Labelled:
    """Each task's K nearest labelled tasks, itself left out; rows ascending by task id."""

    ids: NDArray[np.int64]  # [n]
    codes: NDArray[np.int16]  # [n, K] what they are labelled with: class, INVALID; UNLABELLED = fewer than K labelled
    similarities: NDArray[np.float32]  # [n, K]


class Trained:
    """The classifier as strategies see it: probabilities that are known already, embeddings of the encoder."""

    def __init__(self, probabilities: NDArray[np.float64], features: NDArray[np.float32]) -> None:
        self.n_outputs = probabilities.shape[1]
        self._logits = np.log(np.maximum(probabilities, 1e-12)).astype(np.float32)
        self._features = features

    def logits(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [m, C]"""
        return self._logits[indices]

    def embeddings(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """The encoder's features: float32 [m, dim]."""
        return self._features[indices]

    def dropout_logits(self, indices: NDArray[np.int64], passes: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """The network is not here to drop anything: the same logits, float32 [passes, m, C]."""
        return np.repeat(self._logits[indices][None], passes, axis=0)


@dataclass(frozen=True)
class PoolPart:
    """Rows of the pool as a strategy needs them, ascending by task id; arrays of one length n."""

    ids: NDArray[np.int64]
    codes: NDArray[np.int64]
    trained: NDArray[np.bool_]
    probabilities: NDArray[np.float32]  # [n, C]
    features: NDArray[np.float32]  # [n, dim]


@dataclass(frozen=True)
class Counts:
    """Labelled tasks and the rest; the three never overlap and cover all tasks that the engine holds."""

    known: int
    invalid: int
    unlabelled: int


class WatchedHead(ABC):
    """The first 2B of an order, and whether they have changed."""

    version: int  # grows with every change
    batch_size: int

    def _begin_watching(self) -> None:
        self._head: list[int] = []  # the first 2B when they were last looked at
        self._head_at = -1  # the version of then
        self._head_version = 0

    @property
    def head_version(self) -> int:
        """A number that grows exactly when the list of the first 2B has changed since it was last asked for.

        Asking is free while nothing has happened at all. A list that changed and is back to what it was
        when somebody last looked (at this number or at `head()`) counts as unchanged; so do the numbers
        of tasks that stay in their places.
        """
        self._look_at_head()
        return self._head_version

    def head(self, n: int | None = None) -> list[int]:
        """The n unlabelled tasks to label first, best first (default 2B)."""
        if n is not None and n > 2 * self.batch_size:
            return self._best(n)
        self._look_at_head()
        return self._head[:n]

    def _look_at_head(self) -> None:
        if self._head_at != self.version:
            head = self._best(2 * self.batch_size)
            self._head_version += head != self._head
            self._head, self._head_at = head, self.version

    def _forget_head(self) -> None:
        """Look again when the order has changed by something that is no change of the state, as new settings."""
        self._head_at = -1

    @abstractmethod
    def _best(self, n: int) -> list[int]:
        """The first n."""


class Engine(WatchedHead):
    """Neighbours, votes, class probabilities and the order of the unlabelled tasks.

    dim: length of a feature. classes: known classes, in the order of the label config. k, rule,
    batch_size (B), seed: the method's settings. balance: led by what the classes lack (`ranking.queues`), else the
    paper's order. device: where the pool's features are kept. large: what happens when they are too many for memory.

    Class probabilities are those of the classifier in force, `source`: of the network, which `set_probabilities` tells,
    or of the linear head.
    """

    def __init__(
        self,
        dim: int,
        classes: Sequence[str],
        *,
        k: int = 10,
        rule: KnownRule = "all",
        batch_size: int = 50,
        seed: int = 0,
        balance: bool = False,
        source: Source = "resnet18",
        device: str = "cpu",
        large: LargePool | None = None,
    ) -> None:
        self.classes = tuple(classes)
        self.k, self.rule, self.batch_size, self.seed = k, rule, batch_size, seed
        self.balance, self.source = balance, source
        self.version = 0  # grows with every change
        self.taught_version = 0  # grows when what the linear head is fitted to has changed
        self.class_features: NDArray[np.float32] | None = None  # [C, dim] of the classes' names, where there are any
        self._table = NeighborTable(dim, k, resolve_device(device), large)
        self._book = LabelBook()
        self._probabilities: NDArray[np.float32] = np.zeros((0, len(self.classes)), np.float32)
        self._codes = np.zeros(0, np.int32)  # each row's class code, INVALID or UNLABELLED
        self._aside = np.zeros(0, bool)  # rows of the tasks that are set aside
        self._trained = np.zeros(0, bool)  # rows that have the probabilities of the classifier in force
        self._network_says: NDArray[np.int16] = np.zeros(0, np.int16)  # each row's class by the network, -1 = none
        self._linear_says: NDArray[np.int16] = np.zeros(0, np.int16)  # and by the linear head
        self._known_chance = np.ones(0, np.float32)  # by the head, 1 without one
        self._inconsistency = np.zeros(0)
        self._known = np.zeros(0, np.int16)
        self._candidate = np.zeros(0, bool)
        self._quality = np.zeros(0)
        self._queue = np.zeros(0, np.int16)  # of those that are neither set aside nor in the cover
        self.linear: LinearHead | None = None
        # Rows that are spread over the pool, with their qualities there; None = the tasks have changed.
        self._cover: tuple[Rows, NDArray[np.float64]] | None = None
        self._told: tuple[NDArray[np.int64], int] | None = None  # labels of each class and in all, told by the owner
        self._placed: dict[int, int] = {}  # places of the rows that were last selected
        self._placed_at = -1  # the version of then
        self._begin_watching()

    def __len__(self) -> int:
        """Tasks with features."""
        return len(self._table)

    def __contains__(self, task: int) -> bool:
        return task in self._table

    # what happens

    def reserve(self, n: int) -> None:
        """Make room for n tasks in all, so that nothing is copied while they are added."""
        self._table.reserve(n)
        self._fit_arrays()

    def add_tasks(self, tasks: Sequence[int] | NDArray[np.int64], features: NDArray[np.float32]) -> None:
        """Take in tasks with features [n, dim] on the grid; a task that is here gets the new features."""
        ids = np.asarray(tasks, np.int64)
        here = self._table.find(ids) != NONE
        if here.any():
            self._rescore(self._table.remove_tasks(ids[here]))
        rows = self._table.add_tasks(ids, features)
        self._fit_arrays()
        self._codes[rows] = UNLABELLED
        self._aside[rows] = self._trained[rows] = False  # of the task that had the row before
        self._network_says[rows] = self._linear_says[rows] = -1
        self._known_chance[rows] = 1
        self._cover = None if self._told is None else self._cover
        if self.linear is not None:
            self._apply_head(rows)
        else:
            self._rescore(rows)
        self._apply([label for label in map(self._book.of, ids.tolist()) if label != Label(label.task)])

    def remove_tasks(self, tasks: Iterable[int]) -> None:
        """Forget tasks and their labels; unknown ones are passed over."""
        gone = [int(t) for t in dict.fromkeys(tasks)]
        for task in gone:
            self._book.note(Label(task))
        here = [t for t in gone if t in self._table]
        if here:
            self.taught_version += bool((self._codes[self._table.rows(here)] != UNLABELLED).any())
            self._codes[self._table.rows(here)] = UNLABELLED
            self._rescore(self._table.remove_tasks(here))
            self._cover = None if self._told is None else self._cover
        self.version += bool(gone)

    def set_labels(self, labels: Iterable[Label]) -> None:
        """Label, relabel or unlabel tasks; the last word on a task counts. Tasks without features wait."""
        changed = self._book.take(labels, self.classes)
        here = self._table.find(list(changed)) != NONE
        self._apply([label for label, found in zip(changed.values(), here, strict=True) if found])
        self.version += bool(changed)

    def set_classes(self, classes: Sequence[str]) -> None:
        """Follow a new class list: labels of vanished classes are dropped, probabilities carried over."""
        classes = tuple(classes)
        if classes == self.classes:
            return
        carried = self._carried(self._probabilities, self.classes, classes)
        self._probabilities = carried
        places = {name: place for place, name in enumerate(classes)}
        renamed = np.array([*(places.get(name, -1) for name in self.classes), -1], np.int16)
        self._network_says, self._linear_says = renamed[self._network_says], renamed[self._linear_says]
        self.classes = classes
        self.taught_version += 1
        self.linear = None  # its outputs are of other classes
        self.class_features = None  # those were of other names
        dropped = self._book.drop_vanished(classes)
        self._codes[:] = UNLABELLED
        self._table.unlabel(self._rows(dropped))
        self._aside[self._rows(dropped)] = True
        held = [label for label in self._book.labels.values() if label.task in self._table]
        self._codes[self._table.rows([label.task for label in held])] = [self._code(label) for label in held]
        self._trained &= carried.sum(axis=1) > 0
        self._known_chance[:] = 1
        self._rescore(np.flatnonzero(self._table.alive).astype(np.int32))

    def set_probabilities(
        self, tasks: Sequence[int] | NDArray[np.int64], probabilities: NDArray[np.float32], classes: Sequence[str]
    ) -> None:
        """Take the network's class probabilities [n, len(classes)]; tasks not here are passed over.

        Classes that the classifier doesn't know get 0; those that the project no longer has are left
        out and the rest rescaled.
        """
        if probabilities.shape != (len(tasks), len(classes)):
            raise ValueError(f"probabilities are {probabilities.shape}, expected {(len(tasks), len(classes))}")
        rows = self._table.find(tasks)
        here = rows != NONE
        rows = rows[here]
        carried = self._carried(probabilities[here], tuple(classes), self.classes)
        told = carried.sum(axis=1) > 0
        self._network_says[rows] = np.where(told, carried.argmax(axis=1), -1) if self.classes else -1
        if self.source == "resnet18":
            self._probabilities[rows], self._trained[rows] = carried, told
            self._rescore(rows)

    def taught(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """What the linear head is fitted to, ascending by task: ids [m], codes [m] (class or INVALID), features."""
        rows = np.flatnonzero(self._table.alive & (self._codes != UNLABELLED)).astype(np.int32)
        rows = rows[np.argsort(self._table.ids[rows])]
        return self._table.ids[rows].copy(), self._codes[rows].copy(), self._table.planes.exact(rows)

    def set_linear(self, head: LinearHead | None) -> Iterator[None]:
        """Take a fitted head, for all tasks: a piece at each step of what is returned, so that others get their turn.

        Tasks that come in between have the new head's word at once. A head of other classes is passed over.
        """
        if head is not None and head.classes != self.classes:
            return
        self.linear = head
        start = 0
        while start < len(self._table.ids):
            rows = start + np.flatnonzero(self._table.alive[start : start + _HEAD_ROWS]).astype(np.int32)
            self._apply_head(rows)
            start += _HEAD_ROWS
            yield

    def set_source(self, source: Source) -> None:
        """Another classifier is in force. Its probabilities come next, by `set_probabilities` or `set_linear`."""
        if source != self.source:
            self.source = source
            self._trained[:] = False
            self._rescore(np.flatnonzero(self._table.alive).astype(np.int32))

    def tell(self, counts: NDArray[np.int64], labels: int, cover: Sequence[int]) -> None:
        """What an engine of a part of the pool can't know: labels of each class and in all, and the whole's cover."""
        self._told, self._cover = (counts, labels), self._covering(cover)
        self.version += 1

    # what follows from it

    def _best(self, n: int) -> list[int]:
        """The first n."""
        ids, places = self.first(n, self.queued)
        self._placed = dict(zip(self._table.find(ids).tolist(), places.tolist(), strict=True))
        self._placed_at = self.version
        return ids.tolist()

    def first(
        self, n: int, queued: Callable[[int], tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int16]]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of the first n in order, and their places in their queues; queued: as the method.

        Balance takes about as many from each queue, so few of each are looked at first; where that was not enough, n.
        """
        few = min(n, max(_FEW, 4 * n // max(len(self.classes), 1))) if self.balance else n
        ids, quality, queue = queued(few)
        order, places = self.merged(ids, quality, queue, n)
        if few < n and (places >= few - 1).any():
            ids, quality, queue = queued(n)
            order, places = self.merged(ids, quality, queue, n)
        return ids[order], places

    def queued(self, n: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int16]]:
        """Ids, qualities and queues of the n best of each queue, in no order."""
        quality, queue = self._waiting()
        rows = queues.best_of_each(
            min(n, len(queue)),
            quality,
            queue,
            self._table.alive & (self._codes == UNLABELLED),
            self._table.ids,
            len(self.classes) + 2,
        )
        return self._table.ids[rows], quality[rows], queue[rows]

    def merged(
        self, ids: NDArray[np.int64], quality: NDArray[np.float64], queue: NDArray[np.int16], n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of the tasks are the first n, as indices in order, and their places in their queues."""
        places = queues.places(quality, queue, ids)
        order = np.lexsort((ids, -self.priority(quality, queue, places)))[:n]
        return order, places[order]

    def priority(
        self, quality: NDArray[np.float64], queue: NDArray[np.int16], place: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Of tasks with these qualities at these places of their queues: float64 [n] in [0, 1]."""
        if not self.balance:
            return queues.banded(quality, queue == len(self.classes) + 1)
        return queues.priorities(quality, queue, place, self.queue_labels())

    def queue_labels(self) -> NDArray[np.float64]:
        """How many labels each queue counts as having: float64 [C + 2]."""
        return formulas.label_counts(*self._labels_of_classes())

    def _labels_of_classes(self) -> tuple[NDArray[np.int64], int]:
        """How many labels each class has, and how many there are with the invalid ones."""
        return self._told or (self._book.counts(self.classes), len(self._book.labels))

    @property
    def unseen(self) -> bool:
        """Whether a class has no label yet."""
        return not self._labels_of_classes()[0].all()

    def _waiting(self) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
        """Each row's quality and queue at this moment: float64 and int16 [capacity]."""
        c = len(self.classes)
        quality, queue = self._quality, self._queue.copy() if self.balance else np.zeros_like(self._queue)
        if self.balance and self.unseen:
            if self._cover is None:
                self._cover = self._covering(self.spread(np.sort(self._table.ids[self._table.alive]), self.features))
            covered, worth = self._cover
            quality = quality.copy()
            quality[covered], queue[covered] = worth, c
        queue[self._aside] = c + 1
        return quality, queue

    def _covering(self, tasks: Sequence[int] | NDArray[np.int64]) -> tuple[Rows, NDArray[np.float64]]:
        """Rows of those that are here of a cover, and what each is worth for its place in it."""
        rows = self._table.find(tasks)
        return rows[rows != NONE], (1 - np.arange(len(rows)) / (2 * cover.MOST))[rows != NONE]

    def spread(
        self, ids: NDArray[np.int64], features: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    ) -> NDArray[np.int64]:
        """Those of all tasks [n], ascending, that `cover` puts first, in order; a sample is drawn by the seed."""
        drawn = ids[self.drawn(ids, cover.SAMPLE)]
        drawn = drawn[np.argsort(mixed(drawn, self.seed + 1))]
        return drawn[cover.greedy_cover(features(drawn), cover.MOST)] if len(drawn) else drawn

    def ranking(self) -> Ranking:
        """The whole pool's numbers, ascending by task id."""
        return self.copied_ranking()()

    def copied_ranking(self) -> Callable[[], Ranking]:
        """The ranking as it is now, in two parts: plain copies at once, and the rest when the result is called.

        The second part takes longer and may run in any thread, whatever happens to the engine meanwhile.
        """
        ids, codes = self._table.ids.copy(), self._codes.copy()
        quality, queue = self._waiting()
        quality = quality.copy()
        inconsistency, known, candidate = self._inconsistency.copy(), self._known.copy(), self._candidate.copy()
        trained, chance = self._trained.copy(), self._known_chance.copy()
        probabilities = self._probabilities.copy() if trained.any() else None
        rows, classes, labels = self._table.rows_by_id(), self.classes, self.queue_labels()

        def gather() -> Ranking:
            pool = rows[codes[rows] == UNLABELLED]
            predicted = np.full(len(pool), -1, np.int16)
            if probabilities is not None and classes:
                told = trained[pool]
                predicted[told] = np.argmax(probabilities[pool[told]], axis=1)
            place = queues.places(quality[pool], queue[pool], ids[pool])
            if self.balance:
                priority = queues.priorities(quality[pool], queue[pool], place, labels)
            else:
                priority = queues.banded(quality[pool], queue[pool] == len(classes) + 1)
            return Ranking(
                ids=ids[pool],
                priority=priority,
                quality=quality[pool],
                queue=queue[pool] if self.balance else np.where(queue[pool] > 0, queue[pool], -1).astype(np.int16),
                place=place,
                known_chance=chance[pool],
                inconsistency=inconsistency[pool],
                known_neighbours=known[pool],
                candidate=candidate[pool],
                predicted=predicted,
                classes=classes,
            )

        return gather

    def ranked(self, tasks: Sequence[int], places: NDArray[np.int64] | None = None) -> list[Ranked]:
        """Given unlabelled tasks, in the order given; `rank` is their place in that list.

        places: in their queues, where this engine holds a part of the pool.
        """
        rows = self._table.rows(tasks)
        predicted = self._predicted(rows)
        vote, votes = self._vote(rows)
        quality, queue = self.standing(tasks)
        if places is None:
            places = self._places(rows, quality, queue)
        priority = self.priority(quality, queue, places)
        names = (*self.classes, None, None)
        return [
            Ranked(
                task=int(task),
                rank=at,
                priority=float(priority[at]),
                inconsistency=float(self._inconsistency[row]),
                known_neighbours=int(self._known[row]),
                candidate=bool(self._candidate[row]),
                predicted=self.classes[code] if code >= 0 else None,
                vote=self.classes[vote[at]] if votes[at] else None,
                votes=int(votes[at]),
                known_chance=float(self._known_chance[row]),
                queue=names[queue[at]] if self.balance else None,
                place=int(places[at]),
            )
            for at, (task, row, code) in enumerate(zip(tasks, rows, predicted, strict=True))
        ]

    def standing(self, tasks: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
        """Qualities and queues of tasks that are here."""
        rows = self._table.rows(tasks)
        quality, queue = self._waiting()
        return quality[rows], queue[rows]

    def better(self, of: tuple[NDArray[np.float64], NDArray[np.int16], NDArray[np.int64]]) -> NDArray[np.int64]:
        """How many tasks here come before each of those, in its queue; of: qualities, queues and ids [m]."""
        open_rows = self._table.alive & (self._codes == UNLABELLED)
        return queues.better(*self._waiting(), open_rows, self._table.ids, of)

    def _places(self, rows: Rows, quality: NDArray[np.float64], queue: NDArray[np.int16]) -> NDArray[np.int64]:
        known = self._placed if self._placed_at == self.version else {}
        if all(row in known for row in rows.tolist()):
            return np.array([known[row] for row in rows.tolist()], np.int64)
        return self.better((quality, queue, self._table.ids[rows]))

    def says(self, tasks: Sequence[int]) -> dict[str, NDArray[np.int16]]:
        """Which class (-1 = none) network, linear head and neighbours' vote name for tasks that are here: [n] each."""
        rows = self._table.rows(tasks)
        vote, votes = self._vote(rows)
        columns = self._network_says[rows], self._linear_says[rows], np.where(votes > 0, vote, -1).astype(np.int16)
        return dict(zip(SPEAKERS, columns, strict=True))

    def neighbours(self, task: int) -> list[tuple[int, float]]:
        """A task's nearest labelled tasks, nearest first, with their similarities."""
        row = self._table.rows([task])[0]
        found = self._table.neighbours[row]
        held = found != NONE
        ids = self._table.ids[found[held]].tolist()
        return list(zip(ids, self._table.similarities[row][held].tolist(), strict=True))

    def codes(self) -> tuple[NDArray[np.int64], NDArray[np.int16], tuple[str, ...]]:
        """Tasks with features, ascending, what each is labelled with (class, INVALID, UNLABELLED), and the classes."""
        rows = self._table.rows_by_id()
        return self._table.ids[rows], self._codes[rows].astype(np.int16), self.classes

    def nearest_labelled(self) -> Labelled:
        """Of all tasks with features, labelled or not."""
        rows = self._table.rows_by_id()
        found = self._table.neighbours[rows]
        codes = np.where(found == NONE, UNLABELLED, self._codes[found]).astype(np.int16)
        return Labelled(self._table.ids[rows], codes, self._table.similarities[rows])

    @property
    def read_share(self) -> float:
        """Share of the tasks whose features had to be read when a single label last came in."""
        return self._table.planes.read_share

    @property
    def approximate(self) -> bool:
        """Whether neighbours are sought near a task's cell only; exact while it is False."""
        return self._table.approximate

    def pool(self, most: int) -> tuple[NDArray[np.int64], Pool | None]:
        """Ids and state of all labelled tasks and of at most so many others, for a strategy that looks at them all.

        Of more, a sample drawn by the seed. Nothing is on offer that somebody has answered without a label. The pool
        is None while there are no classes.
        """
        part = self.pool_part(most)
        return part.ids, self.pool_of(part)

    def pool_part(self, most: int, without: Collection[int] = ()) -> PoolPart:
        """What `pool` is made from, some tasks left out."""
        rows = self._table.rows_by_id()
        if without:
            rows = rows[~np.isin(self._table.ids[rows], np.fromiter(without, np.int64))]
        open_rows = rows[(self._codes[rows] == UNLABELLED) & ~self._aside[rows]]
        drawn = self.drawn(self._table.ids[open_rows], most)
        taken = np.concatenate([rows[self._codes[rows] != UNLABELLED], open_rows[drawn]])
        taken = taken[np.argsort(self._table.ids[taken])]
        return PoolPart(
            self._table.ids[taken],
            self._codes[taken].astype(np.int64),
            self._trained[taken],
            self._probabilities[taken],
            self.features(self._table.ids[taken]),
        )

    def drawn(self, ids: NDArray[np.int64], most: int) -> NDArray[np.int64]:
        """Places of at most so many of the ids, drawn by the seed."""
        if len(ids) <= most:
            return np.arange(len(ids))
        return np.argpartition(mixed(ids, self.seed + 1), most)[:most]

    def pool_of(self, part: PoolPart) -> Pool | None:
        """The pool for a strategy; None while there are no classes."""
        if not self.classes:
            return None
        probabilities = part.probabilities.astype(np.float64)
        probabilities[~part.trained] = 1 / len(self.classes)
        return Pool(
            features=part.features,
            labels=part.codes,
            n_classes=len(self.classes),
            offered=np.flatnonzero(part.codes == UNLABELLED),
            model=Trained(probabilities, part.features) if part.trained.any() else None,
            k=self.k,
            rule=self.rule,
            class_features=self.class_features,
        )

    def features(self, tasks: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Features of tasks that are here (else KeyError), as they were given: float32 [n, dim]."""
        return self._table.planes.exact(self._table.rows(tasks))

    def tasks(self) -> list[int]:
        """All tasks with features, labelled or not, in no order."""
        return self._table.ids[self._table.alive].tolist()

    def unlabelled(self, tasks: Iterable[int]) -> set[int]:
        """Those of the tasks that are in the pool: with features, without a label."""
        wanted = list(tasks)
        here = self._table.find(wanted) != NONE
        return {t for t, found in zip(wanted, here, strict=True) if found and t not in self._book.labels}

    def untrained(self) -> list[int]:
        """Tasks without the network's probabilities, ascending."""
        return np.sort(self._table.ids[self._table.alive & (self._network_says < 0)]).tolist()

    def labels(self) -> dict[int, Label]:
        """The labels of all labelled tasks, those without features included."""
        return dict(self._book.labels)

    def set_aside(self) -> NDArray[np.int64]:
        """Tasks without a label that somebody has answered, those without features included: int64 [n], in no order."""
        return self._book.answered()

    def without_label(self) -> tuple[WithoutLabel, ...]:
        """Why these have none, the most frequent first."""
        return self._book.reasons()

    def counts(self) -> Counts:
        """Known and invalid count every labelled task; unlabelled only those with features."""
        return Counts(
            known=self._book.known,
            invalid=self._book.invalid,
            unlabelled=len(self._table) - self._table.count_labelled(),
        )

    # inside

    def _rows(self, tasks: Sequence[int]) -> Rows:
        rows = self._table.find(tasks)
        return rows[rows != NONE]

    def _code(self, label: Label) -> int:
        if label.invalid:
            return INVALID
        return UNLABELLED if label.choice is None else self.classes.index(label.choice)

    def _apply(self, labels: Sequence[Label]) -> None:
        """Bring the table and the votes in line with the labels of tasks that have features."""
        if not labels:
            return
        rows = self._table.rows([x.task for x in labels])
        codes = np.array([self._code(x) for x in labels], np.int32)
        was = self._codes[rows].copy()
        self._codes[rows] = codes
        self.taught_version += bool((was != codes).any())
        self._aside[rows] = [bool(x.set_aside) for x in labels]
        added = rows[(was == UNLABELLED) & (codes != UNLABELLED)]
        removed = rows[(was != UNLABELLED) & (codes == UNLABELLED)]
        changed = rows[(was != UNLABELLED) & (codes != UNLABELLED) & (was != codes)]
        touched = [self._table.unlabel(removed), self._table.label(added), rows]
        if len(changed):
            touched.append(self._table.rows_near(changed))
        self._rescore(np.unique(np.concatenate(touched)))

    def _apply_head(self, rows: Rows) -> None:
        """The linear head's word on rows; without a head, none."""
        if self.linear is None:
            self._linear_says[rows], self._known_chance[rows] = -1, 1
            if self.source == "linear":
                self._trained[rows] = False
        elif len(rows):
            logits = self._table.planes.outputs(rows, self.linear.weights, self.linear.biases)
            probabilities, self._known_chance[rows] = self.linear.of_logits(logits)
            self._linear_says[rows] = probabilities.argmax(axis=1)
            if self.source == "linear":
                self._probabilities[rows], self._trained[rows] = probabilities, True
        self._rescore(rows)

    def _rescore(self, rows: Rows) -> None:
        """Recompute what a place in the order comes from, for rows whose neighbours or numbers changed."""
        self.version += 1
        if not len(rows) or not self.classes:
            return
        found = self._table.neighbours[rows]
        codes = np.where(found == NONE, scores.MISSING, self._codes[found])
        probabilities = self._probabilities[rows].astype(np.float64)
        probabilities[~self._trained[rows]] = 1 / len(self.classes)
        inconsistency = scores.inconsistency(codes, probabilities, len(self.classes))
        known = scores.known_neighbours(codes)
        candidate = scores.candidates(codes, self.rule)
        self._inconsistency[rows] = inconsistency
        self._known[rows] = known
        self._candidate[rows] = candidate
        if self.balance:
            quality = scores.quality(inconsistency, self._known_chance[rows], self.k, len(self.classes))
            self._queue[rows] = np.where(self._trained[rows], probabilities.argmax(axis=1), scores.vote(codes)[0])
        else:
            quality = scores.priority(inconsistency, known, candidate, self.k, len(self.classes))
        self._quality[rows] = self._spread_ties(quality, self._table.ids[rows])

    def _spread_ties(self, priority: NDArray[np.float64], ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Priorities in which (nearly) equal ones are told apart by a seeded hash of the task's id.

        Before the first labels all tasks are equal, and pools tend to be sorted by class: in the order of
        ids the first batch would show one class only. The hash lies below the 2^-32 that a priority is
        rounded to, so it never outweighs a difference.
        """
        tie = (mixed(ids, self.seed) >> np.uint64(44)).astype(np.float64) / _TIE_STEPS  # [0, 1)
        steps = np.minimum(np.round(priority * _PRIORITY_STEPS), _PRIORITY_STEPS - 1)
        return (steps + tie) / _PRIORITY_STEPS

    def _vote(self, rows: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The class that most of each row's known neighbours have, ties to the first, and how many have it."""
        found = self._table.neighbours[rows]
        return scores.vote(np.where(found == NONE, scores.MISSING, self._codes[found]))

    def _predicted(self, rows: Rows) -> NDArray[np.int16]:
        if not self.classes:
            return np.full(len(rows), -1, np.int16)
        best = np.argmax(self._probabilities[rows], axis=1)
        return np.where(self._trained[rows], best, -1).astype(np.int16)

    def _fit_arrays(self) -> None:
        """Grow the arrays that run beside the table's rows."""
        size = len(self._table.ids)
        for name, fill in (
            ("_probabilities", 0),
            ("_codes", UNLABELLED),
            ("_aside", False),
            ("_trained", False),
            ("_network_says", -1),
            ("_linear_says", -1),
            ("_known_chance", 1),
            ("_inconsistency", 0),
            ("_known", 0),
            ("_candidate", False),
            ("_quality", 0),
            ("_queue", 0),
        ):
            array = getattr(self, name)
            if len(array) < size:
                grown = np.full((size, *array.shape[1:]), fill, array.dtype)
                grown[: len(array)] = array
                setattr(self, name, grown)

    @staticmethod
    def _carried(probabilities: NDArray[np.float32], old: tuple[str, ...], new: tuple[str, ...]) -> NDArray[np.float32]:
        """Columns of `old` classes put under `new` ones, rows rescaled to sum to 1 (or 0 if nothing is left)."""
        if old == new:
            return probabilities.astype(np.float32)
        result = np.zeros((len(probabilities), len(new)), np.float32)
        for column, name in enumerate(new):
            if name in old:
                result[:, column] = probabilities[:, old.index(name)]
        total = result.sum(axis=1, keepdims=True)
        return np.divide(result, total, out=np.zeros_like(result), where=total > 0)
