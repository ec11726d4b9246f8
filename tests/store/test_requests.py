"""Requests to the worker: answered once, kept for the next who asks, and no answer to another body."""

from __future__ import annotations

from datetime import timedelta

import pytest
import sqlalchemy as sa

from neat_backend.errors import UnknownProject
from neat_backend.store import projects, requests, schema
from neat_backend.store.database import Database
from neat_backend.store.requests import SELECTION, TEXT


def test_a_request_waits_until_it_is_answered_and_keeps_its_answer(db: Database) -> None:
    with db.begin() as conn:
        requests.ask(conn, 1, TEXT, "a dog", "a dog")
        (waiting,) = requests.waiting(conn, 1)
        assert (waiting.body, waiting.answer) == ("a dog", None)
        requests.answer(conn, 1, waiting, b"\x00\x01")
        assert requests.waiting(conn, 1) == []
        found = requests.get(conn, 1, TEXT, "a dog")
        assert found is not None
        assert found.answer == b"\x00\x01"
        assert requests.get(conn, 1, TEXT, "a cat") is None


def test_an_answer_to_what_was_asked_before_is_none_to_what_is_asked_now(db: Database) -> None:
    with db.begin() as conn:
        requests.ask(conn, 1, SELECTION, "", "[1]")
        (before,) = requests.waiting(conn, 1)
        requests.ask(conn, 1, SELECTION, "", "[2]")
        requests.answer(conn, 1, before, b"5")
        (waiting,) = requests.waiting(conn, 1)
        requests.answer(conn, 1, waiting, None, "no way")
        assert requests.waiting(conn, 1) == []
        found = requests.get(conn, 1, SELECTION, "")
        assert found is not None
        assert (found.body, found.error) == ("[2]", "no way")


def test_old_ones_are_forgotten_and_those_of_a_forgotten_project(db: Database) -> None:
    with db.begin() as conn:
        requests.ask(conn, 1, TEXT, "a dog")
        filed_at = conn.execute(sa.select(schema.requests.c.asked_at)).scalar_one()
        conn.execute(sa.update(schema.requests).values(asked_at=filed_at - requests.KEPT - timedelta(seconds=1)))
        requests.ask(conn, 1, TEXT, "a cat")
        assert [one.name for one in requests.waiting(conn, 1)] == ["a cat"]
        projects.delete(conn, 1)
        with pytest.raises(UnknownProject):
            requests.ask(conn, 1, TEXT, "a cat")
