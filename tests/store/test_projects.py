from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
import sqlalchemy as sa

from neat_backend.errors import StoreError, UnknownProject
from neat_backend.records import Project, Task
from neat_backend.store import inbox, prefills, projects, requests, revisions, schema, selections, tasks
from neat_backend.store.database import Database
from tests.serving import begin_round
from tests.waiting import HANGS, until

NOW = datetime(2026, 3, 1, tzinfo=timezone.utc)


def test_a_project_is_made_once_and_changed_afterwards(db: Database) -> None:
    with db.begin() as conn:
        made = projects.save_connection(conn, 7, title="Birds", extra_params={"NEAT_K": 5}, access_token="t0ken")
        assert made == Project(id=7, title="Birds", extra_params={"NEAT_K": 5}, access_token="t0ken")
        projects.update(conn, 7, state=projects.READY, progress_eta_seconds=1.5, applied_event=2**40, synced_at=NOW)
        changed = projects.save_connection(conn, 7, title="Owls")
        assert changed.title == "Owls"
        assert (changed.state, changed.progress_eta_seconds) == (projects.READY, 1.5)
        assert (changed.applied_event, changed.synced_at) == (2**40, NOW)
        assert projects.save_connection(conn, 7) == changed
        assert projects.get(conn, 7) == changed
        assert [project.id for project in projects.all(conn)] == [1, 2, 7]


def test_the_access_token_is_kept_but_not_shown(db: Database) -> None:
    with db.begin() as conn:
        project = projects.save_connection(conn, 7, access_token="t0ken")
    assert project.access_token == "t0ken"
    assert "t0ken" not in repr(project)


def test_unknown_fields_and_projects_are_refused(db: Database) -> None:
    with db.begin() as conn:
        for fields in ({"colour": "red"}, {"lease_owner": "me"}):
            with pytest.raises(TypeError):
                projects.update(conn, 1, **fields)
            with pytest.raises(TypeError):
                projects.save_connection(conn, 1, **fields)
        with pytest.raises(UnknownProject):
            projects.update(conn, 99, title="?")
        with pytest.raises(UnknownProject):
            tasks.upsert_tasks(conn, 99, [Task(1, "a", NOW)], seen=1)
        assert projects.get(conn, 99) is None


def test_deleting_a_project_leaves_none_of_its_rows_and_all_of_the_others(db: Database) -> None:
    with db.begin() as conn:
        for id in (1, 2):
            seen = inbox.append(conn, id, "X", {})
            tasks.upsert_tasks(conn, id, [Task(1, "a", NOW)], seen)
            tasks.delete_annotations(conn, id, [5], seen)
            revisions.begin(conn, id)
            selections.note(conn, id, {1: selections.Selection(0, 0.5)})
            prefills.publish(conn, id, {1: "dog"})
            requests.ask(conn, id, requests.TEXT, "a dog")
            begin_round(conn, id, known=0, invalid=0, unlabelled=1, queried=0, queried_known=0, classes=())
            conn.execute(sa.insert(schema.array_lists).values(project=id, version="v", folder="f"))
            conn.execute(sa.insert(schema.array_files).values(project=id, name="n", object="o", bytes=1, sha256="s"))
        projects.delete(conn, 1)
        for table in schema.metadata.sorted_tables:
            if table is schema.webhook_keys:  # of all projects
                continue
            column = table.c.id if table is schema.projects else table.c.project
            assert list(conn.execute(sa.select(column)).scalars()) == [2], table.name


def test_a_lease_has_one_owner_until_it_runs_out_or_is_given_back(db: Database) -> None:
    after = NOW + timedelta(seconds=31)
    with db.begin() as conn:
        assert projects.lease_owner(conn, 1, NOW) is None
        assert projects.acquire_lease(conn, 1, "a", 30, NOW)
        assert not projects.acquire_lease(conn, 1, "b", 30, NOW)
        assert projects.acquire_lease(conn, 1, "a", 30, NOW + timedelta(seconds=10))
        assert projects.lease_owner(conn, 1, after) == "a"
        assert not projects.acquire_lease(conn, 1, "b", 30, after)
        assert projects.acquire_lease(conn, 1, "b", 30, after + timedelta(seconds=30))
        projects.release_lease(conn, 1, "a")
        assert projects.lease_owner(conn, 1, after) == "b"
        projects.release_lease(conn, 1, "b")
        assert projects.lease_owner(conn, 1, after) is None
        assert projects.acquire_lease(conn, 2, "c", 30)
        assert projects.lease_owner(conn, 2) == "c"
        assert not projects.acquire_lease(conn, 99, "c", 30)


def test_leases_are_kept_while_nobody_else_has_taken_them(db: Database) -> None:
    with db.begin() as conn:
        for id in (1, 2):
            assert projects.acquire_lease(conn, id, "a", 30, NOW)  # long over
        assert projects.keep_leases(conn, [1, 2], "a", 30) == {1, 2}
        assert projects.lease_owner(conn, 1) == "a"
        assert projects.acquire_lease(conn, 2, "b", 30, NOW + timedelta(days=365 * 100))
        projects.release_lease(conn, 2, "b")
        assert projects.keep_leases(conn, [1, 2], "a", 30) == {1}
        assert projects.hold_lease(conn, 1, "a")
        assert not projects.hold_lease(conn, 2, "a")
        assert not projects.hold_lease(conn, 1, "b")
        assert projects.keep_leases(conn, [], "a", 30) == set()


def test_nobody_takes_a_project_over_from_a_transaction_of_its_owner(migrated_postgres: str) -> None:
    """The owner found the project its own, then was stopped for longer than its lease, then goes on."""
    mine, other = Database(migrated_postgres), Database(migrated_postgres)
    try:
        with mine.begin() as conn:
            projects.save_connection(conn, 3)
            assert projects.acquire_lease(conn, 3, "a", 0.0)
        with mine.begin() as holding:
            assert projects.hold_lease(holding, 3, "a")
            with other.begin() as conn:
                assert not projects.acquire_lease(conn, 3, "b", 30)
                assert projects.keep_leases(conn, [3], "a", 30) == {3}
        with other.begin() as conn:
            assert projects.acquire_lease(conn, 3, "b", 30)
        with mine.begin() as conn:
            assert not projects.hold_lease(conn, 3, "a")
    finally:
        mine.dispose()
        other.dispose()


def test_a_stopped_process_does_not_keep_its_project(migrated_postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projects, "_HOLD_SECONDS", 1)
    mine, other = Database(migrated_postgres), Database(migrated_postgres)
    try:
        with mine.begin() as conn:
            projects.save_connection(conn, 4)
            assert projects.acquire_lease(conn, 4, "a", 0.0)

        def taken_by_another() -> bool:
            with other.begin() as conn:
                return projects.acquire_lease(conn, 4, "b", HANGS)

        def stopped() -> None:
            with mine.begin() as holding:
                assert projects.hold_lease(holding, 4, "a")
                until(taken_by_another)
                projects.update(holding, 4, title="too late")

        with pytest.raises(StoreError):
            stopped()
        with other.read() as conn:
            assert projects.lease_owner(conn, 4) == "b"
            assert projects.get(conn, 4) == Project(4)
    finally:
        mine.dispose()
        other.dispose()
