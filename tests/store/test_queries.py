from __future__ import annotations

import sqlalchemy as sa

from neat_backend.store import queries, rounds, schema, tasks
from neat_backend.store.database import Database
from tests.serving import begin_round
from tests.store.test_tasks import annotation, at, task


def begin_rounds(db: Database, *minutes: int) -> None:
    """Rounds 1, 2, … of project 1, begun at these minutes."""
    with db.begin() as conn:
        for minute in minutes:
            begun = begin_round(conn, 1)
            rounds.fail(conn, 1, begun.number, "whatever came of it")
            here = (schema.rounds.c.project == 1) & (schema.rounds.c.number == begun.number)
            conn.execute(sa.update(schema.rounds).where(here).values(started_at=at(minute)))


def answer(db: Database, *answers: tuple[int, int]) -> None:
    """(task, minute), each with an annotation of its own."""
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(t) for t, _ in answers], seen=1)
        made = [annotation(100 + number, t, minute=m) for number, (t, m) in enumerate(answers)]
        tasks.upsert_annotations(conn, 1, made, seen=1)


def answered(db: Database, least: int = 1) -> list[list[int]]:
    with db.read() as conn:
        return queries.answered(conn, 1, least)


def test_a_query_is_what_was_answered_between_two_rounds(db: Database) -> None:
    answer(db, (9, 0), (3, 5), (2, 12), (5, 11), (7, 25), (8, 99))
    assert answered(db) == []
    begin_rounds(db, 10)
    assert answered(db) == [], "what the first round learns from was chosen by nothing yet"
    begin_rounds(db, 20, 30)
    assert answered(db) == [[2, 5], [7]], "the answers since the last round are still coming in"


def test_a_task_belongs_to_the_query_of_its_last_answer(db: Database) -> None:
    answer(db, (1, 12), (1, 22), (2, 12))
    begin_rounds(db, 10, 20, 30)
    assert answered(db) == [[2], [1]]


def test_small_queries_are_joined_with_the_next(db: Database) -> None:
    answer(db, (1, 11), (2, 21), (3, 22), (4, 31))
    begin_rounds(db, 10, 20, 30, 40)
    assert answered(db, least=3) == [[1, 2, 3]]


def test_deleted_answers_do_not_count(db: Database) -> None:
    answer(db, (1, 12), (2, 13))
    begin_rounds(db, 10, 20)
    with db.begin() as conn:
        tasks.delete_annotations(conn, 1, [100], seen=2)
    assert answered(db) == [[2]]
