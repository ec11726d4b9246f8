"""Who answered how much and when, by worked examples, on both databases."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from neat_backend.records import Annotation
from neat_backend.store import answers, tasks
from neat_backend.store.answers import Work
from neat_backend.store.database import Database

START = datetime(2026, 11, 29, 23, 59, 0, tzinfo=timezone.utc)
_numbers = iter(range(1, 10_000))


def answer(task: int, annotator: int | None, seconds: float, choice: str = "dog", skipped: bool = False) -> Annotation:
    choices = {} if skipped else {"class": (choice,)}
    moment = START + timedelta(seconds=seconds)
    return Annotation(next(_numbers), task, annotator, choices, skipped, False, moment)


def keep(db: Database, *found: Annotation) -> None:
    with db.begin() as conn:
        tasks.upsert_annotations(conn, 1, found, seen=1)


class TestWork:
    def test_gaps_of_up_to_five_minutes_are_work_and_longer_ones_breaks(self, db: Database) -> None:
        keep(db, *(answer(number, 4, at) for number, at in enumerate((0, 20, 40, 340, 641, 701))))
        with db.read() as conn:
            assert answers.work(conn, 1) == [Work(4, 6, 0, 4, 20 + 20 + 300 + 60)]

    def test_each_annotator_has_a_clock_of_their_own(self, db: Database) -> None:
        keep(
            db, answer(1, 4, 0), answer(2, 5, 10), answer(3, 4, 30), answer(4, 5, 20, skipped=True), answer(5, None, 0)
        )
        with db.read() as conn:
            assert answers.work(conn, 1) == [Work(4, 2, 0, 1, 30), Work(5, 1, 1, 1, 10), Work(None, 1, 0, 0, 0)]

    def test_what_came_in_the_same_second_is_an_import_and_no_work(self, db: Database) -> None:
        keep(db, *(answer(task, 4, 0.001 * task) for task in range(1, 50)))
        with db.read() as conn:
            assert answers.work(conn, 1) == [Work(4, 49, 0, 0, 0)]

    def test_what_was_deleted_and_other_projects_do_not_count(self, db: Database) -> None:
        gone = answer(1, 4, 0)
        keep(db, gone, answer(2, 4, 20))
        with db.begin() as conn:
            tasks.delete_annotations(conn, 1, [gone.id], seen=2)
        with db.read() as conn:
            assert answers.work(conn, 1) == [Work(4, 1, 0, 0, 0)]
            assert answers.work(conn, 2) == []


class TestDays:
    def test_a_task_counts_on_the_day_of_its_first_answer(self, db: Database) -> None:
        keep(db, answer(1, 4, 0), answer(1, 5, 90), answer(2, 4, 90), answer(3, 4, 100), answer(4, 4, 3 * 86_400))
        with db.read() as conn:
            found = answers.days(conn, 1)
        first = (START.date() - datetime(1970, 1, 1).date()).days
        assert found == {first: 1, first + 1: 2, first + 3: 1}


class TestPairs:
    def test_the_latest_answers_of_each_two_are_counted_by_what_they_say(self, db: Database) -> None:
        keep(
            db,
            answer(1, 4, 0, "cat"),
            answer(1, 4, 10, "dog"),  # changed their mind
            answer(1, 5, 0, "dog"),
            answer(2, 4, 0, "dog"),
            answer(2, 5, 0, "dog"),
            answer(3, 4, 0, "dog"),
            answer(3, 5, 0, skipped=True),
            answer(4, 4, 0, "dog"),  # nobody else
            answer(5, None, 0, "dog"),
        )
        with db.read() as conn:
            found = answers.pairs(conn, 1)
        counts = {
            (
                pair.one,
                pair.other,
                *answers.choices_of(pair.one_said).values(),
                pair.other_said.was_cancelled,
            ): pair.tasks
            for pair in found
        }
        assert counts == {(4, 5, ("dog",), False): 2, (4, 5, ("dog",), True): 1}

    def test_three_annotators_make_three_pairs(self, db: Database) -> None:
        keep(db, *(answer(1, who, 0, "dog") for who in (4, 5, 6)))
        with db.read() as conn:
            assert sorted((pair.one, pair.other, pair.tasks) for pair in answers.pairs(conn, 1)) == [
                (4, 5, 1),
                (4, 6, 1),
                (5, 6, 1),
            ]


class TestGiven:
    def test_who_said_what_of_which_task_in_order(self, db: Database) -> None:
        keep(db, answer(2, 5, 0, "dog"), answer(1, 4, 9, "dog"), answer(1, 4, 3, "cat"), answer(4, None, 0, "owl"))
        with db.read() as conn:
            contents, rows = answers.given(conn, 1)
        said = [answers.choices_of(content)["class"][0] for content in contents]
        assert [(task, who, said[place]) for task, who, place in rows.T.tolist()] == [
            (1, 4, "cat"),
            (1, 4, "dog"),
            (2, 5, "dog"),
        ]
