"""Labelled data sets as tables: csv and jsonl a line at a time, Parquet in `parquet.py`."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from operator import attrgetter

from neat_backend.exports.rows import Row

COLUMNS = tuple(field.name for field in fields(Row))
values = attrgetter(
    *COLUMNS
)  # of a row, in the columns' order; dataclasses.astuple copies deeply and takes ten times as long


def csv_lines(rows: Iterable[Row]) -> Iterator[str]:
    """A header and a line for each row; truth as true and false, nothing as an empty field."""
    line = io.StringIO()
    writer = csv.writer(line, lineterminator="\n")
    writer.writerow(COLUMNS)
    yield line.getvalue()
    for row in rows:
        line.seek(0)
        line.truncate()
        writer.writerow([str(value).lower() if isinstance(value, bool) else value for value in values(row)])
        yield line.getvalue()


def jsonl_lines(rows: Iterable[Row]) -> Iterator[str]:
    """One JSON object for each row."""
    for row in rows:
        yield json.dumps(dict(zip(COLUMNS, values(row), strict=True)), ensure_ascii=False) + "\n"


TEXTS = {"csv": csv_lines, "jsonl": jsonl_lines}
TABLES = (*TEXTS, "parquet")
