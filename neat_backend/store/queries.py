"""The tasks answered in each query, derived from stored rounds and annotations.

A query lasts from the start of one round to the start of the next. Answers before the first round or since the last
one belong to no query.
"""

from __future__ import annotations

from itertools import pairwise

import sqlalchemy as sa
from sqlalchemy import Connection

from neat_backend.store import rounds, schema

_annotations = schema.annotations


def answered(conn: Connection, project: int, least: int) -> list[list[int]]:
    """Task ids of each finished query, oldest first, ascending in each. A task counts where it was answered last.

    least: a query with fewer answers is joined with the next one, since its precision would mean little; a person can
    start a round after any label. Times of answers are Label Studio's, those of rounds the database's.
    """
    begun = [round.started_at for round in rounds.all(conn, project) if round.started_at is not None]
    if len(begun) < 2:
        return []
    statement = (
        sa.select(_annotations.c.task, sa.func.max(_annotations.c.updated_at).label("at"))
        .where(_annotations.c.project == project, _annotations.c.live)
        .group_by(_annotations.c.task)
        .order_by("at", _annotations.c.task)
    )
    rows = [(row.task, row.at) for row in conn.execute(statement)]
    found: list[list[int]] = []
    query: list[int] = []
    for start, end in pairwise(begun):
        query += [task for task, at in rows if start < at <= end]
        if len(query) >= least:
            found.append(sorted(query))
            query = []
    return found
