"""What is counted of the choices that annotators found filled in."""

from __future__ import annotations

from neat_backend.store import prefills, projects
from neat_backend.store.database import Database
from neat_backend.store.prefills import Kept


def test_an_answer_is_compared_with_what_was_published_last(db: Database) -> None:
    with db.begin() as conn:
        prefills.publish(conn, 1, {1: "dog", 2: "dog", 3: "dog", 4: None, 5: "cat"})
        prefills.publish(conn, 1, {1: "cat", 2: None, 4: "dog"})
        assert prefills.kept(conn, 1) == Kept(0, 0, 0)  # published, but nobody has answered
        prefills.answer(conn, 1, {1: "cat", 2: "dog", 3: "cat", 4: None, 6: "dog"})
        assert prefills.kept(conn, 1) == Kept(answered=4, filled=3, kept=1)  # task 6 was never published
        assert prefills.kept(conn, 2) == Kept(0, 0, 0)


def test_the_first_answer_counts_whatever_comes_after_it(db: Database) -> None:
    with db.begin() as conn:
        prefills.publish(conn, 1, {1: "dog", 2: None})
        prefills.answer(conn, 1, {1: "dog", 2: "dog"})
        prefills.publish(conn, 1, {1: "cat", 2: "cat"})  # was under way when the answers came
        prefills.answer(conn, 1, {1: "cat", 2: "cat"})
        assert prefills.kept(conn, 1) == Kept(answered=2, filled=1, kept=1)


def test_thousands_at_once(db: Database) -> None:
    with db.begin() as conn:
        prefills.publish(conn, 1, {task: "dog" if task % 2 else None for task in range(1, 5001)})
        prefills.answer(conn, 1, {task: "dog" if task % 3 else None for task in range(1, 5001)})
        assert prefills.kept(conn, 1) == Kept(5000, 2500, sum(1 for task in range(1, 5001, 2) if task % 3))


def test_a_project_that_is_forgotten_takes_them_along(db: Database) -> None:
    with db.begin() as conn:
        prefills.publish(conn, 1, {5: "dog"})
        prefills.answer(conn, 1, {5: "dog"})
        projects.delete(conn, 1)
        projects.save_connection(conn, 1)
        assert prefills.kept(conn, 1) == Kept(0, 0, 0)
