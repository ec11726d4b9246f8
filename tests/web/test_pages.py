"""The dashboard's pages: what they say of a project in each state, and that machines still get JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from flask.testing import FlaskClient

from neat_backend.records import Task
from neat_backend.settings import Settings
from neat_backend.store import insights, prequential, projects, rounds, tasks
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.insights import BINS, Insight, Map, Mistake
from neat_backend.web.openapi import answers
from neat_backend.web.pages import STATES, TASK_STATES, VERDICTS, seconds_in_words
from tests.serving import CONFIG, NO_CHOICES, make_ready, write_ranking

HTML = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture
def project(database: Database, settings: Settings) -> int:
    with database.begin() as conn:
        projects.save_connection(conn, 7, title="<dogs>", label_config=CONFIG, label_studio_url="http://ls:8080")
    make_ready(database)
    write_ranking(settings)
    return 7


def page(client: FlaskClient, path: str = "/projects/7") -> str:
    answer = client.get(path, headers=HTML)
    assert answer.status_code == 200
    return answer.get_data(as_text=True)


class TestHome:
    @pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
    def test_machines_get_the_health_check(self, client: FlaskClient, accept: str) -> None:
        answer = client.get("/", headers={"Accept": accept})
        assert answer.get_json()["status"] == "UP"
        assert "Accept" in answer.headers["Vary"]

    def test_browsers_get_a_page(self, client: FlaskClient) -> None:
        assert "No project is connected yet" in page(client, "/")

    def test_it_lists_projects_escaped(self, client: FlaskClient, project: int) -> None:
        text = page(client, "/")
        assert "&lt;dogs&gt;" in text
        assert "<dogs>" not in text
        assert 'href="/projects/7"' in text


class TestProject:
    @pytest.mark.parametrize("state", STATES)
    def test_every_state_has_words(self, client: FlaskClient, database: Database, project: int, state: str) -> None:
        make_ready(database, state=state, detail="the token is wrong")
        text = page(client)
        assert STATES[state][0] in text
        assert "the token is wrong" in text

    def test_every_state_of_the_store_is_there(self) -> None:
        store = {getattr(projects, name) for name in vars(projects) if name.isupper() and not name.startswith("_")}
        assert set(STATES) == {value for value in store if isinstance(value, str)}

    def test_the_next_batch_is_in_the_order_of_the_ranking(self, client: FlaskClient, project: int) -> None:
        text = page(client)
        places = [text.index(f"/api/projects/7/tasks/{task}/thumbnail") for task in (5, 2, 1, 3)]
        assert places == sorted(places)
        assert 'href="/projects/7/tasks/5"' in text

    def test_progress_has_the_time_left(self, client: FlaskClient, database: Database, project: int) -> None:
        values = {"progress_done": 300, "progress_total": 1200, "progress_eta_seconds": 240.0}
        make_ready(database, state=projects.EMBEDDING, **values)
        assert "300 of 1,200, 4 min left" in page(client)

    def test_a_training_shows_its_epoch(
        self, client: FlaskClient, database: Database, settings: Settings, project: int
    ) -> None:
        with database.begin() as conn:
            rounds.start(
                conn,
                7,
                trigger="batch",
                known=8,
                invalid=2,
                unlabelled=4,
                queried=10,
                queried_known=8,
                classes=("dog", "cat"),
            )
        assert "Training round 1" in page(client)
        folder = ProjectArrays(settings.data_dir, 7).folder("training") / "000001"
        folder.mkdir()
        told = {"phase": "training", "epoch": 3, "epochs": 10, "eta_seconds": 42.0}
        (folder / "progress.json").write_text(json.dumps(told))
        assert "epoch 3 of 10, 42 s left" in page(client)

    def test_a_round_shows_precision_and_accuracy_with_its_interval(
        self, client: FlaskClient, database: Database, project: int
    ) -> None:
        with database.begin() as conn:
            begun = rounds.start(
                conn,
                7,
                trigger="batch",
                known=8,
                invalid=2,
                unlabelled=4,
                queried=10,
                queried_known=7,
                classes=("dog", "cat"),
            )
            rounds.finish(conn, 7, begun.number, seconds=1, held_out=10, held_out_correct=8)
        text = page(client)
        assert "70 %" in text
        assert "(49–94 %, 10 images)" in text
        assert "<polyline" in text
        assert "at random about" not in text, "there are too few labels to say"

    def test_what_is_left_and_the_likely_mistakes_are_told(
        self, client: FlaskClient, database: Database, settings: Settings, project: int
    ) -> None:
        assert "Nothing is labelled yet." in page(client)
        some = np.full(BINS, 3)
        insight = Insight(
            labelled=40,
            known=30,
            pool=60,
            left=12.0,
            left_low=6.0,
            left_high=20.0,
            in_head=7.0,
            head=10,
            candidates=some,
            others=some,
            k=5,
            mistakes=(Mistake(2, "dog", 0.8, None, 4, 1, 0.9),),
            more_mistakes=3,
        )
        insights.write_insight(ProjectArrays(settings.data_dir, 7), insight)
        with database.begin() as conn:
            rounds.start(
                conn,
                7,
                trigger="batch",
                known=30,
                invalid=10,
                unlabelled=60,
                queried=20,
                queried_known=16,
                classes=("dog", "cat"),
            )
        text = page(client)
        assert "1.8 times as many of your classes as at random" in text
        assert "likely 1.5 to 2.1 times" in text
        assert "About 12 (6 to 20) of the 60 unlabelled images are of your classes" in text
        assert "about 35 % <span" in text
        assert "(28–45 %)" in text
        assert 'href="http://ls:8080/projects/7/data?task=2"' in text
        assert "4 of 5 nearby: <b>invalid</b>" in text
        assert "and 3 more" in text

    def test_classes_are_told_with_labels_and_what_is_left(
        self, client: FlaskClient, settings: Settings, project: int
    ) -> None:
        assert "Nothing is encoded yet" in page(client)
        none, arrays = np.zeros(BINS, np.int64), ProjectArrays(settings.data_dir, 7)
        insight = Insight(
            labelled=40,
            known=30,
            pool=6000,
            left=1234.4,
            left_low=6.0,
            left_high=2000.0,
            in_head=7.0,
            head=10,
            candidates=none,
            others=none,
            k=5,
            mistakes=(),
            more_mistakes=0,
            classes=("<dog>", "cat", "owl"),
            class_labels=(28, 2, 0),
            class_left=(1204.4, 30.0, math.nan),
        )
        insights.write_insight(arrays, insight)
        text = page(client)
        assert "&lt;dog&gt;" in text
        assert "28 labelled, about 1,204 in the pool" in text
        assert "2 labelled, about 30 in the pool" in text
        assert text.count("<em>not seen yet</em>") == 1
        assert "Not seen yet: 1 of 3 classes" in text
        assert "is said from 20 labels" not in text
        insights.write_insight(arrays, replace(insight, class_left=(math.nan,) * 3))
        text = page(client)
        assert "28 labelled</span>" in text
        assert "is said from 20 labels" in text

    def test_the_classifier_in_force_is_told(self, client: FlaskClient, settings: Settings, project: int) -> None:
        assert "is in force" not in page(client)
        right = np.ones((25, 3), np.int8)
        arrays = ProjectArrays(settings.data_dir, 7)
        prequential.write(arrays, prequential.Prequential(right, "linear", "NEAT_CLASSIFIER=linear; …", 25))
        assert "The linear classifier is in force, as NEAT_CLASSIFIER=linear asks: right on 25 of the" in page(client)
        assert client.get("/api/projects/7").json["classifier"]["linear"] == {"right": 25, "of": 25}

    @pytest.mark.parametrize("name", ["prequential", "linear", "insight"])
    def test_files_of_another_version_break_no_page(
        self, client: FlaskClient, settings: Settings, database: Database, project: int, name: str
    ) -> None:
        ProjectArrays(settings.data_dir, 7).write_snapshot(name, {"is_there": np.array(True)})
        TestTask().one(database, "ready")
        for path in ("/", "/projects/7", "/projects/7/tasks/5"):
            assert page(client, path)

    def test_every_verdict_has_words(self) -> None:
        (verdict,) = [field.annotation for name, field in answers.Insight.model_fields.items() if name == "verdict"]
        assert set(VERDICTS) == set(get_args(verdict))

    def test_the_page_does_not_grow_with_the_pool(self, client: FlaskClient, settings: Settings, project: int) -> None:
        sizes = []
        for count in (1000, 20_000):
            ids = np.arange(1, count + 1)
            priority = np.linspace(0.9, 0.1, count)
            write_ranking(
                settings,
                head=ids[:100].tolist(),
                ids=ids,
                priority=priority,
                inconsistency=priority,
                known_neighbours=np.ones(count, np.int16),
                candidate=priority > 0.5,
                predicted=(ids % 2).astype(np.int16),
            )
            insights.write_map(ProjectArrays(settings.data_dir, 7), Map(ids, np.zeros((count, 2), np.uint16)))
            sizes.append(len(page(client)))
        assert abs(sizes[1] - sizes[0]) < 100

    def test_failed_images_with_reason_and_a_button(
        self, client: FlaskClient, database: Database, project: int
    ) -> None:
        from datetime import datetime, timezone

        assert "Try them again" not in page(client)
        with database.begin() as conn:
            tasks.upsert_tasks(conn, 7, [Task(9, "/x.png", datetime.now(timezone.utc))], seen=0)
            tasks.set_image_state(conn, 7, [9], "failed", "Label Studio answered 404 <b>")
        text = page(client)
        assert "Label Studio answered 404 &lt;b&gt;" in text
        assert 'data-post="/api/projects/7/retry-images"' in text

    def test_nothing_new_is_not_sent_again(self, client: FlaskClient, database: Database, project: int) -> None:
        first = client.get("/projects/7", headers=HTML)
        again = {**HTML, "If-None-Match": first.headers["ETag"]}
        assert client.get("/projects/7", headers=again).status_code == 304
        make_ready(database, state=projects.AWAY)
        assert client.get("/projects/7", headers=again).status_code == 200

    def test_an_unknown_project_is_said_to_people_and_to_programs(self, client: FlaskClient) -> None:
        answer = client.get("/projects/8", headers=HTML)
        assert (answer.status_code, answer.mimetype) == (404, "text/html")
        assert "Project 8 is not connected to this backend" in answer.text
        assert client.get("/projects/8").json["field"] == "project"

    def test_only_the_first_of_many_failed_images_are_read(
        self, client: FlaskClient, database: Database, project: int
    ) -> None:
        from datetime import datetime, timezone

        with database.begin() as conn:
            moment = datetime.now(timezone.utc)
            tasks.upsert_tasks(conn, 7, [Task(task, "/x.png", moment) for task in range(1, 81)], seen=0)
            tasks.set_image_state(conn, 7, range(1, 81), "failed", "Label Studio answered 404")
        text = page(client)
        assert "and 30 more" in text
        assert text.count("Label Studio answered 404") == 50
        found = client.get("/api/projects/7/failed-images?limit=2&offset=78").json["failed_images"]
        assert [one["task"] for one in found] == [79, 80]

    def test_an_empty_project_is_told_what_to_do(self, client: FlaskClient, database: Database) -> None:
        with database.begin() as conn:
            projects.save_connection(conn, 7, title="none", label_config=CONFIG)
        make_ready(database)
        assert "The project has no tasks yet" in page(client)

    def test_an_address_that_is_no_link_is_none(self, client: FlaskClient, database: Database, project: int) -> None:
        make_ready(database, label_studio_url="javascript:alert(1)")
        assert "javascript:" not in page(client)


class TestTask:
    def one(self, database: Database, state: str = "", error: str = "") -> None:
        from datetime import datetime, timezone

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
        (state,) = [field.annotation for name, field in answers.Explanation.model_fields.items() if name == "state"]
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


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, ""), (0.2, "1 s left"), (240, "4 min left"), (7200, "2.0 h left")]
)
def test_time_left(seconds: float | None, words: str) -> None:
    assert seconds_in_words(seconds) == words
