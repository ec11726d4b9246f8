"""One project's live state: labels in, ranking out. Knows nothing of Label Studio, HTTP or files.

The state after any sequence of calls equals that of a fresh engine given the same tasks, labels and
probabilities: neighbours are exact, and a task's place depends on its own numbers alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.hashing import mixed
from neat_backend.ranking.linear_head import LinearHead
from neat_backend.ranking.neighbors import NONE, Rows
from neat_backend.ranking.order import Order
from neat_backend.ranking.pool import UNLABELLED, Pool
from neat_backend.ranking.repeats import Groups
from neat_backend.ranking.views import PREDICTORS, Counts, Labelled, PoolPart, Source, Trained
from neat_backend.records import Label, WithoutLabel

_HEAD_ROWS = 16_384  # rows that a new head is applied to at a time


class Engine(Order):
    """Neighbours, votes, class probabilities and the order of the unlabelled tasks.

    dim: length of a feature. classes: known classes, in the order of the label config. device: the device of the
    pool's features. large: options for features beyond memory.

    Class probabilities are those of the classifier in force, `source`: the network's, which `set_probabilities` sets,
    or the linear head's.
    """

    # changes

    def reserve(self, n: int) -> None:
        """Reserve capacity for n tasks in all, so that adding them copies nothing."""
        self._table.reserve(n)
        self._fit_arrays()

    def add_tasks(self, tasks: Sequence[int] | NDArray[np.int64], features: NDArray[np.float32]) -> None:
        """Add tasks with features [n, dim] on the grid; a task that exists gets the new features."""
        ids = np.asarray(tasks, np.int64)
        here = self._table.find(ids) != NONE
        if here.any():
            self._mark_gone(ids[here].tolist())
            self._rescore(self._table.remove_tasks(ids[here]))
        rows = self._table.add_tasks(ids, features)
        self.pool_version += 1
        self._fit_arrays()
        self._codes[rows] = UNLABELLED
        self._aside[rows] = self._trained[rows] = False  # of the task that had the row before
        self._network_says[rows] = self._linear_says[rows] = -1
        self._known_chance[rows] = 1
        self._cover = None if self._whole is None else self._cover
        if self.linear is not None:
            self._apply_head(rows)
        else:
            self._rescore(rows)
        self._apply([label for label in map(self._book.of, ids.tolist()) if label != Label(label.task)])

    def remove_tasks(self, tasks: Iterable[int]) -> None:
        """Remove tasks and their labels; unknown tasks are ignored."""
        gone = [int(t) for t in dict.fromkeys(tasks)]
        for task in gone:
            self._book.note(Label(task))
        here = [t for t in gone if t in self._table]
        if here:
            self.training_version += bool((self._codes[self._table.rows(here)] != UNLABELLED).any())
            self._mark_gone(here)
            self._codes[self._table.rows(here)] = UNLABELLED
            self._rescore(self._table.remove_tasks(here))
            self._cover = None if self._whole is None else self._cover
        self.version += bool(gone)

    def set_labels(self, labels: Iterable[Label]) -> None:
        """Label, relabel or unlabel tasks; a task's last label counts. Labels of tasks without features are kept."""
        changed = self._book.take(labels, self.classes)
        here = self._table.find(list(changed)) != NONE
        self._apply([label for label, found in zip(changed.values(), here, strict=True) if found])
        self.version += bool(changed)

    def set_classes(self, classes: Sequence[str]) -> None:
        """Change the class list: drop labels of removed classes, carry probabilities over."""
        classes = tuple(classes)
        if classes == self.classes:
            return
        carried = self._carried(self._probabilities, self.classes, classes)
        self._probabilities = carried
        places = {name: place for place, name in enumerate(classes)}
        renamed = np.array([*(places.get(name, -1) for name in self.classes), -1], np.int16)
        self._network_says, self._linear_says = renamed[self._network_says], renamed[self._linear_says]
        self.classes = classes
        self.training_version += 1
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
        """Set the network's class probabilities [n, len(classes)]; unknown tasks are ignored.

        A class that the classifier doesn't have gets 0. A class that the project no longer has is dropped and the
        rest rescaled.
        """
        if probabilities.shape != (len(tasks), len(classes)):
            raise ValueError(f"probabilities are {probabilities.shape}, expected {(len(tasks), len(classes))}")
        rows = self._table.find(tasks)
        here = rows != NONE
        rows = rows[here]
        carried = self._carried(probabilities[here], tuple(classes), self.classes)
        trained = carried.sum(axis=1) > 0
        self._network_says[rows] = np.where(trained, carried.argmax(axis=1), -1) if self.classes else -1
        if self.source == "resnet18":
            self._probabilities[rows], self._trained[rows] = carried, trained
            self._rescore(rows)

    def training_data(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
        """The linear head's training data, by task: ids [m], codes [m] (class or INVALID), features [m, dim]."""
        rows = np.flatnonzero(self._table.alive & (self._codes != UNLABELLED)).astype(np.int32)
        rows = rows[np.argsort(self._table.ids[rows])]
        return self._table.ids[rows].copy(), self._codes[rows].copy(), self._table.planes.exact(rows)

    def set_linear(self, head: LinearHead | None) -> Iterator[None]:
        """Apply a fitted head to all tasks, a block of rows at each step, so that other threads can run in between.

        Tasks added in between use the new head at once. A head of other classes is ignored.
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
        """Put another classifier in force; `set_probabilities` or `set_linear` then sets its probabilities."""
        if source != self.source:
            self.source = source
            self._trained[:] = False
            self._rescore(np.flatnonzero(self._table.alive).astype(np.int32))

    def set_groups(self, groups: Groups) -> None:
        """Set the groups of near-duplicates; unknown tasks are ignored."""
        self._groups = groups
        self.version += 1

    def set_whole(
        self, counts: NDArray[np.int64], n_labels: int, cover: Sequence[int], repeats: Sequence[int] = ()
    ) -> None:
        """Set what the engine of one shard can't compute, all of the whole pool: labels of each class and in all,
        the cover and the near-duplicates that can wait."""
        self._whole, self._cover, self._whole_repeats = (counts, n_labels), self._covering(cover), repeats
        self.version += 1

    # what follows from them

    def predictions(self, tasks: Sequence[int]) -> dict[str, NDArray[np.int16]]:
        """The class (-1 = none) that network, linear head and neighbours' vote predict for each task: [n] each."""
        rows = self._table.rows(tasks)
        vote, votes = self._vote(rows)
        columns = self._network_says[rows], self._linear_says[rows], np.where(votes > 0, vote, -1).astype(np.int16)
        return dict(zip(PREDICTORS, columns, strict=True))

    def neighbours(self, task: int) -> list[tuple[int, float]]:
        """A task's nearest labelled tasks, nearest first, with their similarities."""
        row = self._table.rows([task])[0]
        found = self._table.neighbours[row]
        held = found != NONE
        ids = self._table.ids[found[held]].tolist()
        return list(zip(ids, self._table.similarities[row][held].tolist(), strict=True))

    def codes(self) -> tuple[NDArray[np.int64], NDArray[np.int16], tuple[str, ...]]:
        """Tasks with features, ascending, the label code of each (class, INVALID, UNLABELLED), and the classes."""
        rows = self._table.rows_by_id()
        return self._table.ids[rows], self._codes[rows].astype(np.int16), self.classes

    def nearest_labelled(self) -> Labelled:
        """Nearest labelled tasks of all tasks with features, labelled or not."""
        rows = self._table.rows_by_id()
        found = self._table.neighbours[rows]
        codes = np.where(found == NONE, UNLABELLED, self._codes[found]).astype(np.int16)
        return Labelled(self._table.ids[rows], codes, self._table.similarities[rows])

    @property
    def read_share(self) -> float:
        """Share of the tasks whose features the last single label had to read."""
        return self._table.planes.read_share

    @property
    def approximate(self) -> bool:
        """Whether neighbours are searched only near a task's cell; exact while False."""
        return self._table.approximate

    def pool(self, most: int) -> tuple[NDArray[np.int64], Pool | None]:
        """Ids and state of all labelled tasks and at most `most` others, for a strategy that looks at them all.

        Of more, the seed draws a sample. Tasks that somebody has answered without a label are not offered. The pool is
        None while there are no classes.
        """
        part = self.pool_part(most)
        return part.ids, self.pool_of(part)

    def pool_part(self, most: int, without: Collection[int] = ()) -> PoolPart:
        """The rows for `pool_of`; without: tasks to leave out."""
        rows = self._table.rows_by_id()
        if without:
            rows = rows[~np.isin(self._table.ids[rows], np.fromiter(without, np.int64))]
        open_rows = rows[(self._codes[rows] == UNLABELLED) & ~self._aside[rows]]
        open_rows = open_rows[~np.isin(open_rows, self._repeated(self._standing()[0]))]
        drawn = self.drawn(self._table.ids[open_rows], most)
        taken = np.concatenate([rows[self._codes[rows] != UNLABELLED], open_rows[drawn]])
        taken = taken[np.argsort(self._table.ids[taken])]
        return PoolPart(
            self._table.ids[taken],
            self._codes[taken].astype(np.int64),
            self._trained[taken],
            self._probabilities[taken],
            self._plan_features.of(self._table.ids[taken], self.pool_version, self.features),
        )

    def pool_of(self, part: PoolPart) -> Pool | None:
        """The pool for a strategy; None while there are no classes."""
        if not self.classes:
            return None
        probabilities = np.where(part.trained[:, None], part.probabilities.astype(np.float64), 1 / len(self.classes))
        return Pool(
            features=part.features,
            labels=part.codes,
            n_classes=len(self.classes),
            offered=np.flatnonzero(part.codes == UNLABELLED),
            model=Trained(probabilities, part.features) if part.trained.any() else None,
            k=self.k,
            rule=self.rule,
            class_features=self.class_features,
            keys=mixed(part.ids, self.seed + 1),
        )

    def tasks(self) -> list[int]:
        """All tasks with features, labelled or not, in no order."""
        return self._table.ids[self._table.alive].tolist()

    def unlabelled(self, tasks: Iterable[int]) -> set[int]:
        """The tasks among these that are in the pool: with features, without a label."""
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
        """Why the tasks set aside have no label, the most frequent reason first."""
        return self._book.reasons()

    def counts(self) -> Counts:
        """Known and invalid count every labelled task; unlabelled only those with features."""
        return Counts(
            known=self._book.known,
            invalid=self._book.invalid,
            unlabelled=len(self._table) - self._table.count_labelled(),
        )

    # inside

    def _mark_gone(self, tasks: Sequence[int]) -> None:
        """Record tasks whose features are about to be removed."""
        self._gone.update(tasks)
        self._groups = self._groups.without(tasks)
        self.pool_version += 1

    def _apply(self, labels: Sequence[Label]) -> None:
        """Update the table and the votes for new labels of tasks that have features."""
        if not labels:
            return
        rows = self._table.rows([x.task for x in labels])
        codes = np.array([self._code(x) for x in labels], np.int32)
        was = self._codes[rows].copy()
        self._codes[rows] = codes
        self.training_version += bool((was != codes).any())
        self._aside[rows] = [bool(x.set_aside) for x in labels]
        added = rows[(was == UNLABELLED) & (codes != UNLABELLED)]
        removed = rows[(was != UNLABELLED) & (codes == UNLABELLED)]
        changed = rows[(was != UNLABELLED) & (codes != UNLABELLED) & (was != codes)]
        touched = [self._table.unlabel(removed), self._table.label(added), rows]
        if len(changed):
            touched.append(self._table.rows_near(changed))
        self._rescore(np.unique(np.concatenate(touched)))

    def _apply_head(self, rows: Rows) -> None:
        """Set the linear head's predictions for rows; none without a head."""
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
