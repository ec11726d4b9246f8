"""Who answered how much and when, counted by the database from the annotations.

The time of an answer is when Label Studio last changed it (`updated_at`), to the second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy import Connection

from neat_backend.store import schema
from neat_backend.store.sql import int_columns

BREAK_SECONDS = 300  # a longer gap between two answers of an annotator is a break
DAY_SECONDS = 86_400

_table = schema.annotations
_seconds = sa.cast(sa.extract("epoch", _table.c.updated_at), sa.BigInteger)


@dataclass(frozen=True)
class Work:
    """One annotator's work. `timed` and `seconds` give the pace."""

    annotator: int | None
    labels: int  # answers without skips
    skips: int
    timed: int  # answers that followed another one of theirs after 1 to BREAK_SECONDS
    seconds: int  # these gaps together


@dataclass(frozen=True)
class Content:
    """The content of an annotation; stored: the text that the database compares."""

    stored: str
    was_cancelled: bool


@dataclass(frozen=True)
class Pair:
    """Number of tasks on which two annotators gave two answers, each by their latest answer; one < other."""

    one: int
    other: int
    one_said: Content
    other_said: Content
    tasks: int


def work(conn: Connection, project: int) -> list[Work]:
    """The work of each annotator, ascending; annotator None = Label Studio names nobody."""
    before = sa.func.lag(_seconds).over(partition_by=_table.c.annotator, order_by=(_table.c.updated_at, _table.c.id))
    gap = (_seconds - before).label("gap")
    answers = sa.select(_table.c.annotator, _table.c.was_cancelled, gap).where(*_live(project)).subquery()
    counts = sa.and_(answers.c.gap > 0, answers.c.gap <= BREAK_SECONDS)
    statement = (
        sa.select(
            answers.c.annotator,
            sa.func.count(sa.case((answers.c.was_cancelled, None), else_=1)),
            sa.func.count(sa.case((answers.c.was_cancelled, 1))),
            sa.func.count(sa.case((counts, 1))),
            sa.func.coalesce(sa.func.sum(sa.case((counts, answers.c.gap))), 0),
        )
        .group_by(answers.c.annotator)
        .order_by(answers.c.annotator)
    )
    found = [Work(row[0], *(int(number) for number in row[1:])) for row in conn.execute(statement)]
    return sorted(found, key=lambda one: (one.annotator is None, one.annotator or 0))


def days(conn: Connection, project: int) -> dict[int, int]:
    """How many tasks were first answered on each day: days since 1970 (UTC) → tasks, ascending."""
    first = (
        sa.select(sa.func.min(_seconds).label("at")).where(*_live(project)).group_by(_table.c.task).subquery()
    ).c.at
    day = sa.cast(first // DAY_SECONDS, sa.BigInteger).label("day")
    statement = sa.select(day, sa.func.count()).group_by(day).order_by(day)
    return {int(one): int(count) for one, count in conn.execute(statement)}


def pairs(conn: Connection, project: int) -> list[Pair]:
    """Answers of each two annotators to the same tasks, counted by answer."""
    several = sa.func.min(_table.c.annotator) < sa.func.max(_table.c.annotator)
    some = sa.select(_table.c.task).where(*_live(project)).group_by(_table.c.task).having(several).limit(1)
    if conn.execute(some).first() is None:
        return []
    contents, rows = given(conn, project)
    task, who, said = rows
    last = np.append((task[1:] != task[:-1]) | (who[1:] != who[:-1]), True)
    task, who, said = task[last], who[last], said[last]
    found, apart = [], 1
    while apart < len(task) and (same := np.flatnonzero(task[apart:] == task[:-apart])).size:
        found.append(np.stack([who[same], who[same + apart], said[same], said[same + apart]]))
        apart += 1
    kinds, counts = np.unique(np.concatenate(found, axis=1), axis=1, return_counts=True)
    return [
        Pair(one, other, contents[one_said], contents[other_said], count)
        for (one, other, one_said, other_said), count in zip(kinds.T.tolist(), counts.tolist(), strict=True)
    ]


def given(conn: Connection, project: int) -> tuple[list[Content], NDArray[np.int64]]:
    """The distinct contents, and int64 [3, n]: tasks, annotators and indices into the contents.

    By task and annotator, then time; annotations without an annotator are left out. Only numbers are read of each row:
    a join of the table with itself would have no index in SQLite.
    """
    content = sa.type_coerce(_table.c.choices, sa.Text), _table.c.was_cancelled
    named = *_live(project), _table.c.annotator.is_not(None)
    kinds = sa.select(*content).where(*named).distinct().order_by(*content)
    contents = [Content(*row) for row in conn.execute(kinds)]
    place = sa.func.dense_rank().over(order_by=content) - 1
    statement = sa.select(_table.c.task, _table.c.annotator, _seconds, _table.c.id, place).where(*named)
    task, who, at, id, said = int_columns(conn, statement, 5)
    order = np.lexsort((id, at, who, task))
    return contents, np.stack([task, who, said])[:, order]


def choices_of(content: Content) -> Mapping[str, Any]:
    """The choices by control, as records.Annotation has them."""
    found = json.loads(content.stored)
    return {
        control: None if choices is None else tuple(tuple(one) if isinstance(one, list) else one for one in choices)
        for control, choices in found.items()
    }


def _live(project: int) -> tuple[sa.ColumnElement[bool], ...]:
    return _table.c.project == project, _table.c.live
