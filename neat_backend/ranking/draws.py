"""Tasks that are drawn at random, so that the labels hold a sample of the pool that no order has chosen.

A seeded hash of the task ids puts all tasks in a random order, a permutation that depends on nothing else. With a share
s of random draws, the m-th task that is served, counted from 0, is the first unanswered one of the permutation when
⌊s(m + 1) + 1/2⌋ > ⌊sm + 1/2⌋, and the best one of the order otherwise. m counts the answers that there are and then the
places of the order, so the order stays as it is while people label.

The sample is what comes before the first unanswered task of the permutation, whoever has answered it and why: nothing
has to be recorded. A task that the order itself has reached counts too. Since the unanswered task that ends the sample
is left out, its share of known ones is unbiased, as that of inverse sampling is (Haldane, 1945). A new task comes in by
its hash; if that is a small one, the sample ends there until the task is answered, and it is the next that is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.hashing import mixed
from neat_backend.ranking.labels import LabelBook

Ids = NDArray[np.int64]


class Draws:
    """The permutation of a pool, and where its tasks come in the order; share: of the served tasks, 0 to 0.5."""

    def __init__(self, seed: int, share: float) -> None:
        self.seed, self.share = seed, share
        self._order: list[int] = []
        self._of = -1  # the pool's version that it is of

    def permute(self, ids: Ids, version: int) -> None:
        """Follow the pool: ids of all tasks with features [n], in no order, where its version is another one."""
        if version != self._of:
            self._order = permutation(ids, self.seed).tolist()
            self._of = version

    def open_tasks(self, book: LabelBook) -> Iterator[int]:
        """Tasks that nobody has answered, as they are drawn."""
        return (task for task in self._order if task not in book.labels and task not in book.set_aside)

    def sample(self, book: LabelBook) -> Ids:
        """The labelled tasks before the first that nobody has answered."""
        end = next(self.open_tasks(book), None)
        before = self._order if end is None else self._order[: self._order.index(end)]
        return np.array([task for task in before if task in book.labels], np.int64)

    def is_due(self, served: int) -> bool:
        """Whether the task that is served after so many others is a draw."""
        return math.floor(self.share * (served + 1) + 0.5) > math.floor(self.share * served + 0.5)

    def mix(self, best: Sequence[int], book: LabelBook, most: int) -> tuple[list[int], set[int]]:
        """An order with the draws in their places among the first `most`, and which tasks these are.

        best: tasks in order. A task stands where it comes first; the result has at least as many.

        Worked example: share 0.25 with no answers, best a b c d e f, permutation x c y: draws are due at places 1 and
        5, so the order is a x b c d y e f; c is passed over at place 5, since it is served before.
        """
        mixed_in: list[int] = []
        placed: set[int] = set()
        drawn: set[int] = set()
        others, opened = iter(best), self.open_tasks(book)
        answered = len(book.labels) + len(book.set_aside)

        def next_of(tasks: Iterator[int]) -> int | None:
            return next((task for task in tasks if task not in placed), None)

        while True:
            due = len(mixed_in) < most and self.is_due(answered + len(mixed_in))
            task = next_of(opened) if due else None
            if task is not None:
                drawn.add(task)
            else:
                task = next_of(others)
            if task is None:
                return mixed_in, drawn
            mixed_in.append(task)
            placed.add(task)


def permutation(ids: Ids, seed: int) -> Ids:
    """The ids [n] in their random order."""
    return ids[np.argsort(mixed(ids, seed + 2))]
