"""The dashboard's pages: what they say of a project in each state, and that machines still get JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flask.testing import FlaskClient

from neat_backend.records import Task
from neat_backend.settings import Settings
from neat_backend.store import projects, rounds, tasks
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.web.pages import STATES, interval, seconds_in_words
from tests.serving import CONFIG, make_ready, write_ranking

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
        assert "http://ls:8080/projects/7/data?task=5" in text

    def test_progress_has_the_time_left(self, client: FlaskClient, database: Database, project: int) -> None:
        values = {"progress_done": 300, "progress_total": 1200, "progress_eta_seconds": 240.0}
        make_ready(database, state=projects.EMBEDDING, **values)
        assert "300 of 1,200, 4 min left" in page(client)

    def test_a_training_shows_its_epoch(
        self, client: FlaskClient, database: Database, settings: Settings, project: int
    ) -> None:
        with database.begin() as conn:
            rounds.start(
                conn, 7, trigger="batch", known=8, invalid=2, unlabelled=4, queried=10, queried_known=8,
                classes=("dog", "cat"),
            )  # fmt: skip
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
                conn, 7, trigger="batch", known=8, invalid=2, unlabelled=4, queried=10, queried_known=7,
                classes=("dog", "cat"),
            )  # fmt: skip
            rounds.finish(conn, 7, begun.number, seconds=1, held_out=10, held_out_correct=8)
        text = page(client)
        assert "70 %" in text
        assert "(49–94 %, 10 images)" in text

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

    def test_an_unknown_project_is_said(self, client: FlaskClient) -> None:
        assert client.get("/projects/8", headers=HTML).status_code == 404

    def test_an_address_that_is_no_link_is_none(self, client: FlaskClient, database: Database, project: int) -> None:
        make_ready(database, label_studio_url="javascript:alert(1)")
        assert "javascript:" not in page(client)


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


def test_wilsons_interval() -> None:
    found = interval(8, 10)
    assert found is not None
    assert found == pytest.approx((0.490, 0.943), abs=5e-4)
    assert interval(0, 0) is None
    assert interval(5, 5) == pytest.approx((0.566, 1.0), abs=1e-3)


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, ""), (0.2, "1 s left"), (240, "4 min left"), (7200, "2.0 h left")]
)
def test_time_left(seconds: float | None, words: str) -> None:
    assert seconds_in_words(seconds) == words
