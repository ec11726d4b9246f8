"""Which tasks each query got answers for: the strategy's own record, made from what is stored anyway.

A query goes from the beginning of one round to that of the next; what was labelled before the first round was chosen
by nothing yet and belongs to none, and neither do the answers since the last one.
"""

from __future__ import annotations

from itertools import pairwise

import sqlalchemy as sa
from sqlalchemy import Connection

from neat_backend.store import rounds, schema

_annotations = schema.annotations


def answered(conn: Connection, project: int, least: int) -> list[list[int]]:
    """Task ids of each finished query, oldest first, ascending in each. A task counts where it was answered last.

    least: a query with fewer answers is joined with the next one, since its precision would say little; rounds can
    be asked for by hand after any label. Times of answers are Label Studio's, those of rounds the database's.
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
