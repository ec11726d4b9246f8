"""Images found by another image or a text, and chosen ones on their way to Label Studio."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neat_backend.errors import BadRequest, StoreError, UnknownTask
from neat_backend.models.grid import to_grid
from neat_backend.service.search import LONGEST_TEXT, MOST_SELECTED, Search
from neat_backend.service.service import Service
from neat_backend.settings import Settings
from neat_backend.store import insights, projects, requests
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.insights import INVALID, UNLABELLED, States
from tests.serving import make_database, make_settings
from tests.waiting import until

ANGLES = {1: 0, 2: 60, 3: 90, 5: 10}  # task → degrees


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = make_database(settings)
    with database.begin() as conn:
        projects.save_connection(conn, 7)
    arrays = ProjectArrays(settings.data_dir, 7)
    turned = np.deg2rad([*ANGLES.values(), 20])
    ids = np.array([*ANGLES, 9])  # 9 was deleted: its features are still there
    arrays.append("features/test", ids, ids, to_grid(np.stack([np.cos(turned), np.sin(turned)], axis=1)))
    codes = np.array([0, UNLABELLED, INVALID, UNLABELLED], np.int16)
    insights.write_states(arrays, States(ids[:-1], codes, ("dog",)))
    yield database
    database.dispose()


@pytest.fixture
def search(settings: Settings, database: Database) -> Search:
    return Search(Service(settings, database))


def answer(database: Database, answer: bytes | None, error: str = "") -> Any:
    """Answer the request as the worker does; returns the request."""

    def waiting() -> Any:
        with database.read() as conn:
            return next(iter(requests.waiting(conn, 7)), None)

    until(lambda: waiting() is not None)
    request = waiting()
    with database.begin() as conn:
        requests.answer(conn, 7, request, answer, error)
    return request


def test_the_nearest_come_first_with_their_labels_and_without_the_image_itself(search: Search) -> None:
    found = search.like(7, 1, 2)["found"]
    assert [one["task"] for one in found] == [5, 2]
    assert [one["similarity"] for one in found] == pytest.approx([0.98481, 0.5], abs=1e-4)
    assert [(one["label"], one["invalid"]) for one in search.like(7, 2, 9)["found"]] == [
        (None, True),
        (None, False),
        ("dog", False),
    ]
    for task in (4, 0, 2**63):
        with pytest.raises(UnknownTask, match="features"):
            search.like(7, task, 2)


def test_a_text_is_asked_of_the_worker_once(search: Search, database: Database) -> None:
    patient = Search(Service(search._service.settings.model_copy(update={"predict_wait_seconds": 60}), database))
    with ThreadPoolExecutor(1) as asking:
        reply = asking.submit(patient.text, 7, "  a  dog ", 1)
        request = answer(database, np.array([0, 1], "<f4").tobytes())
    assert request.body == "a dog"
    assert [one["task"] for one in reply.result()["found"]] == [3]
    assert search.text(7, "a dog", 2)["found"][0]["task"] == 3


def test_without_an_answer_in_time_the_caller_is_told_and_may_ask_again(search: Search, database: Database) -> None:
    assert search.text(7, "a dog", 1) == {"text": "a dog", "found": None, "problem": ""}
    answer(database, None, "the encoder has no text side")
    assert search.text(7, "a dog", 1) == {"text": "a dog", "found": None, "problem": "the encoder has no text side"}
    for text in ("", "  ", "x" * (LONGEST_TEXT + 1)):
        with pytest.raises(BadRequest, match="characters"):
            search.text(7, text, 1)


def test_a_selection_becomes_a_tab_and_a_long_one_is_cut(search: Search, database: Database) -> None:
    assert search.select(7, [5, 2, 5]) == {"tasks": 2, "left_out": 0, "tab": None}
    assert answer(database, b"12").body == "[5, 2]"
    reply = search.select(7, range(1, MOST_SELECTED + 4))
    assert (reply["tasks"], reply["left_out"]) == (MOST_SELECTED, 3)
    answer(database, b"12")
    with pytest.raises(BadRequest, match="empty"):
        search.select(7, [])


def test_why_a_tab_could_not_be_made_is_told(search: Search, database: Database) -> None:
    patient = Search(Service(search._service.settings.model_copy(update={"predict_wait_seconds": 60}), database))
    with ThreadPoolExecutor(1) as asking:
        reply = asking.submit(patient.select, 7, [1])
        answer(database, None, "Label Studio does not answer")
    with pytest.raises(StoreError, match="does not answer"):
        reply.result()
