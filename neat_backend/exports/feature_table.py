"""The images' features, row by row beside the labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from neat_backend.errors import BadRequest
from neat_backend.exports.rows import Row
from neat_backend.settings import Settings
from neat_backend.store import snapshots
from neat_backend.store.arrays import ProjectArrays, image_key

ROWS_AT_ONCE = 16_384  # looked up together: each look-up reads the ids of the whole pool

Values = npt.NDArray[np.float32]


class Features:
    """The features behind the project's order: unit vectors of the encoder in use."""

    def __init__(self, settings: Settings, project: int) -> None:
        """Raises BadRequest when no image has been encoded yet."""
        self._arrays = ProjectArrays(settings.data_dir, project)
        self._kind = snapshots.features_kind(self._arrays, snapshots.read_head(self._arrays))
        first = next(self._arrays.segments(self._kind), None) if self._kind else None
        if first is None:
            raise BadRequest(
                f"project {project} has no features yet: its images are still to be encoded, see "
                f"`neat-backend status {project}`; or export without --features",
                "features",
            )
        self.dim = int(first.values.shape[1])

    def of(self, rows: Sequence[Row]) -> Values:
        """float32 [n, dim]; a row of NaN where the image has none (it failed, or has changed since)."""
        values = np.full((len(rows), self.dim), np.nan, np.float32)
        ids = np.array([row.task for row in rows], np.int64)  # ascending
        keys = np.array([image_key(row.image) for row in rows], np.int64)
        for found in self._arrays.some(self._kind, ids):
            at = np.searchsorted(ids, found.ids)
            same = keys[at] == found.keys
            values[at[same]] = found.values[same]
        return values


class NpyFile:
    """A float32 [n, dim] .npy that is written a few rows at a time."""

    def __init__(self, path: Path, dim: int) -> None:
        self._file: BinaryIO = open(path, "xb")  # noqa: SIM115 - closed by the owner
        self._rows, self._dim = 0, dim
        self._start = self._header()

    def append(self, rows: Sequence[Row], values: Values) -> None:
        self._file.write(np.ascontiguousarray(values, "<f4").tobytes())
        self._rows += len(rows)

    def close(self) -> None:
        """Write the number of rows, known only now, into the header, where numpy reserves space for it."""
        self._file.seek(0)
        assert self._header() == self._start
        self._file.close()

    def _header(self) -> int:
        shape = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._dim)}
        np.lib.format.write_array_header_1_0(self._file, shape)
        return self._file.tell()


def parts(rows: Iterable[Row], size: int = ROWS_AT_ONCE) -> Iterator[list[Row]]:
    """The rows in lists of at most `size`."""
    left = iter(rows)
    while part := list(islice(left, size)):
        yield part
