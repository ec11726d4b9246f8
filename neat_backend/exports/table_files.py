"""Labelled data sets as tables: csv and jsonl a line at a time, Parquet in `parquet.py`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from operator import attrgetter
from typing import Any

from neat_backend.exports.rows import Row

COLUMNS = tuple(field.name for field in fields(Row))
values = attrgetter(
    *COLUMNS
)  # of a row, in the columns' order; dataclasses.astuple copies deeply and takes ten times as long


# How a cell begins that spreadsheets take for a formula; some do so after blanks, or with the wide forms of Asia.
_FORMULA = re.compile("[\\s\\x00]*[=+\\-@＝＋－＠]|[\\t\\r\\n]")


def csv_line(values: Iterable[Any], raw: bool = False) -> str:
    """A row of CSV: truth as true and false, nothing as an empty field, ' before a text that a spreadsheet would run.

    raw: texts stay as they are.
    """
    line = io.StringIO()
    csv.writer(line).writerow([_cell(value, raw) for value in values])  # ends in \r\n, so that it quotes a \r in a cell
    return line.getvalue()[:-2] + "\n"


def _cell(value: Any, raw: bool) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return f"'{value}" if not raw and isinstance(value, str) and _FORMULA.match(value) else value


def csv_lines(rows: Iterable[Row], raw: bool = False) -> Iterator[str]:
    """A header and a line for each row."""
    yield csv_line(COLUMNS)
    for row in rows:
        yield csv_line(values(row), raw)


def jsonl_lines(rows: Iterable[Row], raw: bool = True) -> Iterator[str]:
    """One JSON object for each row; texts are unchanged, and `raw` is ignored."""
    for row in rows:
        yield json.dumps(dict(zip(COLUMNS, values(row), strict=True)), ensure_ascii=False) + "\n"


TEXTS = {"csv": csv_lines, "jsonl": jsonl_lines}
TABLES = (*TEXTS, "parquet")
