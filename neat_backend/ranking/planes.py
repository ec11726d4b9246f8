"""Features of the whole pool in three bytes a value: an int8 part to filter by and an int16 part for the rest.

Together they are exact (`ranking.kernels` says how); a label's pass over the pool reads the int8 part alone, a
quarter of single precision and half of half precision. Once there are enough rows, values are stored relative to the
pool's mean: encoders add much the same to every feature, and the rest needs smaller steps.

Beyond one pass there is a *sketch*: each row's int8 coordinates along the pool's principal directions, an eighth of
its dimensions, and the length of what they leave out. On 17,000 Fashion-MNIST images with EfficientNet-Lite0
features (1280), K = 10, it leaves 10 % of the rows to read with 500 labels and 4 % with 2,000 (half as many
directions: 18 % and 9 %); on 6,000 of them balls around 1,000 k-means clusters would leave 86 %, around 300 98 %.
On features without structure it excludes little; then it is not used for a while.

With a GPU, a half-precision copy in its memory is the filter; the exact part stays in main memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from neat_backend.models.grid import GRID
from neat_backend.ranking import all_pairs, kernels, many
from neat_backend.ranking.kernels import NONE, Planes, Query, Short, Sketched, Table
from neat_backend.ranking.mapped import MappedArray

if TYPE_CHECKING:
    from neat_backend.ranking.half_plane import HalfPlane

Rows = NDArray[np.int32]

_SETTLE_FROM = 4096  # rows; fewer are multiplied faster than sketched
_SAMPLE = 8192  # rows that mean and directions are found from
_SKETCH_SHARE = 8  # one principal direction for so many dimensions
_SKETCH_PAYS = 0.25  # share of the rows left to read above which a whole pass is as fast
_SKETCH_REST = 50  # labels until it is tried again after it didn't pay
_SKETCH_SLACK = 1e-4  # more than the directions' and the sketch's own rounding in single precision
_LONGEST_CENTRE = np.floor(0.9 / GRID)  # so that 127 steps and an int16 reach every value from there
_FEW_LABELS = 4  # so many are offered one by one; more in one pass over the rows
_CHUNK_ROWS = 65_536  # converted at a time
_INT16, _INT32 = np.iinfo(np.int16).max, np.iinfo(np.int32).max


class Neighbours(Protocol):
    """What a pass over the planes reads and changes; one row for each row of the planes."""

    ids: NDArray[np.int64]
    alive: NDArray[np.bool_]
    neighbours: Rows  # [n, k], nearest first, NONE where there is none
    similarities: NDArray[np.float32]  # [n, k], -inf where there is none


class FeaturePlanes:
    """Rows of unit features on the grid, [n, dim]: readable exactly, and offered to each other as neighbours.

    read_share: of the rows, how many the sketch left to read when a label was last offered alone.
    """

    def __init__(self, dim: int, device: str = "cpu", scratch: Path | None = None, most_bytes: float = np.inf) -> None:
        """device: as `models.devices.device_name` gives it. scratch: folder for what exceeds most_bytes of the exact
        part, which then lies in a mapped file."""
        self.dim, self.device = dim, device
        self._scratch, self._most_bytes = scratch, most_bytes
        self._mapped: dict[str, MappedArray] = {}
        self.read_share = 1.0
        self._coarse = np.zeros((0, dim), np.int8)
        self._rest = np.zeros((0, dim), np.int16)
        self._step = np.zeros(0, np.int32)  # grid units
        self._residual = np.zeros(0, np.float32)  # length of the rest, rounded up
        self._length = np.zeros(0, np.float32)  # see `kernels.lengths`
        self._along = np.zeros(0, np.float32)
        self._centre = np.zeros(dim)  # grid units
        self._slack = dim * kernels.SINGLE
        self._sketch: Sketch | None = None
        self._resting = 0
        self._half = None if device == "cpu" else _half_plane(dim, device)

    def __len__(self) -> int:
        return len(self._step)

    def grow(self, n: int) -> None:
        """Grow to n rows."""
        for name in ("_coarse", "_rest"):
            setattr(self, name, self._grown(name, n))
        for name in ("_step", "_residual", "_length", "_along"):
            setattr(self, name, grown(getattr(self, name), n))
        if self._sketch is not None:
            self._sketch.grow(n)
        if self._half is not None:
            self._half.grow(n)

    @property
    def mapped(self) -> bool:
        """Whether the exact part lies in a file."""
        return bool(self._mapped)

    def exceeds(self, n: int) -> bool:
        """Whether the exact part of n rows is more than may lie in memory."""
        return n * self.dim * 3 > self._most_bytes

    def _grown(self, name: str, n: int) -> NDArray[Any]:
        array: NDArray[Any] = getattr(self, name)
        if name in self._mapped:
            self._mapped[name].grow(n)
        elif self._scratch is not None and self.exceeds(n):
            self._mapped[name] = MappedArray(array, self._scratch)
            self._mapped[name].grow(n)
        else:
            return grown(array, n)
        return self._mapped[name].values

    def set(self, rows: Rows, features: NDArray[np.float32]) -> None:
        """Write features [n, dim]. Raises ValueError when they are off the grid or longer than 1."""
        self._encode(rows, features)
        if self._sketch is not None:
            self._sketch.draw(rows, features)
        if self._half is not None:
            self._half.set(rows, features)

    def exact(self, rows: Rows) -> NDArray[np.float32]:
        """The original features of rows: float32 [n, dim]."""
        features = np.empty((len(rows), self.dim), np.float32)

        def work(begin: int, end: int) -> None:
            kernels.decode(rows[begin:end], self._planes, features[begin:end])

        kernels.in_parallel(work, len(rows))
        return features

    def outputs(self, rows: Rows, weights: NDArray[np.float32], biases: NDArray[np.float32]) -> NDArray[np.float32]:
        """weights [m, d] @ feature + biases [m], of each row: float32 [n, m]; the same wherever a row lies."""
        found = np.empty((len(rows), len(biases)), np.float32)

        def work(begin: int, end: int) -> None:
            kernels.outputs(begin, end, rows, weights, biases, self._planes, found)

        kernels.in_parallel(work, len(rows), least=1024)
        return found

    def settle(self, rows: Rows) -> None:
        """Once there are enough rows, find their mean and principal directions and re-encode all of them."""
        if self._sketch is not None or len(rows) < _SETTLE_FROM or self.dim < 2 * _SKETCH_SHARE:
            return
        sample = self.exact(rows[:: max(1, len(rows) // _SAMPLE)])
        centre = np.rint(sample.mean(axis=0, dtype=np.float64) / GRID).clip(-_LONGEST_CENTRE, _LONGEST_CENTRE)
        sketch = Sketch(sample, centre, len(self))
        for start in range(0, len(rows), _CHUNK_ROWS):
            part = rows[start : start + _CHUNK_ROWS]
            features = self.exact(part)
            sketch.draw(part, features)
            self._encode(part, features, centre)
        self._centre, self._sketch = centre, sketch

    def offer(self, labels: Rows, near: Neighbours) -> Rows:
        """Make rows neighbours of all that they are near enough to; returns the rows that took any."""
        if self._half is not None:
            return self._offer_found(labels, near, self._half)
        if len(labels) <= _FEW_LABELS:
            return np.unique(np.concatenate([self._offer_one(int(label), near) for label in labels]))
        return self._offer_many(labels, near)

    def offer_to(self, label: int, rows: Rows, near: Neighbours) -> Rows:
        """Offer one label to some rows, reading those that the sketch can't exclude; returns those that took it."""
        left = np.ones(len(rows), bool)
        if self._sketch is not None:
            query, feature = self._query(label)
            given = rows, query, self._short(feature, self._sketch), self._sketch.arrays, _table(near), left

            def work(begin: int, end: int) -> None:
                kernels.left_by_sketch(begin, end, *given)

            kernels.in_parallel(work, len(rows))
        rows = rows[left]
        self.read_share = len(rows) / max(len(self), 1)
        return self.offer_pairs(rows, np.arange(len(rows) + 1), np.full(len(rows), label, np.int32), near)

    def offer_pairs(self, rows: Rows, starts: NDArray[np.int64], labels: Rows, near: Neighbours) -> Rows:
        """Offer labels[starts[i]:starts[i+1]] to rows[i], all different; returns the rows that took any."""
        taken = np.zeros(len(rows), bool)
        planes, table = self._planes, _table(near)

        def work(begin: int, end: int) -> None:
            kernels.offer_pairs(begin, end, rows, starts, labels, planes, table, taken)

        kernels.in_parallel(work, len(rows), least=256)
        self.note(rows[taken], near)
        return rows[taken]

    def search(self, rows: Rows, labels: Rows, near: Neighbours) -> None:
        """Set the neighbours of rows to the nearest of the labels, themselves excluded; labels ascending."""
        near.neighbours[rows], near.similarities[rows] = NONE, -np.inf
        all_pairs.offer_all(rows, labels, self.exact, self._planes, _table(near))
        self.note(rows, near)

    def note(self, rows: Rows, near: Neighbours) -> None:
        """Note that the neighbours of rows have changed; `offer` and `offer_pairs` call it themselves."""
        if self._half is not None:
            self._half.set_bars(rows, np.where(near.alive[rows], near.similarities[rows, -1], np.inf))

    # inside

    def _encode(self, rows: Rows, features: NDArray[np.float32], centre: NDArray[np.float64] | None = None) -> None:
        planes = self._planes if centre is None else self._planes._replace(centre=centre)

        def work(begin: int, end: int) -> int:
            bad: int = kernels.encode(features[begin:end], rows[begin:end], planes)
            kernels.lengths(rows[begin:end], planes, self._length, self._along)
            return bad if bad < 0 else begin + bad

        bad = max(kernels.in_parallel(work, len(rows)))
        if bad >= 0:
            # Partly written, but these rows belong to no task yet.
            if not np.abs(features[bad]).max() <= 1:
                raise ValueError("features must have length 1")
            raise ValueError("features must be on the 2^-22 grid: pass them through to_grid first")

    @property
    def _planes(self) -> Planes:
        return Planes(self._coarse, self._rest, self._step, self._residual, self._centre)

    def _query(self, label: int) -> tuple[Query, NDArray[np.float32]]:
        """A label's query for the kernels, and its feature."""
        feature = self.exact(np.array([label], np.int32))[0]
        norm = float(np.linalg.norm(feature.astype(np.float64)))
        base = float(self._centre @ feature.astype(np.float64)) * GRID
        return Query(label, base, norm, self._slack), feature

    def _short(self, feature: NDArray[np.float32], sketch: Sketch) -> Short:
        return Short(*sketch.of(feature), self._slack + _SKETCH_SLACK)

    def _offer_one(self, label: int, near: Neighbours) -> Rows:
        query, feature = self._query(label)
        planes, table = self._planes, _table(near)
        touched = np.empty(len(self), np.int32)
        self._resting = max(self._resting - 1, 0)
        if self._sketch is None or self._resting > 0:
            self.read_share = 1.0

            def work(begin: int, end: int) -> Rows:
                count = kernels.offer_one(begin, end, query, feature, planes, table, touched)
                return touched[begin : begin + count]

            return np.concatenate(kernels.in_parallel(work, len(self)))
        sketches = self._short(feature, self._sketch), self._sketch.arrays

        def sketched(begin: int, end: int) -> tuple[Rows, int]:
            count, read = kernels.offer_one_sketched(begin, end, query, feature, planes, table, sketches, touched)
            return touched[begin : begin + count], read

        parts = kernels.in_parallel(sketched, len(self))
        self.read_share = sum(read for _, read in parts) / len(self)
        if self.read_share > _SKETCH_PAYS:
            self._resting = _SKETCH_REST
        return np.concatenate([found for found, _ in parts])

    def _offer_many(self, labels: Rows, near: Neighbours) -> Rows:
        queries = self._queries(labels)
        planes, measures, table = self._planes, (self._length, self._along), _table(near)
        touched = np.empty(len(self), np.int32)

        def work(begin: int, end: int) -> Rows:
            count = many.offer_many(begin, end, queries, planes, measures, table, touched)
            return touched[begin : begin + count]

        return np.concatenate(kernels.in_parallel(work, len(self), least=512))

    def _queries(self, labels: Rows) -> many.Queries:
        """The labels' queries for the kernels."""
        features = self.exact(labels).astype(np.float64)  # [m, d]
        centre = self._centre * GRID
        moved = features - centre
        unit = np.maximum(np.abs(moved).max(axis=1), GRID) / min(_INT16, _INT32 // (127 * self.dim))
        values = np.rint(moved / unit[:, None])
        measures = (
            unit,
            features @ centre + self._slack + 2 * kernels.SINGLE,
            np.linalg.norm(moved, axis=1) * (1 + 1e-6),
            np.linalg.norm(moved - values * unit[:, None], axis=1) * (1 + 1e-6),
        )
        return many.Queries(labels, many.filled(values), *(measure.astype(np.float32) for measure in measures))

    def _offer_found(self, labels: Rows, near: Neighbours, half: HalfPlane) -> Rows:
        changed = []
        for rows, which in half.near(labels):
            distinct, starts = np.unique(rows, return_index=True)  # ascending already
            bounds = np.append(starts, len(rows)).astype(np.int64)
            changed.append(self.offer_pairs(distinct, bounds, labels[which], near))
        return np.unique(np.concatenate(changed or [labels[:0]]))


class Sketch:
    """Each row's int8 coordinates along the pool's principal directions, and how long the rest of it is."""

    def __init__(self, sample: NDArray[np.float32], centre: NDArray[np.float64], n: int) -> None:
        """sample: features [s, d] that the directions are found from; centre: their mean, in grid units."""
        self._centre = (centre * GRID).astype(np.float32)
        moved = sample - self._centre
        moments = (moved.T @ moved).astype(np.float64)
        count = sample.shape[1] // _SKETCH_SHARE
        directions = np.linalg.eigh(moments)[1][:, -count:]
        self._directions: NDArray[np.float32] = np.ascontiguousarray(directions, np.float32)  # [d, p]
        self._coarse = np.zeros((0, count), np.int8)
        self._step = self._error = self._left_out = self._along = np.zeros(0, np.float32)
        self.grow(n)

    @property
    def arrays(self) -> Sketched:
        """As the kernels take it."""
        return Sketched(self._coarse, self._step, self._error, self._left_out, self._along)

    def grow(self, n: int) -> None:
        """Grow to n rows."""
        for name in ("_coarse", "_step", "_error", "_left_out", "_along"):
            setattr(self, name, grown(getattr(self, name), n))

    def draw(self, rows: Rows, features: NDArray[np.float32]) -> None:
        """Sketch rows [n] with features [n, d]."""
        for start in range(0, len(rows), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            moved, along, left = self._split(features[part])
            step = np.maximum(np.abs(along).max(axis=1) / 127, 1e-9)  # [n]
            coarse = np.rint(along / step[:, None])
            self._coarse[rows[part]] = coarse.astype(np.int8)
            self._step[rows[part]] = step
            self._error[rows[part]] = np.linalg.norm(along - coarse * step[:, None], axis=1)
            self._left_out[rows[part]] = left
            self._along[rows[part]] = moved @ self._centre

    def of(self, feature: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, float]:
        """A label's coordinates [p], their length, and the length of what they leave out."""
        _, along, left = self._split(feature[None])
        return np.ascontiguousarray(along[0]), float(np.linalg.norm(along[0])), float(left[0])

    def _split(
        self, features: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        moved: NDArray[np.float32] = features - self._centre  # [n, d]
        along: NDArray[np.float32] = moved @ self._directions  # [n, p]
        return moved, along, np.linalg.norm(moved - along @ self._directions.T, axis=1)


def _half_plane(dim: int, device: str) -> HalfPlane:
    from neat_backend.ranking.half_plane import HalfPlane  # the only part that needs PyTorch

    return HalfPlane(dim, device)


def _table(near: Neighbours) -> Table:
    return Table(near.alive, near.ids, near.neighbours, near.similarities)


def grown(array: NDArray, n: int) -> NDArray:
    """The array grown to n rows, new ones zero."""
    larger = np.zeros((n, *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    return larger
