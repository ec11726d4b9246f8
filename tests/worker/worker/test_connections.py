"""Projects that are connected, disconnected, forgotten and connected again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from neat_backend import connection
from neat_backend.errors import (
    LabelStudioUnavailable,
)
from neat_backend.labelstudio.events import parse_webhook
from neat_backend.records import COMPARE, SYNC
from neat_backend.store import inbox, projects, rounds, tasks
from tests.fake_label_studio import BACKEND_URL, FakeLabelStudio
from tests.living import PROJECT, Backend, engine_of, live_of
from tests.waiting import until
from tests.worker.workers import Workers, ready, shown


def stray(server: FakeLabelStudio, backend: Backend, task: int) -> int:
    """Somebody labels a task, and the webhook that was left behind tells us at the address that it was made with."""
    webhook = parse_webhook(server.annotate(task, "dog"))
    return backend.file(webhook.action, {**webhook.payload, "backend_url": BACKEND_URL}, webhook.project)


def dropped(backend: Backend, event: int, number: int = PROJECT) -> Callable[[], bool]:
    def is_dropped() -> bool:
        with backend.database.read() as conn:
            return all(waiting.id > event for waiting in inbox.pending(conn, number))

    return is_dropped


def adopted(backend: Backend) -> Callable[[], bool]:
    def is_adopted() -> bool:
        with backend.database.read() as conn:
            known = projects.get(conn, PROJECT) is not None
        return known and ready(backend)()

    return is_adopted


def settings_of(server: FakeLabelStudio) -> tuple[Any, ...]:
    there = server.projects[PROJECT]
    return there.sampling, there.model_version, dict(there.webhooks), server.titles(PROJECT)


def forget(backend: Backend) -> None:
    connection.forget(backend.database, backend.settings.data_dir, None, PROJECT)


def test_a_forgotten_project_is_not_taken_up_again_by_a_webhook_that_was_left_behind(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    workers.start(backend)
    until(ready(backend))
    server.disconnect(PROJECT)
    forget(backend)
    server.projects[PROJECT].sampling = "Sequential sampling"
    left = settings_of(server)
    until(dropped(backend, stray(server, backend, 1)))
    with backend.database.read() as conn:
        assert projects.all(conn) == []
    assert settings_of(server) == left


def test_a_project_that_is_still_connected_is_taken_up_with_the_extra_params_of_its_connection(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    """As after a lost database: /setup has never come, or its answer was lost."""
    server.disconnect(PROJECT)
    server.connect(PROJECT, k=5, configure_project=False)
    forget(backend)
    worker = workers.start(backend)
    event = stray(server, backend, 1)
    until(adopted(backend))
    until(lambda: backend.project().published_event >= event)
    assert live_of(worker).context.settings.k == 5
    assert server.projects[PROJECT].sampling == "Sequential sampling"
    assert server.titles(PROJECT) == []


def test_a_connection_to_another_backend_does_not_make_a_project_ours(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    forget(backend)
    server.disconnect(PROJECT)
    server.connect(PROJECT, "http://another:9090")
    workers.start(backend)
    until(dropped(backend, stray(server, backend, 1)))
    with backend.database.read() as conn:
        assert projects.all(conn) == []


def test_what_comes_for_an_unknown_project_waits_while_label_studio_is_away(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    forget(backend)
    event = stray(server, backend, 1)
    server.failing = LabelStudioUnavailable("can't reach Label Studio")
    workers.start(backend)
    until(lambda: len(server.called("project")) > 1)
    assert not dropped(backend, event)()
    server.failing = None
    until(adopted(backend))


@pytest.mark.parametrize("at", ["start", "comparison"])
def test_a_connection_that_is_gone_is_shown_and_nothing_is_published_or_set_from_then_on(
    server: FakeLabelStudio, backend: Backend, workers: Workers, at: str
) -> None:
    worker = workers.start(backend, reconcile_seconds=0.1 if at == "comparison" else 0)
    until(ready(backend))
    if at == "start":
        workers.stop(worker)
    server.disconnect(PROJECT)
    server.projects[PROJECT].webhooks.clear()
    if at == "start":
        worker = workers.start(backend)
    until(lambda: shown(backend) == projects.DISCONNECTED)
    until(lambda: not worker.running)
    assert "neat-backend forget 7" in backend.project().detail
    left = settings_of(server)
    until(dropped(backend, stray(server, backend, 1)))
    backend.file(SYNC)
    until(dropped(backend, stray(server, backend, 2)))
    assert settings_of(server) == left
    assert shown(backend) == projects.DISCONNECTED


@pytest.mark.parametrize("notified", [True, False])
def test_a_project_that_is_connected_again_is_configured_again_and_has_the_labels_of_the_time_between(
    server: FakeLabelStudio, backend: Backend, workers: Workers, notified: bool
) -> None:
    worker = workers.start(backend, reconcile_seconds=0.1)
    until(ready(backend))
    server.disconnect(PROJECT)
    until(lambda: shown(backend) == projects.DISCONNECTED)
    server.annotate(1, "dog")
    server.projects[PROJECT].sampling = "Sequential sampling"
    server.connect(PROJECT)
    if notified:  # else an instance of Label Studio that was away is back
        with backend.database.begin() as conn:
            projects.update(conn, PROJECT, state=projects.CONNECTING)
    until(ready(backend))
    assert server.projects[PROJECT].sampling == "Uncertainty sampling"
    live = live_of(worker)
    until(lambda: set(engine_of(live).labels()) == {1})


def test_a_connection_made_anew_between_two_looks_is_configured_though_its_id_is_the_old_one(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    workers.start(backend)
    until(ready(backend))
    (before,) = server.ml_backends(PROJECT)
    server.disconnect(PROJECT)
    server.projects[PROJECT].sampling = "Sequential sampling"
    server.projects[PROJECT].webhooks.clear()
    assert server.connect(PROJECT).id == before.id
    backend.file(COMPARE)  # as /setup does
    until(lambda: server.projects[PROJECT].sampling == "Uncertainty sampling")
    until(lambda: server.projects[PROJECT].webhooks, "it has no webhook")
    assert shown(backend) == projects.READY


def test_the_sampling_that_somebody_has_chosen_outlives_a_restart(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    workers.stop(workers.start(backend, reconcile_seconds=0))
    worker = workers.start(backend)
    until(ready(backend))
    server.change_project(PROJECT, sampling="Sequential sampling")
    workers.stop(worker)
    workers.start(backend)
    until(lambda: backend.project().sampling == "Sequential sampling")
    until(ready(backend))
    assert server.projects[PROJECT].sampling == "Sequential sampling"


def test_a_project_read_by_an_earlier_version_is_not_configured_again(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    workers.stop(worker)
    server.projects[PROJECT].sampling = "Sequential sampling"
    with backend.database.begin() as conn:
        projects.update(conn, PROJECT, connection=None, created_at=None)
    workers.start(backend)
    until(lambda: bool(backend.project().connection))
    assert server.projects[PROJECT].sampling == "Sequential sampling"


def test_a_connection_whose_extra_params_were_changed_is_followed(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    worker = workers.start(backend)
    until(ready(backend))
    server.disconnect(PROJECT)
    server.connect(PROJECT, k=5)
    backend.file(COMPARE)
    until(lambda: PROJECT in worker.running and live_of(worker).context.settings.k == 5)
    until(ready(backend))


def test_another_project_of_the_same_number_begins_anew(
    server: FakeLabelStudio, backend: Backend, workers: Workers
) -> None:
    """Label Studio was set up anew, or another one stands behind the same URL."""
    worker = workers.start(backend, reconcile_seconds=0.1)
    until(ready(backend))
    event = backend.deliver(server.annotate(1, "dog"))
    backend.deliver(server.press_train(PROJECT))
    until(lambda: backend.project().published_event > event)
    made = server.projects[PROJECT].created_at
    old = set(server.projects[PROJECT].tasks)
    server.add_project(PROJECT)
    server.import_tasks(PROJECT, 3)
    until(lambda: backend.project().created_at not in (None, datetime.fromisoformat(made)))
    until(ready(backend))
    with backend.database.read() as conn:
        assert set(tasks.task_ids(conn, PROJECT).tolist()) == set(server.projects[PROJECT].tasks)
        assert rounds.all(conn, PROJECT) == []
    live = live_of(worker)
    assert engine_of(live).labels() == {}
    assert not old & set(engine_of(live).tasks())
    assert set(server.served(PROJECT)) == set(server.projects[PROJECT].tasks)
