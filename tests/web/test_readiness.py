"""GET /health/ready and the metrics of a project: what tells that somebody should look."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pytest
from flask.testing import FlaskClient

from neat_backend.errors import StoreError
from neat_backend.labelstudio.events import parse_setup
from neat_backend.records import NOT_IN_CONFIG, SKIPPED, WithoutLabel
from neat_backend.service.service import Service
from neat_backend.settings import Settings
from neat_backend.store import inbox, measures, prequential, projects, snapshots
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.measures import Measures
from tests.serving import begin_round, make_ready, setup_body, write_ranking


@pytest.fixture
def connected(service: Service) -> Service:
    """Project 7, with nothing waiting."""
    service.connect(parse_setup(setup_body(7)), "http://backend:9090")
    with service.database.begin() as conn:
        inbox.mark_applied(conn, [event.id for event in inbox.pending(conn, 7)])
    make_ready(service.database, 7)
    return service


def lease(database: Database) -> None:
    with database.begin() as conn:
        assert projects.acquire_lease(conn, 7, "host:1:abc", 60)


class TestReady:
    def test_with_nothing_connected_there_is_nothing_to_wait_for(self, client: FlaskClient) -> None:
        assert client.get("/health/ready").status_code == 200

    def test_with_a_worker_at_work(self, client: FlaskClient, connected: Service, database: Database) -> None:
        lease(database)
        answer = client.get("/health/ready")
        assert (answer.status_code, answer.json["status"]) == (200, "READY")  # type: ignore[index]
        assert answer.json["workers"] == ["host:1:abc"]  # type: ignore[index]

    def test_not_without_a_worker_though_it_is_alive(self, client: FlaskClient, connected: Service) -> None:
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert "no worker" in answer.json["reasons"][0]  # type: ignore[index]
        assert client.get("/health").json["status"] == "UP"  # type: ignore[index]

    def test_not_while_events_grow_old(
        self, client: FlaskClient, connected: Service, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lease(database)
        monkeypatch.setattr(inbox, "depth", lambda conn: inbox.QueueDepth(4, 90.0, 0))
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert answer.json["reasons"] == ["4 events wait, the oldest for 90 s"]  # type: ignore[index]

    def test_not_without_a_database_whose_error_stays_in_the_log(
        self, client: FlaskClient, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def down() -> None:
            raise StoreError("secret words")

        monkeypatch.setattr(database, "read", down)
        answer = client.get("/health/ready")
        assert answer.status_code == 503
        assert "secret" not in answer.text
        assert client.get("/health").status_code == 200


def test_metrics_tell_of_rounds_worker_reading_and_progress(
    client: FlaskClient, connected: Service, database: Database
) -> None:
    read_at = datetime(2026, 11, 24, tzinfo=timezone.utc)
    make_ready(database, 7, synced_at=read_at, progress_done=3, progress_total=8)
    text = client.get("/metrics").text
    assert 'neat_worker_owned{project="7"} 0.0' in text
    assert 'neat_training_running{project="7"} 0.0' in text
    lease(database)
    with database.begin() as conn:
        begin_round(conn, known=3, invalid=1, queried=4, queried_known=3, classes=("dog",))
    text = client.get("/metrics").text
    assert 'neat_worker_owned{project="7"} 1.0' in text
    assert 'neat_training_running{project="7"} 1.0' in text
    assert 'neat_rounds{project="7",state="running"} 1.0' in text
    assert 'neat_progress_done{project="7"} 3.0' in text
    assert 'neat_progress_total{project="7"} 8.0' in text
    (when,) = re.findall(r'neat_synced_timestamp_seconds\{project="7"\} (\S+)', text)
    assert float(when) == read_at.timestamp()


def test_metrics_tell_how_many_answers_gave_no_label_and_why(
    client: FlaskClient, connected: Service, settings: Settings
) -> None:
    write_ranking(settings)
    arrays = ProjectArrays(settings.data_dir, 7)
    head = snapshots.read_head(arrays)
    assert head is not None
    found = (
        WithoutLabel(NOT_IN_CONFIG, "dog ", 3),
        WithoutLabel(NOT_IN_CONFIG, "cow", 2),
        WithoutLabel(SKIPPED, "", 1),
    )
    snapshots.write_head(arrays, replace(head, without_label=found))
    text = client.get("/metrics").text
    assert 'neat_answered_without_label{project="7",reason="not in config"} 5.0' in text
    assert 'neat_answered_without_label{project="7",reason="skipped"} 1.0' in text


def test_metrics_tell_how_often_each_classifier_was_right_from_the_twentieth_label_on(
    client: FlaskClient, connected: Service, settings: Settings
) -> None:
    right = np.repeat(np.array([[1, 1, 1]], np.int8), 20, axis=0)
    right[:5, 1] = 0
    right[:1, 2] = prequential.SILENT
    prequential.write(ProjectArrays(settings.data_dir, 7), prequential.Prequential(right, "linear", "", 20))
    text = client.get("/metrics").text
    assert 'neat_classifier_accuracy{classifier="linear",project="7"} 0.75' in text
    assert 'neat_classifier_accuracy{classifier="resnet18",project="7"} 1.0' in text
    assert 'classifier="vote"' not in text


def test_metrics_tell_what_the_worker_has_measured(
    client: FlaskClient, connected: Service, settings: Settings, database: Database
) -> None:
    worker = Measures(ProjectArrays(settings.data_dir, 7))
    for seconds in (0.2, 0.3, 70.0):
        worker.observe(measures.PUBLISH, seconds)
    worker.observe(measures.RERANK, 0.004)
    worker.found(measures.LABELS, 2)
    assert "neat_reconciled_timestamp_seconds{" not in client.get("/metrics").text
    worker.save()
    with database.begin() as conn:
        projects.update(conn, 7, compared_at=datetime.now(timezone.utc))
    text = client.get("/metrics").text
    for line in (
        'neat_publish_seconds_bucket{le="0.25",project="7"} 1.0',
        'neat_publish_seconds_bucket{le="60.0",project="7"} 2.0',
        'neat_publish_seconds_bucket{le="+Inf",project="7"} 3.0',
        'neat_publish_seconds_count{project="7"} 3.0',
        'neat_publish_seconds_sum{project="7"} 70.5',
        'neat_rerank_seconds_bucket{le="0.005",project="7"} 1.0',
        'neat_serve_seconds_count{project="7"} 0.0',
        'neat_reconcile_found_total{project="7",what="labels"} 2.0',
    ):
        assert line in text
    (when,) = re.findall(r'neat_reconciled_timestamp_seconds\{project="7"\} (\S+)', text)
    reconciled = client.get("/api/projects/7").json["reconciled_at"]  # type: ignore[index]
    assert datetime.fromisoformat(reconciled).timestamp() == float(when)


def test_metrics_to_watch_are_real_ones(client: FlaskClient, connected: Service) -> None:
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    there = set(re.findall(r"^# TYPE (neat_\w+)", client.get("/metrics").text, re.MULTILINE))
    named = {name.removesuffix("_bucket") for name in re.findall(r"\b(neat_\w+)\b(?=[^`]*`)", page)}
    assert named - {"neat_backend"} <= there
    assert len(named) > 8
