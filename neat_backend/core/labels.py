"""What every task is labelled with, whether it has features or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from neat_backend.records import Label


class LabelBook:
    """Labels by task.

    labels: of every labelled task. set_aside: unlabelled tasks that somebody has answered. invalid: how many of the
    labels are.
    """

    def __init__(self) -> None:
        self.labels: dict[int, Label] = {}
        self.set_aside: set[int] = set()
        self.invalid = 0
        self._by_choice: Counter[str] = Counter()

    @property
    def known(self) -> int:
        """How many labels are of a class."""
        return len(self.labels) - self.invalid

    def counts(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """How many labels each of the classes has: int64 [C]."""
        return np.array([self._by_choice[name] for name in classes], np.int64)

    def of(self, task: int) -> Label:
        return self.labels.get(task) or Label(task, set_aside=task in self.set_aside)

    def note(self, label: Label) -> None:
        """Remember what a task is labelled with."""
        before = self.labels.get(label.task)
        self.invalid += label.invalid - (before is not None and before.invalid)
        for one, change in ((before, -1), (label, 1)):
            if one is not None and one.choice is not None:
                self._by_choice[one.choice] += change
        if label.invalid or label.choice is not None:
            self.labels[label.task] = label
        else:
            self.labels.pop(label.task, None)
        (self.set_aside.add if label.set_aside else self.set_aside.discard)(label.task)

    def take(self, labels: Iterable[Label], classes: Sequence[str]) -> dict[int, Label]:
        """Note labels, the last word on a task counting; those that changed anything, by task.

        A choice that is none of the classes is an answer without a label.
        """
        changed: dict[int, Label] = {}
        for label in labels:
            if label.choice is not None and label.choice not in classes:
                label = Label(label.task, set_aside=True)
            if label != self.of(label.task):
                changed[label.task] = label
            else:
                changed.pop(label.task, None)
        for label in changed.values():
            self.note(label)
        return changed

    def drop_vanished(self, classes: Sequence[str]) -> list[int]:
        """Forget labels of other classes; the tasks that had them count as answered."""
        dropped = [t for t, x in self.labels.items() if not x.invalid and x.choice not in classes]
        for task in dropped:
            self.note(Label(task, set_aside=True))
        return dropped
