"""What is kept of a task's place in the order at the moment when it was chosen."""

from __future__ import annotations

from neat_backend.store import projects, selections
from neat_backend.store.database import Database
from neat_backend.store.selections import Selection


def test_what_was_noted_last_is_read_back_to_the_last_digit(db: Database) -> None:
    with db.begin() as conn:
        selections.note(conn, 1, {task: Selection(task, 0.1 * task) for task in range(1, 2501)})
        selections.note(conn, 1, {3: Selection(10**12, 1 / 3)})
    with db.read() as conn:
        found = selections.of(conn, 1, range(2502))
        assert found == {task: Selection(task, 0.1 * task) for task in range(1, 2501)} | {3: Selection(10**12, 1 / 3)}
        assert selections.of(conn, 2, [1]) == {}


def test_a_project_that_is_forgotten_takes_them_along(db: Database) -> None:
    with db.begin() as conn:
        selections.note(conn, 1, {5: Selection(0, 1.0)})
        projects.delete(conn, 1)
        projects.save_connection(conn, 1)
        assert selections.of(conn, 1, [5]) == {}
