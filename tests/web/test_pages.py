"""The dashboard's pages of a project."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import get_args

import numpy as np
import pytest
from flask.testing import FlaskClient

from neat_backend.records import Annotation, Task
from neat_backend.settings import Settings
from neat_backend.store import insights, people, prequential, projects, rounds, tasks
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.insights import BINS, Insight, Map, Mistake
from neat_backend.web.openapi import responses
from neat_backend.web.pages import VERDICTS
from neat_backend.web.shown import STATES, TABS, seconds_in_words
from tests.serving import CONFIG, begin_round, make_ready, write_ranking
from tests.web.pages import HTML, PATHS, page
from tests.web.test_task_pages import TestTask


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


class TestTabs:
    @pytest.mark.parametrize(("name", "words"), TABS)
    def test_each_page_leads_to_all_and_says_where_one_is(
        self, client: FlaskClient, database: Database, project: int, name: str, words: str
    ) -> None:
        make_ready(database, state=projects.BLOCKED, detail="the token is wrong")
        text = page(client, PATHS[name])
        for path in PATHS.values():
            assert f'<a href="{path}"' in text
        assert f'<a href="{PATHS[name]}" aria-current="page">{words}</a>' in text
        assert text.count("aria-current") == 1
        assert "the token is wrong" in text, "a project that needs somebody says so on every page"

    @pytest.mark.parametrize("path", PATHS.values())
    def test_no_page_is_there_for_an_unknown_project(self, client: FlaskClient, path: str) -> None:
        assert client.get(path.replace("7", "8"), headers=HTML).status_code == 404


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
            begin_round(
                conn,
            )
        assert "Training round 1" in page(client)
        folder = ProjectArrays(settings.data_dir, 7).folder("training") / "000001"
        folder.mkdir()
        training_progress = {"phase": "training", "epoch": 3, "epochs": 10, "eta_seconds": 42.0}
        (folder / "progress.json").write_text(json.dumps(training_progress))
        assert "epoch 3 of 10, 42 s left" in page(client)

    def test_a_round_shows_precision_and_accuracy_with_its_interval(
        self, client: FlaskClient, database: Database, project: int
    ) -> None:
        with database.begin() as conn:
            begun = begin_round(
                conn,
                queried_known=7,
            )
            rounds.finish(conn, 7, begun.number, seconds=1, held_out=10, held_out_correct=8)
        text = page(client, "/projects/7/system")
        assert "70 %" in text
        assert "(49–94 %, 10 images)" in text
        assert "<polyline" in page(client, "/projects/7/quality")
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
            begin_round(conn, known=30, invalid=10, unlabelled=60, queried=20, queried_known=16)
        text = page(client)
        assert "1.8 times as many of your classes as at random" in text
        assert "likely 1.5 to 2.1 times" in text
        assert "About 12 (6 to 20) of the 60 unlabelled images are of your classes" in text
        text = page(client, "/projects/7/system")
        assert "about 35 % <span" in text
        assert "(28–45 %)" in text
        text = page(client, "/projects/7/quality")
        assert 'href="http://ls:8080/projects/7/data?task=2"' in text
        assert "4 of 5 nearby: <b>invalid</b>" in text
        assert "and 3 more" in text

    def test_classes_are_told_with_labels_and_what_is_left(
        self, client: FlaskClient, settings: Settings, project: int
    ) -> None:
        path = "/projects/7/classes"
        assert "Nothing is encoded yet" in page(client, path)
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
        text = page(client, path)
        assert "&lt;dog&gt;" in text
        assert "28 labelled, about 1,204 in the pool" in text
        assert "2 labelled, about 30 in the pool" in text
        assert text.count("<em>not seen yet</em>") == 1
        assert "Not seen yet: 1 of 3 classes" in text
        assert "it takes 20 labels of your classes" not in text
        insights.write_insight(arrays, replace(insight, class_left=(math.nan,) * 3))
        text = page(client, path)
        assert "28 labelled</span>" in text
        assert "it takes 20 labels of your classes" in text

    def test_the_classifier_in_force_is_told(self, client: FlaskClient, settings: Settings, project: int) -> None:
        path = "/projects/7/quality"
        assert "is in force" not in page(client, path)
        right = np.ones((25, 3), np.int8)
        arrays = ProjectArrays(settings.data_dir, 7)
        prequential.write(arrays, prequential.Prequential(right, "linear", "NEAT_CLASSIFIER=linear; …", 25))
        assert "The linear classifier is in force, as NEAT_CLASSIFIER=linear asks: right on 25 of the" in page(
            client, path
        )
        assert client.get("/api/projects/7").json["classifier"]["linear"] == {"right": 25, "of": 25}

    @pytest.mark.parametrize("name", ["prequential", "linear", "insight"])
    def test_files_of_another_version_break_no_page(
        self, client: FlaskClient, settings: Settings, database: Database, project: int, name: str
    ) -> None:
        ProjectArrays(settings.data_dir, 7).write_snapshot(name, {"is_there": np.array(True)})
        TestTask().one(database, "ready")
        for path in ("/", "/projects/7/tasks/5", *PATHS.values()):
            assert page(client, path)

    def test_every_verdict_has_words(self) -> None:
        (verdict,) = [field.annotation for name, field in responses.Insight.model_fields.items() if name == "verdict"]
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
            sizes.append([len(page(client, path)) for path in PATHS.values()])
        assert np.abs(np.diff(sizes, axis=0)).max() < 100

    def test_failed_images_with_reason_and_a_button(
        self, client: FlaskClient, database: Database, project: int
    ) -> None:
        assert "Try them again" not in page(client, "/projects/7/system")
        with database.begin() as conn:
            tasks.upsert_tasks(conn, 7, [Task(9, "/x.png", datetime.now(timezone.utc))], seen=0)
            tasks.set_image_state(conn, 7, [9], "failed", "Label Studio answered 404 <b>")
        text = page(client, "/projects/7/system")
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
        with database.begin() as conn:
            moment = datetime.now(timezone.utc)
            tasks.upsert_tasks(conn, 7, [Task(task, "/x.png", moment) for task in range(1, 81)], seen=0)
            tasks.set_image_state(conn, 7, range(1, 81), "failed", "Label Studio answered 404")
        text = page(client, "/projects/7/system")
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


class TestOverview:
    INSIGHT = Insight(
        120, 60, 200, 40.0, 20.0, 60.0, 8.0, 10, np.ones(BINS, int), np.ones(BINS, int), 5, (), 0, random_share=0.05
    )

    def label(self, database: Database, count: int = 21) -> None:
        moment = datetime(2026, 11, 29, 12, tzinfo=timezone.utc)
        found = [
            Annotation(n + 1, n + 1, 4, {"class": ("dog",)}, False, False, moment + timedelta(seconds=36 * n))
            for n in range(count)
        ]
        with database.begin() as conn:
            tasks.upsert_annotations(conn, 7, found, seen=1)

    def test_it_tells_what_is_left_to_the_target(
        self, client: FlaskClient, database: Database, settings: Settings, project: int
    ) -> None:
        text = page(client)
        assert "No estimate yet." in text
        self.label(database)
        insights.write_insight(ProjectArrays(settings.data_dir, 7), self.INSIGHT)
        assert client.post("/api/projects/7/target", json={"found": 0.9}).json == {"found": 0.9}
        with database.begin() as conn:
            projects.update(conn, 7, applied_event=1)
        text = page(client)
        assert 'value="90"' in text
        assert "About 60 (20 to 160) more labels." in text
        assert "Work for one person: about 36 minutes (12 to 96), at 100 labels an hour." in text
        assert "At 21 labels a day, as lately: about 2.9 (1 to 7.6) days." in text
        assert "Labels a day: 21 on 2026-11-29." in text

    @pytest.mark.parametrize("body", [{}, {"found": "0.9"}, {"found": 3}, []])
    def test_a_target_that_is_none_is_refused(self, client: FlaskClient, project: int, body: object) -> None:
        answer = client.post("/api/projects/7/target", json=body)
        assert (answer.status_code, answer.json["field"]) == (400, "found")

    def test_another_sites_page_sets_no_target(self, client: FlaskClient, project: int) -> None:
        other = {"Sec-Fetch-Site": "cross-site"}
        assert client.post("/api/projects/7/target", json={"found": 0.9}, headers=other).status_code == 403

    def test_accuracy_is_that_on_random_draws(self, client: FlaskClient, settings: Settings, project: int) -> None:
        assert "No figure yet" in page(client)
        few = replace(self.INSIGHT, draws=40, draws_tested=4, draws_right=4)
        insights.write_insight(ProjectArrays(settings.data_dir, 7), few)
        assert "It takes 5 images of your classes that were drawn at random." in page(client)
        insights.write_insight(
            ProjectArrays(settings.data_dir, 7), replace(few, draws=200, draws_tested=100, draws_right=84)
        )
        text = page(client)
        assert "84 % right" in text
        assert "on 84 of 100 images of your classes that were drawn at random" in text
        assert "likely 76 to 90 %" in text

    @pytest.mark.parametrize("path", [PATHS["project"], PATHS["classes"]])
    def test_why_there_is_no_estimate_is_said(
        self, client: FlaskClient, settings: Settings, project: int, path: str
    ) -> None:
        none = replace(self.INSIGHT, left=math.nan, class_left=(math.nan,), class_labels=(60,), classes=("dog",))
        arrays = ProjectArrays(settings.data_dir, 7)
        insights.write_insight(arrays, replace(none, draws=3))
        text = page(client, path)
        assert "it takes 5 labels of images that were drawn at random, as one in 20 is; there are 3." in text
        assert "±" not in text
        assert "(20 to 60)" not in text
        insights.write_insight(arrays, replace(none, random_share=0.0))
        assert "Set NEAT_RANDOM_SHARE (0.05 = one in 20) to get estimates." in page(client, path)

    @pytest.mark.parametrize("path", PATHS.values())
    def test_no_page_speaks_in_the_codes_own_words(self, client: FlaskClient, project: int, path: str) -> None:
        for word in ("Read again", "revision", "doings", "webhook"):
            assert word not in page(client, path)


class TestPeople:
    def test_each_annotator_has_a_row(
        self, client: FlaskClient, database: Database, settings: Settings, project: int
    ) -> None:
        assert "Nobody has labelled anything yet." in page(client, PATHS["people"])
        TestOverview().label(database)
        with database.begin() as conn:
            projects.update(conn, 7, applied_event=1)
        people.write(ProjectArrays(settings.data_dir, 7), {4: people.Person("<Ada>", 20, 15)})
        text = page(client, PATHS["people"])
        assert "&lt;Ada&gt;</th><td>21</td><td>0</td>" in text
        assert "<td>100</td>" in text
        assert "75 % <span" in text
        (row,) = client.get("/api/projects/7/people").json["people"]
        assert (row["annotator"], row["labels"], row["vote"]) == (4, 21, {"same": 15, "of": 20})


class TestExport:
    def test_labels_are_downloaded_and_commands_told(
        self, client: FlaskClient, database: Database, project: int
    ) -> None:
        text = page(client, PATHS["export"])
        assert 'href="/api/projects/7/export"' in text
        assert "neat-backend export 7 --out labels.csv" in text
        with database.begin() as conn:
            tasks.upsert_tasks(conn, 7, [Task(1, "/x.png", datetime.now(timezone.utc))], seen=0)
        TestOverview().label(database, 1)
        assert "1,/x.png,dog" in client.get("/api/projects/7/export").text


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, ""), (0.2, "1 s left"), (240, "4 min left"), (7200, "2.0 h left")]
)
def test_time_left(seconds: float | None, words: str) -> None:
    assert seconds_in_words(seconds) == words
