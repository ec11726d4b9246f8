"""What Label Studio and people can ask of the backend, over a real SQLite database."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from neat_backend.errors import BadLabelConfig, BadRequest, UnknownProject
from neat_backend.labelstudio.events import parse_predict, parse_setup, parse_webhook
from neat_backend.records import COMPARE, RETRY_IMAGES, SYNC, TRAIN, Event, Task
from neat_backend.service import service as service_module
from neat_backend.service.service import Service
from neat_backend.store import database, inbox, projects, tasks
from neat_backend.store.arrays import ProjectArrays
from tests.conftest import Clock
from tests.serving import (
    CONFIG,
    NO_CHOICES,
    annotation_created,
    make_database,
    make_ready,
    make_settings,
    predict_body,
    project_body,
    setup_body,
    tasks_created,
    write_ranking,
)
from tests.waiting import until

URL = "http://neat-backend:9090"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    settings = make_settings(tmp_path)
    database = make_database(settings)
    yield Service(settings, database)
    database.dispose()


def events(service: Service, project: int = 7) -> list[Event]:
    with service.database.read() as conn:
        return inbox.pending(conn, project)


def actions(service: Service, project: int = 7) -> list[str]:
    return [event.action for event in events(service, project)]


def apply_all(service: Service, project: int = 7) -> None:
    """As the worker would have: nothing is queued any more."""
    with service.database.begin() as conn:
        inbox.mark_applied(conn, [event.id for event in inbox.pending(conn, project)])


def add_tasks(service: Service, *ids: int, project: int = 7) -> None:
    moment = datetime(2026, 11, 23, tzinfo=timezone.utc)
    with service.database.begin() as conn:
        tasks.upsert_tasks(conn, project, [Task(id, f"/data/upload/{id}.png", moment) for id in ids], seen=0)


def connect(service: Service, **fields: object) -> str:
    return service.connect(parse_setup(setup_body(**fields)), URL)  # type: ignore[arg-type]


def predict(service: Service, *ids: int | None) -> list[dict[str, object]]:
    return service.predict(parse_predict(predict_body(*ids)))


class TestConnect:
    def test_saves_the_connection_and_asks_for_one_reading(self, service: Service) -> None:
        assert connect(service) == "neat"
        assert connect(service) == "neat"  # Label Studio asks twice

        with service.database.read() as conn:
            project = projects.get(conn, 7)
        assert project is not None
        assert (project.state, project.label_config, project.backend_url) == (projects.CONNECTING, CONFIG, URL)
        assert project.label_studio_url == "http://localhost:8080"
        assert project.access_token.startswith("0123456789")
        assert actions(service) == [SYNC]

    def test_answers_with_the_switched_on_version(self, service: Service) -> None:
        connect(service)
        make_ready(service.database)
        assert connect(service) == "neat-r000003"

    def test_looking_at_the_data_manager_asks_for_what_has_changed_and_no_more(self, service: Service) -> None:
        connect(service)
        apply_all(service)
        make_ready(service.database, synced_at=datetime.now(timezone.utc) - timedelta(hours=1))
        connect(service)
        connect(service)  # while the first question waits
        assert actions(service) == [COMPARE]

    @pytest.mark.parametrize(
        "changed",
        [{"schema": CONFIG.replace("cat", "fox")}, {"extra_params": {"k": 5}}, {"hostname": "http://other"}],
    )
    def test_a_changed_connection_is_read_again(self, service: Service, changed: dict[str, object]) -> None:
        connect(service)
        apply_all(service)
        make_ready(service.database)
        connect(service, **changed)
        assert actions(service) == [SYNC]
        assert service.status(7)["state"] == projects.READY  # labelling goes on meanwhile

    def test_a_disconnected_project_is_read_when_it_is_connected_again(self, service: Service) -> None:
        connect(service)
        apply_all(service)
        make_ready(service.database, state=projects.DISCONNECTED)
        connect(service)
        assert actions(service) == [SYNC]
        assert service.status(7)["state"] == projects.CONNECTING

    def test_a_bad_label_config_blocks_the_project_and_says_why(self, service: Service) -> None:
        with pytest.raises(BadLabelConfig, match="Choices") as error:
            connect(service, schema=NO_CHOICES)
        assert error.value.field == "schema"
        status = service.status(7)
        assert status["state"] == projects.BLOCKED
        assert "Choices" in status["detail"]
        assert actions(service) == []

    def test_a_blocked_project_takes_webhooks_and_a_repaired_config(self, service: Service) -> None:
        with pytest.raises(BadLabelConfig):
            connect(service, schema=NO_CHOICES)
        event = service.accept(parse_webhook({"action": "PROJECT_UPDATED", "project": project_body()}))
        assert [each.id for each in events(service)] == [event]
        connect(service)
        assert service.status(7)["state"] == projects.CONNECTING
        assert actions(service) == ["PROJECT_UPDATED", SYNC]

    @pytest.mark.parametrize("params", [{"k": 0}, {"colour": "red"}, {"NEAT_BATCH_SIZE": "many"}])
    def test_bad_extra_params_are_refused_and_change_nothing(self, service: Service, params: dict[str, object]) -> None:
        with pytest.raises(BadRequest) as error:
            connect(service, extra_params=params)
        assert error.value.field == "extra_params"
        assert service.projects() == []

    def test_extra_params_choose_the_control(self, service: Service) -> None:
        two = CONFIG.replace("</View>", '<Choices name="mood" toName="image"><Choice value="calm"/></Choices></View>')
        with pytest.raises(BadLabelConfig, match="nose"):
            connect(service, schema=two, extra_params={"control": "nose"})
        connect(service, schema=two, extra_params={"control": "mood"})
        assert service.status(7)["state"] == projects.CONNECTING

    def test_beside_a_busy_writer_it_waits_for_its_turn_and_never_for_sqlites_next_try(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """SQLite would try again every 100 ms, and mostly find the writer at its next transaction."""
        open_sqlite = database._open_sqlite
        monkeypatch.setattr(database, "_open_sqlite", lambda conn, _: open_sqlite(conn, 0))  # out of turn it fails
        settings = make_settings(tmp_path)
        service = Service(settings, make_database(settings))
        connect(service)
        stop, written = threading.Event(), []

        def write() -> None:
            while not stop.is_set():
                with service.database.begin() as conn:
                    inbox.append(conn, 8, "TASKS_CREATED", tasks_created(*range(1, 200), project=8))
                written.append(True)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(5):
                until(lambda number=number: len(written) > number)  # type: ignore[misc]
                connect(service, extra_params={"k": number + 1})
        finally:
            stop.set()
            writer.join()
        service.database.dispose()


class TestAccept:
    def test_files_the_event_with_its_payload(self, service: Service) -> None:
        connect(service)
        number = service.accept(parse_webhook(annotation_created(3)))
        event = events(service)[-1]
        assert (event.id, event.project, event.action) == (number, 7, "ANNOTATION_CREATED")
        assert event.payload["annotation"]["result"][0]["value"]["choices"] == ["dog"]

    @pytest.mark.parametrize("body", [tasks_created(1, 2), {"action": TRAIN, "project": project_body()}])
    def test_what_comes_for_a_project_that_is_not_known_is_kept_for_the_worker_to_ask(
        self, service: Service, body: dict[str, object]
    ) -> None:
        service.accept(parse_webhook(body), URL)
        (event,) = events(service)
        assert (event.action, event.payload["backend_url"]) == (body["action"], URL)
        assert service.projects() == []

    def test_an_action_of_no_use_is_ignored(self, service: Service) -> None:
        assert service.accept(parse_webhook({"action": "LABEL_LINK_CREATED", "label_link": {}})) == 0
        assert service.projects() == []

    def test_events_from_many_threads_all_get_in(self, service: Service) -> None:
        connect(service)
        threads = [
            threading.Thread(target=lambda task=task: service.accept(parse_webhook(annotation_created(task))))
            for task in range(1, 41)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(actions(service)) == 41


class TestPredict:
    @pytest.fixture(autouse=True)
    def ready(self, service: Service) -> None:
        connect(service)
        apply_all(service)
        make_ready(service.database)
        add_tasks(service, 1, 2, 3, 4, 5)
        write_ranking(service.settings)

    @pytest.fixture(autouse=True)
    def patience(self, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        by_the_clock = SimpleNamespace(monotonic=clock, sleep=lambda seconds: clock.sleep(seconds))
        monkeypatch.setattr(service_module, "time", by_the_clock)

    def test_one_answer_per_task_in_order(self, service: Service) -> None:
        answers = predict(service, 5, 1, 2)
        # Uncertainty sampling serves the lowest score first.
        assert [answer["score"] for answer in answers] == pytest.approx([0.1, 0.8, 0.25])
        assert {answer["model_version"] for answer in answers} == {"neat-r000003"}

    def test_the_class_is_told_for_candidates_alone(self, service: Service) -> None:
        dog, other, cat = predict(service, 5, 1, 2)
        choice = {"from_name": "class", "to_name": "image", "type": "choices"}
        assert dog["result"] == [{**choice, "value": {"choices": ["dog"]}}]
        assert cat["result"] == [{**choice, "value": {"choices": ["cat"]}}]
        assert other["result"] == []

    def test_nothing_is_filled_in_by_default_until_classifier_and_neighbours_have_proved_right(
        self, service: Service
    ) -> None:
        service.settings = service.settings.for_project({"prefill": "agree"})
        assert [answer["result"] for answer in predict(service, 5, 1, 2)] == [[], [], []]

    def test_a_class_that_the_label_config_lost_is_not_told(self, service: Service) -> None:
        body = predict_body(2)
        body["label_config"] = CONFIG.replace("cat", "fox")
        assert service.predict(parse_predict(body))[0]["result"] == []

    def test_other_samplings_get_the_priority_itself(self, service: Service) -> None:
        make_ready(service.database, sampling="Sequential sampling")
        assert [answer["score"] for answer in predict(service, 5, 1)] == pytest.approx([0.9, 0.2])

    def test_scores_stay_inside_the_unit_interval(self, service: Service) -> None:
        write_ranking(service.settings, priority=np.array([-1e-7, 1.0000001, 0.5, 1.0], np.float32))
        assert all(0 <= float(str(answer["score"])) <= 1 for answer in predict(service, 1, 2, 3, 5))

    @pytest.mark.parametrize(("sampling", "last"), [("Uncertainty sampling", 1.0), ("Sequential sampling", 0.0)])
    def test_an_unknown_task_is_filed_waited_for_and_put_last(
        self, service: Service, clock: Clock, sampling: str, last: float
    ) -> None:
        make_ready(service.database, sampling=sampling)
        known, unknown = predict(service, 5, 99)
        assert clock.now == pytest.approx(service.settings.predict_wait_seconds)
        assert unknown == {"result": [], "score": last, "model_version": "neat-r000003"}
        assert known["score"] != last
        (event,) = events(service)
        assert event.action == "TASKS_CREATED"
        assert [task["id"] for task in event.payload["tasks"]] == [99]
        assert event.payload["project"] == {"id": 7}

    def test_a_score_that_comes_in_time_is_told(
        self, service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def scored_meanwhile(seconds: float) -> None:
            Clock.sleep(clock, seconds)
            write_ranking(service.settings, ids=np.array([1, 2, 3, 99], np.int64), head=[99, 2])

        monkeypatch.setattr(clock, "sleep", scored_meanwhile)
        (answer,) = predict(service, 99)
        assert answer["score"] == pytest.approx(0.1)
        assert clock.now < service.settings.predict_wait_seconds

    def test_a_labelled_or_failed_task_is_answered_at_once(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(service, "_wait_for", None)
        (answer,) = predict(service, 4)  # in the store, not in the ranking
        assert answer["score"] == 1.0
        assert actions(service) == []

    def test_nothing_is_waited_for_while_the_project_is_being_read(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_ready(service.database, state=projects.SYNCING)
        monkeypatch.setattr(service, "_wait_for", None)
        predict(service, 99)
        assert actions(service) == ["TASKS_CREATED"]

    def test_a_task_without_id_gets_a_neutral_answer(self, service: Service) -> None:
        assert predict(service, None) == [{"result": [], "score": 1.0, "model_version": "neat-r000003"}]

    def test_a_project_never_heard_of_is_left_to_the_worker(self, service: Service) -> None:
        body = predict_body(1, project=8)
        assert service.predict(parse_predict(body), URL) == [{"result": [], "score": 0.0, "model_version": "neat"}]
        (event,) = events(service, 8)
        assert (event.action, event.payload["backend_url"]) == ("TASKS_CREATED", URL)

    def test_the_project_may_be_named_by_the_task_alone(self, service: Service) -> None:
        request = dataclasses.replace(parse_predict(predict_body(5)), project=0)
        assert service.predict(request)[0]["score"] == pytest.approx(0.1)

    @pytest.mark.parametrize("number", [2**63, 0, -1, True, {}])
    def test_a_task_that_names_no_possible_project_is_refused(self, service: Service, number: object) -> None:
        body = {"tasks": [{"id": 1, "data": {}, "project": number}]}
        with pytest.raises(BadRequest) as error:
            service.predict(parse_predict(body))
        assert error.value.field == "tasks[0].project"

    def test_no_project_at_all_is_refused(self, service: Service) -> None:
        body = {"tasks": [{"id": 1, "data": {}}]}
        with pytest.raises(BadRequest) as error:
            service.predict(parse_predict(body))
        assert error.value.field == "project"


class TestOrders:
    @pytest.mark.parametrize(("order", "action"), [("train", TRAIN), ("sync", SYNC), ("retry_images", RETRY_IMAGES)])
    def test_are_filed(self, service: Service, order: str, action: str) -> None:
        connect(service)
        apply_all(service)
        number = getattr(service, order)(7)
        assert [(event.id, event.action) for event in events(service)] == [(number, action)]

    @pytest.mark.parametrize(
        "question", ["train", "sync", "retry_images", "status", "rounds", "ranking", "failed_images", "versions"]
    )
    def test_of_an_unknown_project_are_refused(self, service: Service, question: str) -> None:
        with pytest.raises(UnknownProject, match="404"):
            getattr(service, question)(404)

    def test_events_set_aside_come_back(self, service: Service) -> None:
        connect(service)
        (event,) = events(service)
        with service.database.begin() as conn:
            inbox.set_aside(conn, event.id, "no good")
        assert service.status(7)["queue"]["set_aside"] == 1
        assert service.retry_events(7) == 1
        assert [one.id for one in events(service)] == [event.id]

    def test_a_project_is_forgotten_with_all_that_is_kept_of_it(self, service: Service) -> None:
        connect(service)
        write_ranking(service.settings)
        service.forget(7)
        with pytest.raises(UnknownProject):
            service.status(7)
        assert events(service) == []
        assert ProjectArrays(service.settings.data_dir, 7).read_snapshot("ranking") is None
        with pytest.raises(UnknownProject):
            service.forget(7)


class TestQuestions:
    @pytest.fixture(autouse=True)
    def ready(self, service: Service) -> None:
        connect(service)

    def test_status_before_anything_is_known(self, service: Service) -> None:
        status = service.status(7)
        assert status["state"] == projects.CONNECTING
        assert status["labelled"] == {"known": 0, "invalid": 0}
        assert status["queue"]["count"] == 1
        assert not status["caught_up"]

    def test_status_of_a_live_project(self, service: Service) -> None:
        add_tasks(service, 1, 2, 3, 4, 5)
        write_ranking(service.settings)
        (event,) = events(service)
        apply_all(service)
        make_ready(service.database, applied_event=event.id, published_event=event.id)
        status = service.status(7)
        none = {"ready": 0, "failed": 0, "annotated": 0, "annotations": 0, "skips": 0}
        assert status["tasks"] == {"tasks": 5, "pending": 5, **none}
        assert status["labelled"] == {"known": 4, "invalid": 1}
        assert (status["unlabelled"], status["classes"]) == (4, ["dog", "cat"])
        assert (status["received_through"], status["caught_up"]) == (event.id, True)
        assert service.projects() == [status]

        service.accept(parse_webhook(annotation_created(3)))
        assert service.status(7)["caught_up"] is False

    def test_the_access_token_is_never_shown(self, service: Service) -> None:
        assert "0123456789abcdef" not in str(service.projects())

    def test_ranking_is_best_first_with_ties_by_smaller_id(self, service: Service) -> None:
        write_ranking(service.settings)
        rows = service.ranking(7)
        assert [(row["task"], row["rank"]) for row in rows] == [(5, 0), (2, 1), (1, 2), (3, 3)]
        assert rows[0] == {
            "task": 5,
            "rank": 0,
            "priority": pytest.approx(0.9),
            "inconsistency": 3.0,
            "known_neighbours": 10,
            "candidate": True,
            "predicted": "dog",
            "vote": None,
            "votes": 0,
            "known_chance": 1.0,
            "queue": None,
            "place": 0,
            "drawn": False,
        }
        assert rows[3]["predicted"] is None
        assert service.ranking(7, limit=2, offset=1) == rows[1:3]
        assert service.ranking(7, offset=10) == []

    def test_the_head_keeps_its_own_order(self, service: Service) -> None:
        # A fixed batch (NEAT_RERANK=round) stays in place while priorities move.
        write_ranking(service.settings, head=[3, 2])
        assert [row["task"] for row in service.ranking(7)] == [3, 2, 5, 1]
        assert [row["task"] for row in service.ranking(7, limit=2, offset=1)] == [2, 5]

    def test_no_ranking_yet(self, service: Service) -> None:
        assert service.ranking(7) == []
        assert service.rounds(7) == []

    def test_failed_images_come_with_the_reason(self, service: Service) -> None:
        add_tasks(service, 1, 2)
        with service.database.begin() as conn:
            tasks.set_image_state(conn, 7, [2], tasks.FAILED, error="404")
        assert service.failed_images(7) == [{"task": 2, "image": "/data/upload/2.png", "error": "404"}]

    def test_versions_of_one_and_of_all(self, service: Service) -> None:
        make_ready(service.database)
        connect(service, project="8.1")
        assert service.versions(7) == ["neat-r000003"]
        assert service.versions(None) == ["neat", "neat-r000003"]


def test_events_that_no_worker_takes_in_are_said(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(service)
    assert "neat-backend worker" not in service.status(7)["detail"]
    monkeypatch.setattr("neat_backend.service.status.NEGLECT_SECONDS", 0.0)
    assert service.status(7)["detail"].startswith("1 events wait for a worker: is `neat-backend worker`")
    with service.database.begin() as conn:
        projects.acquire_lease(conn, 7, "somebody", 60)
    assert "neat-backend worker" not in service.status(7)["detail"]
