"""The order of the unlabelled tasks, from their rows' numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking import cover, formulas, queues
from neat_backend.ranking.hashing import mixed
from neat_backend.ranking.head import WatchedHead
from neat_backend.ranking.neighbors import NONE, Rows
from neat_backend.ranking.pool import UNLABELLED
from neat_backend.ranking.repeats import repeats
from neat_backend.ranking.task_rows import PoolRows
from neat_backend.ranking.views import Ranking
from neat_backend.records import Ranked

_FEW = 16  # of a queue


def as_drawn(ranked: Ranked, drawn: Mapping[int, float]) -> Ranked:
    """The same, with the priority of a random draw where it is one; see `WatchedHead.draw_priorities`."""
    if ranked.task not in drawn:
        return ranked
    return replace(ranked, priority=drawn[ranked.task], queue=None, place=0, drawn=True)


def with_draws(ranking: Ranking, drawn: Mapping[int, float]) -> Ranking:
    """The same with the random draws in their places; they wait in no queue."""
    rows = np.searchsorted(ranking.ids, np.fromiter(drawn, np.int64))
    priority, queue, place = ranking.priority.copy(), ranking.queue.copy(), ranking.place.copy()
    priority[rows], queue[rows], place[rows] = list(drawn.values()), -1, 0
    return replace(ranking, priority=priority, queue=queue, place=place)


class Order(PoolRows, WatchedHead):
    """The order of the unlabelled tasks: each one's queue, place in it and priority."""

    def _all_ids(self) -> NDArray[np.int64]:
        return self._table.ids[self._table.alive]

    def _best(self, n: int) -> tuple[list[int], NDArray[np.float64]]:
        """The first n without random draws, and their priorities."""
        ids, places, priorities = self.first(n, self.queued)
        self._placed = dict(zip(self._table.find(ids).tolist(), places.tolist(), strict=True))
        self._placed_at = self.version
        return ids.tolist(), priorities

    def first(
        self, n: int, queued: Callable[[int], tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int16]]]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Ids of the first n in order, their places in their queues, and priorities; queued: as the method.

        Balance takes about as many from each queue, so a few of each are read first; if they are too few, n of each.
        """
        few = min(n, max(_FEW, 4 * n // max(len(self.classes), 1))) if self.balance else n
        ids, quality, queue = queued(few)
        order, places, priorities = self.merged(ids, quality, queue, n)
        if few < n and (places >= few - 1).any():
            ids, quality, queue = queued(n)
            order, places, priorities = self.merged(ids, quality, queue, n)
        return ids[order], places, priorities

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
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Which of the tasks are the first n, as indices in order, their places in their queues, and priorities."""
        places = queues.places(quality, queue, ids)
        priorities = self.priority(quality, queue, places)
        order = np.lexsort((ids, -priorities))[:n]
        return order, places[order], priorities[order]

    def priority(
        self, quality: NDArray[np.float64], queue: NDArray[np.int16], place: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Priorities of tasks with these qualities at these places of their queues: float64 [n] in [0, 1]."""
        if not self.balance:
            return queues.banded(quality, queue == len(self.classes) + 1)
        return queues.priorities(quality, queue, place, self.queue_labels())

    def queue_labels(self) -> NDArray[np.float64]:
        """How many labels each queue counts as having: float64 [C + 2]."""
        return formulas.label_counts(*self._labels_of_classes())

    def _labels_of_classes(self) -> tuple[NDArray[np.int64], int]:
        """How many labels each class has, and how many there are with the invalid ones."""
        return self._whole or (self._book.counts(self.classes), len(self._book.labels))

    @property
    def unseen(self) -> bool:
        """Whether a class has no label yet."""
        return not self._labels_of_classes()[0].all()

    def _waiting(self) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
        """Each row's present quality and queue: float64 and int16 [capacity]."""
        quality, queue = self._standing()
        queue[self._aside] = len(self.classes) + 1
        if self.skip_duplicates:  # behind all that is no repeat, before what is set aside
            repeated = self._repeated(quality)
            quality = np.where(self._aside, quality / 2, quality)
            quality[repeated] = 0.5 + quality[repeated] / 2
            queue[repeated] = len(self.classes) + 1
        return quality, queue

    def _repeated(self, quality: NDArray[np.float64]) -> Rows:
        """Rows of the near-duplicates that can wait; quality [capacity]."""
        if not self.skip_duplicates:
            return np.zeros(0, np.int32)
        if self._whole is not None:
            return self._rows(self._whole_repeats)
        rows = self._table.find(self._groups.tasks)
        rows, groups = rows[rows != NONE], self._groups.groups[rows != NONE]
        unlabelled = self._codes[rows] == UNLABELLED
        return rows[repeats(groups, quality[rows], ~unlabelled, unlabelled & ~self._aside[rows])]

    def worth(self, tasks: Sequence[int]) -> NDArray[np.float64]:
        """Qualities of tasks of the pool, before near-duplicates are put last: float64 [n]."""
        return self._standing()[0][self._table.rows(tasks)]

    def _standing(self) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
        """As `_waiting`, ignoring what is set aside or a near-duplicate."""
        c = len(self.classes)
        quality, queue = self._quality, self._queue.copy() if self.balance else np.zeros_like(self._queue)
        if self.balance and self.unseen:
            if self._cover is None:
                self._cover = self._covering(self.spread(np.sort(self._table.ids[self._table.alive]), self.features))
            covered, worth = self._cover
            quality = quality.copy()
            quality[covered], queue[covered] = worth, c
        return quality, queue

    def _covering(self, tasks: Sequence[int] | NDArray[np.int64]) -> tuple[Rows, NDArray[np.float64]]:
        """Rows of a cover's tasks that exist here, and the quality of each by its place in the cover."""
        rows = self._table.find(tasks)
        return rows[rows != NONE], (1 - np.arange(len(rows)) / (2 * cover.MOST))[rows != NONE]

    def spread(
        self, ids: NDArray[np.int64], features: Callable[[NDArray[np.int64]], NDArray[np.float32]]
    ) -> NDArray[np.int64]:
        """The tasks that `cover` puts first, in order, of all tasks [n], ascending; the seed draws a sample."""
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
        drawn = self.draw_priorities()

        def gather() -> Ranking:
            pool = rows[codes[rows] == UNLABELLED]
            predicted = np.full(len(pool), -1, np.int16)
            if probabilities is not None and classes:
                classified = trained[pool]
                predicted[classified] = np.argmax(probabilities[pool[classified]], axis=1)
            place = queues.places(quality[pool], queue[pool], ids[pool])
            if self.balance:
                priority = queues.priorities(quality[pool], queue[pool], place, labels)
            else:
                priority = queues.banded(quality[pool], queue[pool] == len(classes) + 1)
            found = Ranking(
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
            return with_draws(found, drawn)

        return gather

    def ranked(self, tasks: Sequence[int], places: NDArray[np.int64] | None = None) -> list[Ranked]:
        """The numbers of unlabelled tasks, in the given order; `rank` is their place in that list.

        places: in their queues, where this engine holds a part of the pool and knows of no random draws.
        """
        drawn = self.draw_priorities() if places is None else {}
        rows = self._table.rows(tasks)
        predicted = self._predicted(rows)
        vote, votes = self._vote(rows)
        quality, queue = self.standing(tasks)
        if places is None:
            waiting = np.array([task not in drawn for task in tasks], bool)
            places = np.zeros(len(rows), np.int64)
            places[waiting] = self._places(rows[waiting], quality[waiting], queue[waiting])
        priority = self.priority(quality, queue, places)
        names = (*self.classes, None, None)
        found = [
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
        return [as_drawn(one, drawn) for one in found]

    def standing(self, tasks: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.int16]]:
        """Qualities and queues of tasks of the pool: float64 and int16 [n]."""
        rows = self._table.rows(tasks)
        quality, queue = self._waiting()
        return quality[rows], queue[rows]

    def better(self, of: tuple[NDArray[np.float64], NDArray[np.int16], NDArray[np.int64]]) -> NDArray[np.int64]:
        """How many tasks here come before each given one in its queue; of: qualities, queues, ids [m]."""
        open_rows = self._table.alive & (self._codes == UNLABELLED)
        return queues.better(*self._waiting(), open_rows, self._table.ids, of)

    def _places(self, rows: Rows, quality: NDArray[np.float64], queue: NDArray[np.int16]) -> NDArray[np.int64]:
        known = self._placed if self._placed_at == self.version else {}
        if all(row in known for row in rows.tolist()):
            return np.array([known[row] for row in rows.tolist()], np.int64)
        return self.better((quality, queue, self._table.ids[rows]))
