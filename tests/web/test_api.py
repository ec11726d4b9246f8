"""The API for people and programs."""

from __future__ import annotations

import gzip
import json
from datetime import datetime, timezone

import numpy as np
import pytest
from flask.testing import FlaskClient

from neat_backend import exports
from neat_backend.records import Annotation, Task
from neat_backend.service.service import Service
from neat_backend.store import insights, rounds, tasks
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.insights import UNLABELLED, Map, States
from tests.serving import begin_round, make_ready, setup_body, tasks_created, write_ranking


@pytest.fixture(autouse=True)
def connected(client: FlaskClient, service: Service) -> None:
    client.post("/setup", json=setup_body())
    make_ready(service.database, title="dogs")
    write_ranking(service.settings)


def test_projects_and_one_project_tell_the_same(client: FlaskClient) -> None:
    (listed,), single = client.get("/api/projects").json["projects"], client.get("/api/projects/7").json  # type: ignore[index]
    assert single is not None
    listed["queue"].pop("oldest_seconds")
    single["queue"].pop("oldest_seconds")
    assert listed == single
    assert single["title"] == "dogs"


def test_ranking_in_pages(client: FlaskClient) -> None:
    answer = client.get("/api/projects/7/ranking?limit=2&offset=1").json
    assert answer is not None
    assert [(row["task"], row["rank"]) for row in answer["ranking"]] == [(2, 1), (1, 2)]
    assert (answer["limit"], answer["offset"]) == (2, 1)
    rest = client.get("/api/projects/7/ranking").json
    assert rest is not None
    assert [row["task"] for row in rest["ranking"]] == [5, 2, 1, 3]


@pytest.mark.parametrize(
    "query",
    [
        *("limit=-1", "limit=ten", "limit=10001", "offset=1.5", "offset=%C2%B2", "limit=+1"),
        *(f"limit={'0' * zeros}{'9' * nines}" for zeros in (0, 12, 5000) for nines in (9, 5000)),
    ],
    ids=lambda query: query[:20],
)
def test_odd_pages_are_refused(client: FlaskClient, query: str) -> None:
    answer = client.get(f"/api/projects/7/ranking?{query}")
    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["field"] == query.partition("=")[0]


def test_rounds_with_precision_and_accuracy(client: FlaskClient, service: Service) -> None:
    with service.database.begin() as conn:
        begin_round(conn, known=40, invalid=10, unlabelled=50, queried=50, queried_known=40, classes=["dog"])
        rounds.finish(conn, 7, 1, seconds=3.5, held_out=4, held_out_correct=3)
    answer = client.get("/api/projects/7/rounds").json
    assert answer is not None
    (row,) = answer["rounds"]
    assert (row["number"], row["state"], row["precision"], row["held_out_accuracy"]) == (1, "done", 0.8, 0.75)
    assert row["classes"] == ["dog"]
    assert row["started_at"].endswith("+00:00")


@pytest.mark.parametrize("order", ["train", "sync", "retry-images"])
def test_orders_are_filed(client: FlaskClient, order: str) -> None:
    before = client.get("/api/projects/7").json
    answer = client.post(f"/api/projects/7/{order}")
    assert answer.status_code == 202
    after = client.get("/api/projects/7").json
    assert before is not None
    assert after is not None
    assert after["received_through"] == answer.json["event"] == before["received_through"] + 1  # type: ignore[index]


def test_failed_images(client: FlaskClient) -> None:
    empty = {"failed_images": [], "limit": 10_000, "offset": 0}
    assert client.get("/api/projects/7/failed-images").json == empty
    assert client.get("/api/projects/7/failed-images?limit=x").json["field"] == "limit"


def test_the_map_is_sent_once_and_its_marks_packed(client: FlaskClient, service: Service) -> None:
    for path in ("/api/projects/7/map", "/api/projects/7/map/marks"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert "no map yet" in answer.json["error"]
    arrays = ProjectArrays(service.settings.data_dir, 7)
    insights.write_map(arrays, Map(np.array([2, 5]), np.array([[1, 2], [3, 4]], np.uint16)))
    for path, made in (("map", service.map_places(7)), ("map/marks", service.map_marks(7))):
        answer = client.get(f"/api/projects/7/{path}")
        assert answer.data == made
        assert answer.mimetype == "application/octet-stream"
        assert answer.content_length == len(answer.data)
        again = {"If-None-Match": answer.headers["ETag"], "Accept-Encoding": "gzip"}
        assert client.get(f"/api/projects/7/{path}", headers=again).status_code == 304
    packed = client.get("/api/projects/7/map/marks", headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == service.map_marks(7)
    assert client.get("/api/projects/8/map").status_code == client.get("/api/projects/8/map/marks").status_code == 404


def test_images_are_found_and_chosen(client: FlaskClient, service: Service) -> None:
    arrays = ProjectArrays(service.settings.data_dir, 7)
    arrays.append("features/test", [2, 5], [2, 5], np.eye(2, dtype=np.float32))
    insights.write_states(arrays, States(np.array([2, 5]), np.array([0, UNLABELLED], np.int16), ("dog",)))
    one = {"task": 5, "similarity": 0.0, "label": None, "invalid": False}
    assert client.get("/api/projects/7/tasks/2/similar").json == {"task": 2, "found": [one]}
    assert client.get("/api/projects/7/tasks/9/similar").status_code == 404
    assert client.get("/api/projects/7/search?text=dog").json == {"text": "dog", "found": None, "problem": ""}
    assert client.get("/api/projects/7/search").status_code == 400
    reply = client.post("/api/projects/7/selection", json={"tasks": [5, 2]})
    assert reply.json == {"tasks": 2, "left_out": 0, "tab": None}
    for body in ([], {}, {"tasks": []}, {"tasks": [True]}, {"tasks": ["5"]}, {"tasks": [0]}, {"tasks": 5}):
        refused = client.post("/api/projects/7/selection", json=body)
        assert (refused.status_code, refused.json["field"]) == (400, "tasks")
    assert client.post("/api/projects/8/selection", json={"tasks": [5]}).status_code == 404


def test_the_insight_is_there_from_the_first_moment(client: FlaskClient, service: Service) -> None:
    answer = client.get("/api/projects/7/insight")
    assert answer.json == service.insight(7)
    assert (answer.json["verdict"], answer.json["gain"]) == ("too early to say", None)
    assert client.get("/api/projects/8/insight").status_code == 404


def test_an_explanation(client: FlaskClient, service: Service) -> None:
    client.post("/webhook", json=tasks_created(5))
    with service.database.begin() as conn:
        tasks.upsert_tasks(conn, 7, [Task(5, "/data/upload/5.png", datetime.now(timezone.utc))], 0)
    answer = client.get("/api/projects/7/tasks/5/explanation")
    assert answer.status_code == 200
    assert answer.json == service.explain(7, 5)
    assert (answer.json["state"], answer.json["rank"]) == ("pending", 0)


@pytest.mark.parametrize("task", ["99", "0", str(10**30)])
def test_the_explanation_of_an_unknown_task_is_404(client: FlaskClient, task: str) -> None:
    answer = client.get(f"/api/projects/7/tasks/{task}/explanation")
    assert (answer.status_code, answer.json["field"]) == (404, "task")  # type: ignore[index]


@pytest.mark.parametrize("path", ["/tasks/1/explanation", "", "/ranking", "/rounds", "/failed-images"])
def test_an_unknown_project_is_404(client: FlaskClient, path: str) -> None:
    answer = client.get(f"/api/projects/404{path}")
    assert answer.status_code == 404
    assert answer.json is not None
    assert set(answer.json) == {"error", "field"}


@pytest.mark.parametrize("order", ["train", "sync", "retry-images"])
def test_orders_for_an_unknown_project_are_404(client: FlaskClient, order: str) -> None:
    assert client.post(f"/api/projects/404/{order}").status_code == 404


def test_a_project_id_beyond_every_database_is_404(client: FlaskClient) -> None:
    assert client.get(f"/api/projects/{10**30}").status_code == 404


class TestExport:
    @pytest.fixture(autouse=True)
    def labelled(self, service: Service) -> None:
        when = datetime(2026, 11, 23, 7, tzinfo=timezone.utc)
        answers = [
            Annotation(100 + task, task, 1, {"class": (choice,)}, False, False, when)
            for task, choice in ((1, "dog"), (2, "invalid"), (3, "cat"))
        ]
        with service.database.begin() as conn:
            tasks.upsert_tasks(conn, 7, [Task(n, f"/data/upload/{n}.png", when) for n in (1, 2, 3)], 0)
            tasks.upsert_annotations(conn, 7, answers, 0, authoritative=True)

    def test_is_what_the_command_line_writes(self, client: FlaskClient, service: Service) -> None:
        for format in exports.TABLES:
            answer = client.get(f"/api/projects/7/export?format={format}")
            pieces = exports.stream(service.settings, service.database, 7, format, exports.Wanted())
            assert (answer.status_code, answer.data) == (200, b"".join(pieces))
            assert f"project-7-labels.{format}" in answer.headers["Content-Disposition"]

    @pytest.mark.parametrize(
        ("query", "labels"),
        [
            ("", ["dog", "cat"]),
            ("include_invalid=1", ["dog", "", "cat"]),
            ("since=2026-11-23T07:00:00Z", ["dog", "cat"]),
            ("since=2026-11-23T08:30:00%2B01:00", []),
            ("min_agreement=0.5", ["dog", "cat"]),
        ],
    )
    def test_takes_conditions(self, client: FlaskClient, query: str, labels: list[str]) -> None:
        answer = client.get(f"/api/projects/7/export?format=jsonl&{query}")
        assert [json.loads(line)["label"] for line in answer.text.splitlines()] == labels

    def test_is_made_as_it_is_sent(self, client: FlaskClient) -> None:
        assert client.get("/api/projects/7/export").headers.get("Content-Length") is None

    @pytest.mark.parametrize(
        "query",
        [
            "format=excel",
            "format=hf",
            "features=npy",
            "features=parquet",
            "include_invalid=yes",
            "since=yesterday",
            "round=4",
            "round=-1",
            "min_agreement=2",
            "min_agreement=nan",
            "min_agreement=much",
        ],
    )
    def test_refuses_what_cant_be_meant(self, client: FlaskClient, query: str) -> None:
        answer = client.get(f"/api/projects/7/export?{query}")
        assert (answer.status_code, answer.json["field"]) == (400, query.partition("=")[0])  # type: ignore[index]

    def test_a_folder_is_refused_with_the_command_that_makes_it(self, client: FlaskClient) -> None:
        answer = client.get("/api/projects/7/export?format=coco")
        assert "neat-backend export 7 --format coco --out" in answer.json["error"]  # type: ignore[index]

    def test_of_an_unknown_project_is_404(self, client: FlaskClient) -> None:
        assert client.get("/api/projects/404/export").status_code == 404
