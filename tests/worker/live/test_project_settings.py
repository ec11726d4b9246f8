"""A live project follows its settings in Label Studio."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from neat_backend import connection
from neat_backend.errors import BadLabelConfig
from neat_backend.labelstudio.events import PIECE, parse_webhook
from neat_backend.labelstudio.tabs import CHECK, NEXT
from neat_backend.records import SYNC, Label
from neat_backend.service.service import Service
from neat_backend.store import inbox, projects, tasks
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps.comparing import CLOCK_SLACK
from tests.fake_label_studio import (
    BACKEND_URL,
    CONFIG,
    NOTHING_TO_CHOOSE,
    WITHOUT_INVALID,
    FakeLabelStudio,
    label_config,
)
from tests.living import PROJECT, Backend, engine_of, settle, settled, state, take_in
from tests.worker.live.actions import in_engine, labels


def test_classes_appear_and_vanish_with_the_label_config(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    backend.deliver(server.annotate(1, "dog"))
    backend.deliver(server.annotate(2, "cat"))
    backend.deliver(server.change_project(PROJECT, label_config=label_config("cat", "owl", "invalid")))
    settle(live)
    assert engine_of(live).classes == ("cat", "owl")
    assert labels(live) == {2: Label(2, "cat")}
    backend.deliver(server.annotate(3, "owl"))
    backend.deliver(server.change_project(PROJECT, label_config=label_config("dog", "cat", "owl", "invalid")))
    settle(live)
    assert labels(live) == {1: Label(1, "dog"), 2: Label(2, "cat"), 3: Label(3, "owl")}
    assert state(live) == state(settled(backend))


def test_a_label_config_that_cannot_be_used_is_shown_and_the_old_one_stays(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    backend.deliver(server.change_project(PROJECT, label_config=NOTHING_TO_CHOOSE))
    backend.deliver(server.annotate(1, "dog"))
    take_in(live)
    assert backend.project().state == projects.BLOCKED
    assert "no Choices tag" in backend.project().detail
    assert labels(live) == {1: Label(1, "dog")}
    backend.deliver(server.change_project(PROJECT, label_config=CONFIG))
    take_in(live)
    assert (backend.project().state, backend.project().detail) == (projects.READY, "")


def test_a_project_whose_label_config_cannot_be_used_becomes_live_once_it_is_repaired(
    server: FakeLabelStudio, backend: Backend
) -> None:
    server.change_project(PROJECT, label_config=NOTHING_TO_CHOOSE)
    with backend.database.begin() as conn:
        projects.update(conn, PROJECT, label_config=NOTHING_TO_CHOOSE)
    with pytest.raises(BadLabelConfig):
        backend.live()
    server.change_project(PROJECT, label_config=CONFIG)
    server.import_tasks(PROJECT, 2)
    assert in_engine(settled(backend)) == {1, 2}


def test_an_older_word_on_the_label_config_does_not_undo_a_newer_one(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    overtaken = server.annotate(1, "dog")  # its webhook carries the settings of this moment
    backend.deliver(server.change_project(PROJECT, label_config=WITHOUT_INVALID, sampling="Random", title="zoo"))
    live.apply.step()
    backend.deliver(overtaken)
    live.apply.step()
    assert live.schema.config.invalid == ()
    project = backend.project()
    assert (project.label_config, project.sampling, project.title) == (WITHOUT_INVALID, "Random", "zoo")


def test_one_large_deletion_is_taken_in_in_pieces(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite all webhooks wait for the one transaction that writes."""
    gone = [*sorted(server.projects[PROJECT].tasks)[:2], *range(10_000, 10_000 + 4 * PIECE)]
    body = {**server.delete_tasks(*gone[:2]), "tasks": [{"id": task} for task in gone]}
    last = Service(backend.settings, backend.database).accept(parse_webhook(body))
    deleted: list[int] = []
    real = tasks.delete_tasks

    def noted(conn: Any, project: int, ids: list[int], seen: int) -> list[int]:
        deleted.append(len(ids))
        return real(conn, project, ids, seen)

    monkeypatch.setattr(tasks, "delete_tasks", noted)
    rounds = []
    while live.apply.step():
        rounds.append(sum(deleted))
        deleted.clear()
    assert sum(rounds) == len(gone)
    assert max(rounds) < inbox.ITEMS_AT_ONCE + PIECE
    assert backend.project().applied_event == last
    assert not in_engine(live) & set(gone)


@pytest.mark.parametrize("ahead", [timedelta(minutes=5), timedelta(days=36_500)])
class TestTimesAheadOfLabelStudiosClock:
    """From a clock that was set back since, or from somebody who posts what he likes."""

    def test_do_not_keep_the_projects_fields_from_following(
        self, server: FakeLabelStudio, backend: Backend, live: LiveProject, ahead: timedelta
    ) -> None:
        event = server.change_project(PROJECT, title="from the future")
        event["project"]["updated_at"] = (server.now() + ahead).isoformat()
        backend.deliver(event)
        live.apply.step()
        server._now += CLOCK_SLACK
        backend.deliver(server.change_project(PROJECT, label_config=WITHOUT_INVALID, sampling="Random", title="zoo"))
        live.apply.step()
        project = backend.project()
        assert (project.label_config, project.sampling, project.title) == (WITHOUT_INVALID, "Random", "zoo")

    def test_nor_an_annotation_from_being_changed(
        self, server: FakeLabelStudio, backend: Backend, live: LiveProject, ahead: timedelta
    ) -> None:
        event = server.annotate(1, "dog")
        event["annotation"]["updated_at"] = event["task"]["updated_at"] = (server.now() + ahead).isoformat()
        backend.deliver(event)
        live.apply.step()
        server._now += CLOCK_SLACK
        backend.deliver(server.change_annotation(event["annotation"]["id"], "cat"))
        live.apply.step()
        assert labels(live)[1].choice == "cat"

    def test_are_forgotten_where_the_clock_was_not_known_as_the_whole_project_is_read(
        self,
        server: FakeLabelStudio,
        backend: Backend,
        live: LiveProject,
        ahead: timedelta,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(server, "clock", lambda: None)
        event = server.change_project(PROJECT, title="from the future")
        event["project"]["updated_at"] = (server.now() + ahead).isoformat()
        backend.deliver(event)
        live.apply.step()
        live.wanted.read = True
        live.bulk.step()
        backend.deliver(server.change_project(PROJECT, sampling="Random"))
        live.apply.step()
        assert backend.project().sampling == "Random"


def test_events_from_before_the_project_was_read_do_not_undo_its_settings(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    backend.deliver(server.annotate(1, "dog"))
    server.change_project(PROJECT, label_config=WITHOUT_INVALID)  # its own webhook was lost
    live.wanted.read = True
    live.bulk.step()
    live.apply.step()
    assert live.schema.config.invalid == ()
    assert backend.project().label_config == WITHOUT_INVALID


def test_sampling_is_set_at_the_first_connection_and_followed_from_then_on(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    assert server.projects[PROJECT].sampling == "Uncertainty sampling"
    assert server.titles(PROJECT) == ["Default", NEXT, CHECK]
    backend.deliver(server.change_project(PROJECT, sampling="Sequential sampling"))
    settle(live)
    settle(backend.live())
    assert len(server.called("set_sampling")) == 1
    assert server.projects[PROJECT].sampling == backend.project().sampling == "Sequential sampling"
    head = server.called("import_predictions")[-1][2]
    written = server.projects[PROJECT].predictions[server.projects[PROJECT].model_version]
    assert [written[t][0]["score"] for t in head] == sorted((written[t][0]["score"] for t in head), reverse=True)


@pytest.mark.parametrize("save", [{"show_predictions": False}, {"model_version": ""}, {"model_version": "another"}])
def test_a_save_that_takes_our_version_away_is_answered_at_once(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, save: dict[str, Any]
) -> None:
    served = server.served(PROJECT)
    server.calls.clear()
    backend.deliver(server.change_project(PROJECT, **save))
    settle(live)
    assert server.projects[PROJECT].model_version == "neat-r000002"
    assert server.served(PROJECT) == served
    assert server.called("project") == [], "no comparison was needed"


def test_events_from_before_a_version_was_switched_on_do_not_count(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    late = server.change_project(PROJECT, title="zoo")
    backend.deliver(server.annotate(server.served(PROJECT)[0], "dog"))
    settle(live)
    live.publishing.forget()
    settle(live)
    published = len(server.called("import_predictions"))
    assert late["project"]["model_version"] < server.projects[PROJECT].model_version
    backend.deliver(late)
    del late["project"]["model_version"]  # a body that does not tell
    backend.deliver(late)
    settle(live)
    assert len(server.called("import_predictions")) == published


def test_a_project_that_is_not_to_be_configured_is_left_as_it_is(server: FakeLabelStudio, tmp_path: Path) -> None:
    backend = Backend(tmp_path, server, configure_project=False)
    server.import_tasks(PROJECT, 3)
    settle(backend.live())
    assert server.projects[PROJECT].sampling == "Sequential sampling"
    assert server.titles(PROJECT) == []
    backend.close()


def test_a_webhook_that_label_studio_refuses_is_said_until_there_is_an_address_that_it_takes(
    server: FakeLabelStudio, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = Backend(tmp_path, server, reconcile_seconds=60)

    def connect_at(url: str) -> None:
        server.disconnect(PROJECT)
        server.connect(PROJECT, url)
        with backend.database.begin() as conn:
            projects.update(conn, PROJECT, backend_url=url)

    connect_at("http://neat-backend:9090")
    server.import_tasks(PROJECT, 3)
    live = backend.live()
    settle(live)
    said = "no webhook: labels arrive up to 60 s late; use an address with a dot"
    project = backend.project()
    assert (project.state, project.detail.startswith(said)) == (projects.READY, True)
    assert "http://neat-backend:9090/webhook" in project.detail
    assert caplog.text.count(said) == 1
    live.owned.state.problem("publish", projects.AWAY, "no answer")
    assert backend.project().detail == "no answer"
    live.owned.state.solved("publish")
    assert backend.project().detail == project.detail
    connect_at("http://neat-backend.internal:9090")
    backend.file(SYNC)
    settle(live)
    assert (backend.project().state, backend.project().detail) == (projects.READY, "")
    assert list(server.projects[PROJECT].webhooks) == ["http://neat-backend.internal:9090/webhook"]


def test_the_worst_problem_is_the_one_that_is_shown(backend: Backend, live: LiveProject) -> None:
    live.owned.state.problem("tidy", projects.AWAY, "no answer")
    live.owned.state.problem("bulk", projects.BLOCKED, "wrong key")
    live.owned.state.problem("publish", projects.AWAY, "no answer")
    assert (backend.project().state, backend.project().detail) == (projects.BLOCKED, "wrong key")
    live.owned.state.solved("bulk")
    assert backend.project().state == projects.AWAY
    live.owned.state.solved("tidy")
    live.owned.state.solved("publish")
    assert backend.project().state == projects.READY


def test_a_webhook_carries_a_secret_of_its_own(server: FakeLabelStudio, tmp_path: Path) -> None:
    backend = Backend(tmp_path, server, basic_auth_user="neat", basic_auth_pass="secret")
    take_in(backend.live())
    headers = connection.webhook_headers(backend.settings, PROJECT)
    assert server.projects[PROJECT].webhooks == {f"{BACKEND_URL}/webhook": headers}
    assert headers["Authorization"].startswith(f"Bearer {PROJECT}.")
    backend.close()
