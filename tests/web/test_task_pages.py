"""The dashboard's pages of tasks: one task, search, thumbnails."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import get_args

import numpy as np
import pytest
from flask.testing import FlaskClient

from neat_backend.records import Task
from neat_backend.settings import Settings
from neat_backend.store import insights, requests, tasks
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.web.openapi import responses
from neat_backend.web.pages import TASK_STATES
from tests.serving import NO_CHOICES, make_ready
from tests.web.pages import HTML, page


class TestTask:
    def one(self, database: Database, state: str = "", error: str = "") -> None:
        with database.begin() as conn:
            tasks.upsert_tasks(conn, 7, [Task(5, "/5.png", datetime.now(timezone.utc))], seen=0)
            if state:
                tasks.set_image_state(conn, 7, [5], state, error)

    def test_says_its_place_its_numbers_and_why(self, client: FlaskClient, database: Database, project: int) -> None:
        self.one(database)
        text = page(client, "/projects/7/tasks/5")
        assert "<b>Number 1</b> of 4" in text
        assert "0.9000" in text
        assert "its image is not encoded yet" in text
        assert "http://ls:8080/projects/7/data?task=5" in text
        assert "/api/projects/7/tasks/5/explanation" in text

    def test_a_failed_image_has_its_reason(self, client: FlaskClient, database: Database, project: int) -> None:
        self.one(database, "failed", "Label Studio answered 404")
        text = page(client, "/projects/7/tasks/5")
        assert "Label Studio answered 404" in text
        assert "neat-backend retry-images 7" in text

    def test_every_state_of_a_task_has_words(self) -> None:
        (state,) = [field.annotation for name, field in responses.Explanation.model_fields.items() if name == "state"]
        assert set(TASK_STATES) == set(get_args(state))

    def test_an_unknown_one_is_said_with_the_remedy(self, client: FlaskClient, project: int) -> None:
        answer = client.get("/projects/7/tasks/99", headers=HTML)
        assert answer.status_code == 404
        assert "neat-backend sync 7" in answer.text

    def test_a_label_config_that_can_not_be_used_is_said(
        self, client: FlaskClient, database: Database, project: int
    ) -> None:
        self.one(database)
        make_ready(database, label_config=NO_CHOICES)
        answer = client.get("/projects/7/tasks/5", headers=HTML)
        assert (answer.status_code, answer.mimetype) == (400, "text/html")
        assert "Choices" in answer.text

    def test_it_is_found_by_its_number(self, client: FlaskClient, project: int) -> None:
        assert client.get("/projects/7/tasks?task=5", headers=HTML).headers["Location"] == "/projects/7/tasks/5"

    @pytest.mark.parametrize("text", ["", "five", "0", "-3", "²"])
    def test_what_is_no_number_is_said(self, client: FlaskClient, project: int, text: str) -> None:
        answer = client.get("/projects/7/tasks", query_string={"task": text}, headers=HTML)
        assert answer.status_code == 400
        assert "give a task&#39;s number" in answer.text


class TestSearch:
    @pytest.fixture
    def features(self, settings: Settings, project: int) -> None:
        arrays = ProjectArrays(settings.data_dir, 7)
        arrays.append("features/test", [2, 3, 5], [2, 3, 5], np.array([[1, 0], [0, 1], [0.8, 0.6]], np.float32))
        codes = np.array([0, insights.INVALID, insights.UNLABELLED], np.int16)
        insights.write_states(arrays, insights.States(np.array([2, 3, 5]), codes, ("dog", "cat")))

    def test_it_asks_for_words_or_a_task(self, client: FlaskClient, project: int) -> None:
        text = page(client, "/projects/7/search")
        assert 'name="text"' in text
        assert 'name="task"' in text
        assert 'id="chosen"' not in text

    def test_images_like_a_tasks_with_labels_and_only_the_unlabelled_chosen(
        self, client: FlaskClient, features: None
    ) -> None:
        text = page(client, "/projects/7/search?task=2")
        assert text.index("task 5</label>") < text.index("task 3</label>")
        assert "similarity 0.800" in text
        assert 'value="5" checked' in text
        assert 'value="3"> task 3' in text
        assert "<b>invalid</b>" in text
        assert "http://ls:8080/projects/7/data" in text
        assert "/api/projects/7/selection" in text

    @pytest.mark.parametrize(("query", "status"), [("task=4", 404), ("task=x", 400), (f"text={'x' * 201}", 400)])
    def test_what_cant_be_searched_for(self, client: FlaskClient, features: None, query: str, status: int) -> None:
        assert client.get(f"/projects/7/search?{query}", headers=HTML).status_code == status

    def test_a_text_waits_for_the_worker_and_shows_its_answer_or_its_reason(
        self, client: FlaskClient, features: None, database: Database
    ) -> None:
        assert "The worker has not answered yet" in page(client, "/projects/7/search?text=a+dog")
        for answer, error, expected in (
            (None, "the encoder has no text side", "The encoder has no text side."),
            (np.array([0, 1], "<f4").tobytes(), "", "similarity 1.000"),
        ):
            with database.begin() as conn:
                request = requests.get(conn, 7, requests.TEXT, "features/test a dog")
                assert request is not None
                requests.answer(conn, 7, request, answer, error)
            assert expected in page(client, "/projects/7/search?text=a+dog")


class TestThumbnail:
    def test_is_the_picture_that_was_stored_last(self, client: FlaskClient, settings: Settings, project: int) -> None:
        import io

        from PIL import Image

        arrays = ProjectArrays(settings.data_dir, 7)
        kind = f"images/{settings.image_size}"
        pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
        arrays.append(kind, [3, 5], [-1, 2], pictures[:2])
        first = client.get("/api/projects/7/tasks/5/thumbnail")
        assert np.array_equal(np.array(Image.open(io.BytesIO(first.data))), pictures[1])
        again = {"If-None-Match": first.headers["ETag"]}
        assert client.get("/api/projects/7/tasks/5/thumbnail", headers=again).status_code == 304
        arrays.append(kind, [5], [3], pictures[2:])
        newer = client.get("/api/projects/7/tasks/5/thumbnail", headers=again)
        assert np.array_equal(np.array(Image.open(io.BytesIO(newer.data))), pictures[2])

    @pytest.mark.parametrize("task", [1, 4, 2**70])
    def test_none_is_404(self, client: FlaskClient, project: int, task: int) -> None:
        assert client.get(f"/api/projects/7/tasks/{task}/thumbnail").status_code == 404
