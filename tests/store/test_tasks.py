from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection

from neat_backend.records import Annotation, Task
from neat_backend.store import merging, projects, schema, tasks
from neat_backend.store.database import Database
from neat_backend.store.tasks import FailedImage, TaskCounts, Upserted

NOON = datetime(2026, 3, 1, 12, tzinfo=timezone.utc)


def at(minute: int) -> datetime:
    return NOON + timedelta(minutes=minute)


def task(id: int, image: str | None = "a.jpg", minute: int = 0) -> Task:
    return Task(id, image, at(minute))


def annotation(id: int, task: int, choice: str = "dog", minute: int = 0, **more: Any) -> Annotation:
    base = Annotation(id, task, 1, {"class": (choice,)}, False, False, at(minute))
    return replace(base, **more)


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def images(db: Database, project: int = 1) -> list[tuple[int, str | None, str]]:
    with db.read() as conn:
        return tasks.task_images(conn, project)


def delete_missing_tasks(conn: Connection, project: int, present: np.ndarray, seen: int, **where: int) -> list[int]:
    missing = tasks.missing_tasks(conn, project, present, seen, **where)
    return tasks.delete_unseen_tasks(conn, project, missing, seen)


def delete_missing_annotations(conn: Connection, project: int, present: np.ndarray, seen: int) -> set[int]:
    missing = tasks.missing_annotations(conn, project, present, seen)
    return tasks.delete_unseen_annotations(conn, project, missing, seen)


# tasks


def test_new_tasks_are_pending_and_known_ones_are_not_new(db: Database) -> None:
    with db.begin() as conn:
        assert tasks.upsert_tasks(conn, 1, [task(3), task(1, None)], seen=1) == Upserted([1, 3], [], [])
        assert tasks.upsert_tasks(conn, 1, [task(3), task(2)], seen=1) == Upserted([2], [], [])
        assert tasks.upsert_tasks(conn, 2, [task(3)], seen=1) == Upserted([3], [], [])
        assert tasks.upsert_tasks(conn, 1, [], seen=9) == Upserted([], [], [])
        assert tasks.task_ids(conn, 1).tolist() == [1, 2, 3]
        assert tasks.task_ids(conn, 1).dtype == np.int64
        assert tasks.task_ids(conn, 99).tolist() == []
    assert images(db) == [(1, None, "pending"), (2, "a.jpg", "pending"), (3, "a.jpg", "pending")]


def test_a_changed_image_is_pending_again_unless_the_change_is_older(db: Database) -> None:
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(1, "b.jpg", minute=5), task(2)], seen=1)
        tasks.set_image_state(conn, 1, [1, 2], tasks.READY)
        assert tasks.upsert_tasks(conn, 1, [task(1, "a.jpg", minute=4)], seen=2) == Upserted([], [], [])
        assert tasks.upsert_tasks(conn, 1, [task(2, minute=6)], seen=3) == Upserted([], [], [])
        assert tasks.upsert_tasks(conn, 1, [task(1, "c.jpg", minute=6)], seen=2) == Upserted([], [1], [])
    assert images(db) == [(1, "c.jpg", "pending"), (2, "a.jpg", "ready")]


def test_with_equal_times_the_later_seen_wins(db: Database) -> None:
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(1, "b.jpg")], seen=5)
        assert tasks.upsert_tasks(conn, 1, [task(1, "a.jpg")], seen=4) == Upserted([], [], [])
        assert tasks.upsert_tasks(conn, 1, [task(1, "c.jpg")], seen=6) == Upserted([], [1], [])
    assert images(db) == [(1, "c.jpg", "pending")]


def test_the_same_task_twice_in_one_call_counts_once(db: Database) -> None:
    with db.begin() as conn:
        twice = [task(1, "a.jpg"), task(1, "b.jpg", minute=1)]
        assert tasks.upsert_tasks(conn, 1, twice, seen=1) == Upserted([1], [], [])
        assert tasks.upsert_tasks(conn, 1, [task(1, "b.jpg", 1), task(1, "c.jpg", 2)], 2) == Upserted([], [1], [])
    assert images(db) == [(1, "c.jpg", "pending")]


def test_a_deleted_task_comes_back_only_by_a_later_word(db: Database) -> None:
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(1), task(2)], seen=1)
        tasks.set_image_state(conn, 1, [1, 2], tasks.READY)
        assert tasks.delete_tasks(conn, 1, [1, 7], seen=5) == [1]
        assert tasks.delete_tasks(conn, 1, [1], seen=5) == []
        assert tasks.upsert_tasks(conn, 1, [task(1), task(7)], seen=5) == Upserted([], [], [])
        assert tasks.task_ids(conn, 1).tolist() == [2]
        assert tasks.upsert_tasks(conn, 1, [task(1), task(7)], seen=6) == Upserted([], [], [1, 7])
        assert tasks.delete_tasks(conn, 1, [1], seen=5) == []
    assert images(db) == [(1, "a.jpg", "pending"), (2, "a.jpg", "ready"), (7, "a.jpg", "pending")]


def test_a_synchronisation_deletes_what_it_did_not_find_but_nothing_newer(db: Database) -> None:
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(n) for n in range(1, 2001)], seen=3)
        tasks.upsert_tasks(conn, 1, [task(5000)], seen=11)  # reported while the synchronisation read
        tasks.upsert_tasks(conn, 2, [task(1)], seen=1)
        present = np.arange(2000, 0, -2)
        tasks.upsert_tasks(conn, 1, [task(int(n)) for n in present], seen=10)
        assert delete_missing_tasks(conn, 1, present, seen=10) == list(range(1, 2000, 2))
        assert delete_missing_tasks(conn, 1, present, seen=10) == []
        assert tasks.task_ids(conn, 1).tolist() == [*range(2, 2001, 2), 5000]
        assert tasks.task_ids(conn, 2).tolist() == [1]
        assert tasks.upsert_tasks(conn, 1, [task(1)], seen=10).revived == []
        assert len(delete_missing_tasks(conn, 1, ids(), seen=11)) == 1001


def test_where_a_comparison_has_not_looked_nothing_is_taken_for_deleted(db: Database) -> None:
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(number) for number in range(1, 11)], 1)
        assert delete_missing_tasks(conn, 1, ids(4), seen=1, above=2, upto=6) == [3, 5, 6]
        assert delete_missing_tasks(conn, 1, ids(), seen=1, above=8) == [9, 10]
        assert tasks.task_ids(conn, 1).tolist() == [1, 2, 4, 7, 8]


def test_image_states_are_kept_and_counted(db: Database) -> None:
    with db.begin() as conn:
        assert tasks.counts(conn, 1) == TaskCounts(0, 0, 0, 0, 0, 0, 0)
        tasks.upsert_tasks(conn, 1, [task(n, f"{n}.jpg") for n in range(1, 6)], seen=1)
        tasks.set_image_state(conn, 1, ids(1, 2), tasks.READY)
        tasks.set_image_state(conn, 1, [3], tasks.FAILED, "404: deleted from the bucket\0")
        tasks.delete_tasks(conn, 1, [5], seen=2)
        tasks.set_image_state(conn, 1, [5], tasks.READY)  # too late: stays deleted
        tasks.upsert_annotations(conn, 1, [annotation(1, 1), annotation(2, 1), annotation(3, 5)], seen=2)
        assert tasks.counts(conn, 1) == TaskCounts(4, 1, 2, 1, 1, 2, 0)
        assert tasks.pending_images(conn, 1) == [(4, "4.jpg")]
        assert tasks.failed_images(conn, 1) == [FailedImage(3, "3.jpg", "404: deleted from the bucket\ufffd")]
        assert tasks.retry_failed(conn, 1) == 1
        assert tasks.failed_images(conn, 1) == []
        assert tasks.pending_images(conn, 1) == [(3, "3.jpg"), (4, "4.jpg")]
        with pytest.raises(ValueError, match="deleted"):
            tasks.set_image_state(conn, 1, [1], tasks.DELETED)


def test_work_on_an_image_that_has_changed_meanwhile_does_not_count(db: Database) -> None:
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(1, "1.jpg"), task(2, "2.jpg")], seen=1)
        worked_on = dict(tasks.pending_images(conn, 1))
        tasks.upsert_tasks(conn, 1, [task(2, "new.jpg", minute=1)], seen=2)
        tasks.set_image_state(conn, 1, worked_on, tasks.READY, images=worked_on)
    assert images(db) == [(1, "1.jpg", "ready"), (2, "new.jpg", "pending")]


def test_an_image_name_that_a_database_can_not_hold_does_not_change_for_ever(db: Database) -> None:
    with db.begin() as conn:
        assert tasks.upsert_tasks(conn, 1, [task(1, "a\0\ud800.jpg")], seen=1).new == [1]
        assert tasks.upsert_tasks(conn, 1, [task(1, "a\0\ud800.jpg")], seen=2).image_changed == []


# annotations


def test_annotations_come_back_as_they_were(db: Database) -> None:
    first = annotation(9, 1, minute=3, annotator=None, ground_truth=True)
    second = annotation(4, 1, minute=3, choices={"class": ("dog", "cat"), "ünter": ()}, was_cancelled=True)
    third = annotation(5, 1, minute=1)
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(1), task(2), task(3)], seen=1)
        assert tasks.upsert_annotations(conn, 1, [first, second, third, annotation(6, 3)], seen=1) == {1, 3}
        assert tasks.annotations_of(conn, 1) == {1: [third, second, first], 3: [annotation(6, 3)]}
        assert tasks.annotations_of(conn, 1, [1, 2]) == {1: [third, second, first]}
        assert tasks.annotations_of(conn, 1, []) == {}
        assert tasks.annotations_of(conn, 2) == {}


def test_an_answer_that_cannot_be_read_is_kept_as_such_and_told_of_once(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    odd = annotation(9, 1, choices={"class": None, "": None, "other": (("pets", "dog"), "cat ")})
    for seen in (1, 2, 2):
        with db.begin() as conn:
            tasks.upsert_tasks(conn, 1, [task(1)], seen)
            tasks.upsert_annotations(conn, 1, [odd], seen, authoritative=True)
            assert tasks.annotations_of(conn, 1) == {1: [odd]}
    assert [record.getMessage() for record in caplog.records] == [
        "project 1: annotation 9 of task 1 has a result that can't be read (control 'class'): it is no vote",
        "project 1: annotation 9 of task 1 has a result that can't be read (of no control): it is no vote",
    ]


def test_an_annotation_may_come_before_its_task_and_vanishes_with_it(db: Database) -> None:
    with db.begin() as conn:
        assert tasks.upsert_annotations(conn, 1, [annotation(1, 1)], seen=1) == {1}
        assert tasks.annotations_of(conn, 1) == {}
        tasks.upsert_tasks(conn, 1, [task(1)], seen=2)
        assert tasks.annotations_of(conn, 1) == {1: [annotation(1, 1)]}
        tasks.delete_tasks(conn, 1, [1], seen=3)
        assert tasks.annotations_of(conn, 1) == {}


def test_the_newer_annotation_wins_and_a_repeated_one_affects_nothing(db: Database) -> None:
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(1)], seen=1)
        tasks.upsert_annotations(conn, 1, [annotation(1, 1, "dog", minute=5)], seen=5)
        assert tasks.upsert_annotations(conn, 1, [annotation(1, 1, "cat", minute=4)], seen=6) == set()
        assert tasks.upsert_annotations(conn, 1, [annotation(1, 1, "dog", minute=5)], seen=7) == set()
        assert tasks.upsert_annotations(conn, 1, [annotation(1, 1, "owl", minute=5)], seen=6) == set()
        assert tasks.upsert_annotations(conn, 1, [annotation(1, 1, "emu", minute=5)], seen=8) == {1}
        assert tasks.annotations_of(conn, 1) == {1: [annotation(1, 1, "emu", minute=5)]}


def test_a_deleted_annotation_comes_back_only_when_a_later_synchronisation_finds_it(db: Database) -> None:
    reported = annotation(1, 1)
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(1)], seen=1)
        tasks.upsert_annotations(conn, 1, [reported], seen=2)
        assert tasks.delete_annotations(conn, 1, [1, 8], seen=5) == {1}
        assert tasks.delete_annotations(conn, 1, [1, 8], seen=5) == set()
        assert tasks.upsert_annotations(conn, 1, [reported, annotation(8, 1)], seen=6) == set()
        assert tasks.upsert_annotations(conn, 1, [reported], seen=5, authoritative=True) == set()
        assert tasks.annotations_of(conn, 1) == {}
        assert tasks.upsert_annotations(conn, 1, [reported], seen=6, authoritative=True) == {1}
        assert tasks.delete_annotations(conn, 1, [1], seen=5) == set()
        assert tasks.annotations_of(conn, 1) == {1: [reported]}


def test_a_synchronisation_deletes_annotations_that_it_did_not_find(db: Database) -> None:
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(1), task(2), task(3)], seen=1)
        tasks.upsert_annotations(conn, 1, [annotation(1, 1), annotation(2, 2)], seen=2)
        tasks.upsert_annotations(conn, 1, [annotation(3, 3)], seen=11)
        tasks.upsert_annotations(conn, 1, [annotation(1, 1)], seen=10, authoritative=True)
        assert delete_missing_annotations(conn, 1, ids(1), seen=10) == {2}
        assert set(tasks.annotations_of(conn, 1)) == {1, 3}
        assert delete_missing_annotations(conn, 1, ids(), seen=11) == {1, 3}
        assert tasks.annotations_of(conn, 1) == {}


def test_what_was_read_wins_over_what_was_told_before_though_the_clock_was_set_back(db: Database) -> None:
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(1, "a.jpg", minute=60)], seen=4)
        tasks.upsert_annotations(conn, 1, [annotation(1, 1, "dog", minute=60)], seen=4)
        read = annotation(1, 1, "cat", minute=5)
        assert tasks.upsert_annotations(conn, 1, [read], seen=6, authoritative=True) == {1}
        assert tasks.upsert_tasks(conn, 1, [task(1, "b.jpg", minute=5)], seen=6, authoritative=True).image_changed == [
            1
        ]
        late = annotation(1, 1, "dog", minute=60)
        assert tasks.upsert_annotations(conn, 1, [late], seen=6) == set()
        assert tasks.annotations_of(conn, 1) == {1: [read]}


# in any order, and twice


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Any], list[Any]]:
    """What Label Studio may tell of three things, and the same in another order with repetitions.

    Each has one content after the other, of rising time. Of some changes nobody tells but a synchronisation.
    """
    reported = []
    content, seen = dict.fromkeys((1, 2, 3), 0), 0
    for _ in range(draw(st.integers(1, 12))):
        kind = draw(st.sampled_from(["upsert", "upsert", "unheard", "synchronised", "synchronised", "delete"]))
        id = draw(st.integers(1, 3))
        content[id] += kind in ("upsert", "unheard")
        seen += kind in ("upsert", "delete")
        if kind != "unheard":
            reported.append((kind, id, content[id], seen))
    reported = reported or [("delete", 1, 0, 1)]
    again = draw(st.lists(st.sampled_from(reported), max_size=5))
    return reported, draw(st.permutations(reported + again))


def _apply_to_annotations(conn: sa.Connection, reported: list[Any]) -> None:
    for kind, id, content, seen in reported:
        if kind == "delete":
            tasks.delete_annotations(conn, 1, [id], seen)
        else:
            given = annotation(id, id % 2 + 1, f"{content}", content)
            tasks.upsert_annotations(conn, 1, [given], seen, authoritative=kind == "synchronised")


def _apply_to_tasks(conn: sa.Connection, reported: list[Any]) -> None:
    for kind, id, content, seen in reported:
        if kind == "delete":
            tasks.delete_tasks(conn, 1, [id], seen)
        else:
            given = task(id, f"{content}.jpg", content)
            tasks.upsert_tasks(conn, 1, [given], seen, authoritative=kind == "synchronised")


@pytest.mark.parametrize(
    ("table", "apply"),
    [(schema.annotations, _apply_to_annotations), (schema.tasks, _apply_to_tasks)],
    ids=["annotations", "tasks"],
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(history=histories())
def test_any_order_and_repetition_ends_in_the_same_state(
    db: Database, table: sa.Table, apply: Any, history: tuple[list[Any], list[Any]]
) -> None:
    ends = []
    for reported in history:
        with db.begin() as conn:
            apply(conn, reported)
            ends.append([tuple(row) for row in conn.execute(sa.select(table).order_by(table.c.id))])
            projects.delete(conn, 1)
            projects.save_connection(conn, 1)
    assert ends[0] == ends[1]


TABLES = (schema.annotations, schema.tasks)
# One of three things, its content and the minutes of that.
REPORTS = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=8)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(history=histories(), reports=REPORTS, first=st.integers(0, 12))
def test_many_reports_in_one_call_do_what_one_call_for_each_does(
    db: Database, history: tuple[list[Any], list[Any]], reports: list[tuple[int, int, int]], first: int
) -> None:
    answers = [annotation(id, id % 2 + 1, f"{content}", minute) for id, content, minute in reports]
    images = [task(id, f"{content}.jpg", minute) for id, content, minute in reports]
    seen = range(first, first + len(reports))

    def one_by_one(conn: sa.Connection) -> tuple[set[int], set[int], set[int]]:
        affected = [tasks.upsert_annotations(conn, 1, [one], at) for one, at in zip(answers, seen, strict=True)]
        done = [tasks.upsert_tasks(conn, 1, [one], at) for one, at in zip(images, seen, strict=True)]
        new, revived = ({id for one in done for id in getattr(one, name)} for name in ("new", "revived"))
        return set().union(*affected), new | revived, {id for one in done for id in one.image_changed} - new - revived

    def together(conn: sa.Connection) -> tuple[set[int], set[int], set[int]]:
        affected = tasks.upsert_annotations(conn, 1, answers, seen)
        done = tasks.upsert_tasks(conn, 1, images, seen)
        return affected, {*done.new, *done.revived}, set(done.image_changed)

    ends = []
    for upsert in (one_by_one, together):
        with db.begin() as conn:
            _apply_to_annotations(conn, history[0])
            _apply_to_tasks(conn, history[0])
            reported = upsert(conn)
            rows = [conn.execute(sa.select(table).order_by(table.c.id)).all() for table in TABLES]
            ends.append((reported, [[tuple(row) for row in found] for found in rows]))
            projects.delete(conn, 1)
            projects.save_connection(conn, 1)
    assert ends[0] == ends[1]


def test_what_an_upsert_reports_is_what_changed(db: Database) -> None:
    """The affected tasks are those whose annotations_of differs, over random histories."""
    rng = np.random.default_rng(0)
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(n) for n in (1, 2, 3)], seen=0)
        before = tasks.annotations_of(conn, 1)
        for _ in range(150):
            kind, id, minute, seen = (int(n) for n in rng.integers((0, 1, 0, 0), (4, 6, 4, 30)))
            if kind == 0:
                affected = tasks.delete_annotations(conn, 1, [id], seen)
            elif kind == 1:
                affected = delete_missing_annotations(conn, 1, ids(1, 3), seen // 4)
            else:
                given = annotation(id, id % 3 + 1, f"{minute}-{seen}", minute)
                affected = tasks.upsert_annotations(conn, 1, [given], seen, authoritative=kind == 2)
            after = tasks.annotations_of(conn, 1)
            assert affected == {n for n in (1, 2, 3) if before.get(n) != after.get(n)}
            before = after


# size


def test_five_thousand_tasks_are_taken_in_by_few_statements(db: Database) -> None:
    many = [task(n, f"s3://bucket/{n}.jpg") for n in range(1, 5001)]
    answers = [annotation(n, n) for n in range(1, 5001)]
    for seen in range(2):  # new, then found again
        statements = []
        with db.begin() as conn:
            sa.event.listen(conn, "before_cursor_execute", lambda *args: statements.append(args[2]))  # noqa: B023
            tasks.upsert_tasks(conn, 1, many, seen)
            tasks.upsert_annotations(conn, 1, answers, seen, authoritative=True)
        assert len(statements) <= 50
    with db.read() as conn:
        assert tasks.counts(conn, 1) == TaskCounts(5000, 5000, 0, 0, 5000, 5000, 0)
        assert len(tasks.annotations_of(conn, 1, range(1, 5001))) == 5000


# tombstones


def rows(db: Database, table: sa.Table) -> list[int]:
    with db.read() as conn:
        return list(conn.execute(sa.select(table.c.id).where(table.c.project == 1).order_by(table.c.id)).scalars())


def test_those_of_what_was_never_heard_of_are_bounded(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "MOST_UNHEARD", 5)
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(1), task(2)], seen=1)
        tasks.upsert_annotations(conn, 1, [annotation(1, 1), annotation(2, 2)], seen=1)
        for seen in (2, 3):
            tasks.delete_tasks(conn, 1, range(100, 104), seen)
            tasks.delete_annotations(conn, 1, range(100, 104), seen)
        assert tasks.delete_tasks(conn, 1, [1, 2, *range(200, 2200)], 4) == [1, 2]
        assert tasks.delete_annotations(conn, 1, [1, 2, *range(200, 2200)], 4) == {1, 2}
    assert rows(db, schema.tasks) == [1, 2, 100, 101, 102, 103, 200]
    assert rows(db, schema.annotations) == [1, 2, 100, 101, 102, 103, 200]


def test_old_ones_are_pruned_in_pieces_and_nothing_else(db: Database) -> None:
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(id) for id in range(1, 7)], seen=1)
        tasks.upsert_annotations(conn, 1, [annotation(id, id) for id in range(1, 7)], seen=1)
        tasks.delete_tasks(conn, 1, [1, 2, 50], seen=5)  # with their annotations, of which nothing is said
        tasks.delete_annotations(conn, 1, [3, 51], seen=5)
        tasks.delete_tasks(conn, 1, [5, 52], seen=6)  # after the event that is pruned through
        tasks.delete_annotations(conn, 1, [6, 53], seen=6)
        tasks.upsert_tasks(conn, 2, [task(1)], seen=1)
        tasks.delete_tasks(conn, 2, [1], seen=5)
    pruned = []
    while not pruned or pruned[-1] == 2:
        with db.begin() as conn:
            pruned.append(tasks.prune(conn, 1, through=5, limit=2))
    assert pruned == [2, 2, 1]
    assert rows(db, schema.tasks) == [3, 4, 5, 6, 52]
    assert rows(db, schema.annotations) == [4, 5, 6, 53]
    with db.read() as conn:
        assert tasks.task_ids(conn, 1).tolist() == [3, 4, 6]
        assert sorted(tasks.annotations_of(conn, 1)) == [4]
        assert conn.execute(sa.select(sa.func.count()).where(schema.tasks.c.project == 2)).scalar_one() == 1


def test_what_an_event_tells_while_the_missing_are_deleted_is_not_undone(db: Database) -> None:
    with db.begin() as conn:
        tasks.upsert_tasks(conn, 1, [task(1), task(2)], seen=1)
        tasks.upsert_annotations(conn, 1, [annotation(1, 1), annotation(2, 2)], seen=1)
        missing = tasks.missing_tasks(conn, 1, ids(), seen=1)
        without = tasks.missing_annotations(conn, 1, ids(), seen=1)
        assert (missing, without) == ([1, 2], [1, 2])
        tasks.upsert_tasks(conn, 1, [task(2)], seen=2)
        tasks.upsert_annotations(conn, 1, [annotation(2, 2)], seen=2)
        assert tasks.delete_unseen_tasks(conn, 1, missing, seen=1) == [1]
        assert tasks.delete_unseen_annotations(conn, 1, without, seen=1) == {1}
        assert tasks.task_ids(conn, 1).tolist() == [2]
