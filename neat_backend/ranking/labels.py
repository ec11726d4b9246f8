"""The labels of all tasks, with or without features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from neat_backend.records import NOT_IN_CONFIG, Label, WithoutLabel

MOST_REASONS = 100  # that are counted separately; there may be as many answers as tasks


class LabelBook:
    """Labels by task.

    labels: of every labelled task. set_aside: of unlabelled tasks that somebody has answered. invalid: how many of the
    labels are. without_label: how many tasks are set aside for each (reason, answer).
    """

    def __init__(self) -> None:
        self.labels: dict[int, Label] = {}
        self.set_aside: dict[int, Label] = {}
        self.invalid = 0
        self.without_label: Counter[tuple[str, str]] = Counter()
        self._by_choice: Counter[str] = Counter()

    @property
    def known(self) -> int:
        """How many labels are of a class."""
        return len(self.labels) - self.invalid

    def answered(self) -> NDArray[np.int64]:
        """The tasks that are set aside: int64 [n], in no order."""
        return np.fromiter(self.set_aside, np.int64)

    def counts(self, classes: Sequence[str]) -> NDArray[np.int64]:
        """How many labels each of the classes has: int64 [C]."""
        return np.array([self._by_choice[name] for name in classes], np.int64)

    def of(self, task: int) -> Label:
        return self.labels.get(task) or self.set_aside.get(task) or Label(task)

    def note(self, label: Label) -> None:
        """Record the label of a task."""
        before = self.labels.get(label.task)
        self.invalid += label.invalid - (before is not None and before.invalid)
        for one, change in ((before, -1), (label, 1)):
            if one is not None and one.choice is not None:
                self._by_choice[one.choice] += change
        if label.invalid or label.choice is not None:
            self.labels[label.task] = label
        else:
            self.labels.pop(label.task, None)
        aside = self.set_aside.pop(label.task, None)
        if aside is not None:
            self.without_label[aside.set_aside, aside.answer] -= 1
            if not self.without_label[aside.set_aside, aside.answer]:
                del self.without_label[aside.set_aside, aside.answer]
        if label.set_aside:
            self.set_aside[label.task] = label
            self.without_label[label.set_aside, label.answer] += 1

    def reasons(self) -> tuple[WithoutLabel, ...]:
        """Why the tasks that are set aside have no label, the most frequent first; beyond MOST_REASONS, answer ""."""
        found = Counter(dict(self.without_label.most_common(MOST_REASONS)))
        if rest := len(self.set_aside) - found.total():
            found[NOT_IN_CONFIG, ""] += rest
        return tuple(WithoutLabel(*why, n) for why, n in sorted(found.items(), key=lambda one: (-one[1], one[0])))

    def take(self, labels: Iterable[Label], classes: Sequence[str]) -> dict[int, Label]:
        """Record labels; the last label of a task counts. Returns those that changed anything, by task.

        A choice outside the classes is an answer without a label.
        """
        changed: dict[int, Label] = {}
        for label in labels:
            if label.choice is not None and label.choice not in classes:
                label = _vanished(label)
            if label != self.of(label.task):
                changed[label.task] = label
            else:
                changed.pop(label.task, None)
        for label in changed.values():
            self.note(label)
        return changed

    def drop_vanished(self, classes: Sequence[str]) -> list[int]:
        """Drop labels of other classes; their tasks count as answered."""
        dropped = [label for label in self.labels.values() if not label.invalid and label.choice not in classes]
        for label in dropped:
            self.note(_vanished(label))
        return [label.task for label in dropped]


def _vanished(label: Label) -> Label:
    """The label without its class, which no longer exists."""
    return Label(label.task, set_aside=NOT_IN_CONFIG, answer=label.choice or "")
