"""Labels, probabilities and scores of a pool's tasks, one row each, parallel to the neighbour table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from neat_backend.models.devices import device_name
from neat_backend.ranking import scores
from neat_backend.ranking.draws import Draws
from neat_backend.ranking.hashing import mixed
from neat_backend.ranking.kept_features import KeptFeatures
from neat_backend.ranking.labels import LabelBook
from neat_backend.ranking.linear_head import LinearHead
from neat_backend.ranking.method import Method
from neat_backend.ranking.neighbors import NONE, LargePool, NeighborTable, Rows
from neat_backend.ranking.pool import UNLABELLED
from neat_backend.ranking.repeats import Groups
from neat_backend.ranking.scores import INVALID
from neat_backend.ranking.views import Source
from neat_backend.records import Label

_PRIORITY_STEPS = 2.0**32  # priorities nearer to each other than this count as equal
_TIE_STEPS = 2.0**20


class PoolRows:
    """The rows' numbers, updated as neighbours and probabilities change; parameters as in `engine.Engine`."""

    def __init__(
        self,
        dim: int,
        classes: Sequence[str],
        method: Method = Method(),
        *,
        source: Source = "resnet18",
        device: str = "cpu",
        large: LargePool | None = None,
    ) -> None:
        self.classes = tuple(classes)
        self.k, self.rule, self.batch_size, self.seed = method.k, method.rule, method.batch_size, method.seed
        self.balance, self.skip_duplicates, self.source = method.balance, method.skip_duplicates, source
        self.draws = Draws(method.seed, method.random_share)
        self.version = 0  # grows with every change
        self.pool_version = 0  # grows when tasks come or go
        self.training_version = 0  # grows when the training data of the linear head changes
        self.class_features: NDArray[np.float32] | None = None  # [C, dim] of the classes' names, where there are any
        self._table = NeighborTable(dim, method.k, device_name(device), large)
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
        self._plan_features = KeptFeatures()
        self._groups = Groups.none()  # of near-duplicates
        self._gone: set[int] = set()  # tasks whose features have left since `take_gone`
        # Set in a shard: labels of each class and in all, of the whole pool.
        self._whole: tuple[NDArray[np.int64], int] | None = None
        self._whole_repeats: Sequence[int] = ()  # the whole pool's near-duplicates that can wait
        self._placed: dict[int, int] = {}  # places of the rows that were last selected
        self._placed_at = -1  # the version at that time

    def __len__(self) -> int:
        """Tasks with features."""
        return len(self._table)

    def __contains__(self, task: int) -> bool:
        return task in self._table

    def take_gone(self) -> set[int]:
        """Tasks removed or given other features since the last call."""
        gone, self._gone = self._gone, set()
        return gone

    def features(self, tasks: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The original features of tasks: float32 [n, dim]. Raises KeyError for an unknown task."""
        return self._table.planes.exact(self._table.rows(tasks))

    def drawn(self, ids: NDArray[np.int64], most: int) -> NDArray[np.int64]:
        """Positions of at most `most` of the ids, drawn by the seed."""
        if len(ids) <= most:
            return np.arange(len(ids))
        return np.argpartition(mixed(ids, self.seed + 1), most)[:most]

    def _rows(self, tasks: Sequence[int]) -> Rows:
        rows = self._table.find(tasks)
        return rows[rows != NONE]

    def _code(self, label: Label) -> int:
        if label.invalid:
            return INVALID
        return UNLABELLED if label.choice is None else self.classes.index(label.choice)

    def _rescore(self, rows: Rows) -> None:
        """Recompute quality and queue of rows whose neighbours or numbers changed."""
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
        """Priorities with ties (also near ones) broken by a seeded hash of the task's id.

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
        """Grow the arrays parallel to the table's rows."""
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
