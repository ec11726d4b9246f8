from __future__ import annotations

import pytest

from neat_backend.errors import StoreError, UnknownProject
from neat_backend.store import projects, revisions
from neat_backend.store.database import Database


def test_one_revision_is_on_and_the_former_ones_wait_to_be_deleted(db: Database) -> None:
    with db.begin() as conn:
        first = revisions.begin(conn, 1)
        assert first == "neat-r000001"
        revisions.switched(conn, 1, first)
        assert revisions.to_delete(conn, 1) == []
        second, third = revisions.begin(conn, 1), revisions.begin(conn, 1)
        assert revisions.importing(conn, 1) == [second, third]
        revisions.abandon(conn, 1, second)
        revisions.switched(conn, 1, third)
        project = projects.get(conn, 1)
        assert project is not None
        assert (project.revision, project.model_version) == (3, "neat-r000003")
        assert revisions.to_delete(conn, 1) == [first, second]
        revisions.deleted(conn, 1, first)
        assert revisions.to_delete(conn, 1) == [second]
        assert revisions.begin(conn, 1) == "neat-r000004"
        assert revisions.begin(conn, 2) == "neat-r000001"


def test_transitions_from_the_wrong_state_are_refused(db: Database) -> None:
    with db.begin() as conn:
        on = revisions.begin(conn, 1)
        revisions.switched(conn, 1, on)
        for transition in (revisions.switched, revisions.abandon, revisions.deleted):
            with pytest.raises(StoreError):
                transition(conn, 1, on)
            with pytest.raises(StoreError, match="not there"):
                transition(conn, 1, "neat-r000099")
        with pytest.raises(UnknownProject):
            revisions.begin(conn, 99)
    with db.read() as conn:
        assert revisions.to_delete(conn, 1) == []


def test_a_refused_switch_leaves_the_one_that_is_on(db: Database) -> None:
    with db.begin() as conn:
        on = revisions.begin(conn, 1)
        revisions.switched(conn, 1, on)
        with pytest.raises(StoreError):
            revisions.switched(conn, 1, "neat-r000099")
        assert revisions.to_delete(conn, 1) == []
