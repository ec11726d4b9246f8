"""Labelled data sets as Parquet, with pyarrow, which is an optional package."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from neat_backend.errors import BadRequest
from neat_backend.exports.feature_table import ROWS_AT_ONCE, Features, Values, parts
from neat_backend.exports.rows import Row
from neat_backend.exports.table_files import COLUMNS


def needed() -> Any:
    """pyarrow with its Parquet part. Raises BadRequest where it isn't installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise BadRequest(
            "Parquet needs the package pyarrow, which is not installed here: `pip install pyarrow`, or export csv or "
            "jsonl (and features as npy)",
            "format",
        ) from None
    return pyarrow


def pieces(rows: Iterable[Row], features: Features | None = None) -> Iterator[bytes]:
    """The file, a row group at a time; with a column `features` where they are given."""
    arrow = needed()
    sink = _Sink()
    with closing(_writer(arrow, sink, _schema(arrow, features))) as writer:
        for part in parts(rows, ROWS_AT_ONCE):
            writer.write_batch(_batch(arrow, writer.schema, part, features))
            yield sink.taken()
    yield sink.taken()


class FeaturesFile:
    """A file of `task` and `features` that is written a few rows at a time."""

    def __init__(self, path: Path, dim: int) -> None:
        self._arrow = needed()
        self._schema = self._arrow.schema(
            [("task", self._arrow.int64()), ("features", self._arrow.list_(self._arrow.float32(), dim))]
        )
        self._writer = _writer(self._arrow, str(path), self._schema)

    def append(self, rows: list[Row], values: Values) -> None:
        columns = [self._arrow.array([row.task for row in rows], self._arrow.int64()), _lists(self._arrow, values)]
        self._writer.write_batch(self._arrow.record_batch(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _Sink(io.RawIOBase):
    """Keeps what is written until it is taken."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self._at = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        added = bytes(data)
        self._waiting += added
        self._at += len(added)
        return len(added)

    def tell(self) -> int:
        return self._at

    def taken(self) -> bytes:
        found = bytes(self._waiting)
        self._waiting.clear()
        return found


def _writer(arrow: Any, where: Any, schema: Any) -> Any:
    return arrow.parquet.ParquetWriter(where, schema, compression="zstd")


def _schema(arrow: Any, features: Features | None) -> Any:
    kinds = {
        "task": arrow.int64(),
        "image": arrow.string(),
        "label": arrow.string(),  # nothing for an invalid one
        "invalid": arrow.bool_(),
        "annotators": arrow.int32(),
        "agreement": arrow.float64(),
        "labelled_at": arrow.timestamp("us", "UTC"),
        "round": arrow.int64(),
        "rank": arrow.int64(),
        "inconsistency": arrow.float64(),
    }
    columns = [(name, kinds[name]) for name in COLUMNS]
    if features is not None:
        columns.append(("features", arrow.list_(arrow.float32(), features.dim)))
    return arrow.schema(columns)


def _batch(arrow: Any, schema: Any, part: list[Row], features: Features | None) -> Any:
    columns = []
    for name in COLUMNS:
        values = [getattr(row, name) for row in part]
        if name == "labelled_at":
            values = [datetime.fromisoformat(value) for value in values]
        elif name == "label":
            values = [value or None for value in values]
        columns.append(arrow.array(values, schema.field(name).type))
    if features is not None:
        columns.append(_lists(arrow, features.of(part)))
    return arrow.record_batch(columns, schema=schema)


def _lists(arrow: Any, values: Values) -> Any:
    """float32 [n, dim] as a column; nothing where a row is NaN."""
    missing = np.isnan(values[:, 0])  # a row is there or not as a whole
    flat = arrow.array(np.where(missing[:, None], 0, values).reshape(-1), arrow.float32())
    return arrow.FixedSizeListArray.from_arrays(flat, values.shape[1], mask=arrow.array(missing))
