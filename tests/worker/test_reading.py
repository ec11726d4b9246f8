"""Reading a whole project, while people go on working in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from neat_backend import connection
from neat_backend.errors import BadLabelConfig, LabelStudioUnavailable
from neat_backend.labelstudio.tabs import CHECK, NEXT
from neat_backend.records import Label
from neat_backend.store import tasks
from neat_backend.store.database import Database
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps import reading, slices
from neat_backend.worker.steps.data_manager import Tabs
from tests.fake_label_studio import CONFIG, NOTHING_TO_CHOOSE, FakeLabelStudio
from tests.living import Backend, engine_of, label_studio_of, take_in
from tests.store.conftest import db, migrated_postgres, migrated_sqlite, postgres_server
from tests.waiting import until

__all__ = ["db", "migrated_postgres", "migrated_sqlite", "postgres_server"]

PROJECT = 1


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of(8, annotated=["dog", "invalid", "cat"], project=PROJECT)


@pytest.fixture
def backend(server: FakeLabelStudio, db: Database, tmp_path: Path) -> Iterator[Backend]:
    return Backend(tmp_path, server, db, numbers=(PROJECT,))


def read(backend: Backend, **more: Any) -> reading.Synced:
    return reading.read_project(backend.context(PROJECT), **more)


def known(backend: Backend) -> dict[int, Label]:
    config = read_config()
    return {x.task: x for x in reading.resolve_labels(backend.database, PROJECT, config)}


def read_config() -> Any:
    from neat_backend.labelstudio.label_config import parse

    return parse(CONFIG, ("invalid",))


def test_the_store_has_what_label_studio_has(server: FakeLabelStudio, backend: Backend) -> None:
    seen: list[tuple[int, int]] = []
    found = read(backend, on_progress=lambda done, total: seen.append((done, total)))
    assert (found.tasks, found.annotations, found.deleted_tasks) == (8, 3, 0)
    assert found.config.classes == ("dog", "cat")
    assert seen == [(3, 8), (6, 8), (8, 8)]
    labels = known(backend)
    assert set(labels) == set(server.projects[PROJECT].tasks)
    assert [labels[t] for t in (1, 2, 3, 4)] == [Label(1, "dog"), Label(2, invalid=True), Label(3, "cat"), Label(4)]
    project = backend.project(PROJECT)
    assert (project.title, project.label_config, project.sampling) == ("animals", CONFIG, "Sequential sampling")


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first slice of 2 tasks of 8, further ones of 4 and 8 while fewer than 4 unlabelled tasks are in the order."""
    values = {"PAGE": 1, "FIRST_PLACES": 2, "NEXT_PLACES": 4, "NEXT_PART": 2, "FEW_TASKS": 4}
    for name, value in values.items():
        monkeypatch.setattr(slices, name, value)


def serve(live: LiveProject, server: FakeLabelStudio) -> set[int]:
    """The tasks of the order that is served now."""
    live.learning.step()
    until(live.publish.step, "the order is not served")
    there = server.projects[PROJECT]
    return set(there.predictions[there.model_version])


@pytest.mark.usefixtures("small_slices")
def test_a_large_project_is_served_in_order_before_it_is_read(server: FakeLabelStudio, backend: Backend) -> None:
    live = backend.live(PROJECT)
    served: list[set[int]] = []

    def once() -> None:
        """Before the first page; later, slices change the order."""
        del server.gates["tasks"]
        served.append(serve(live, server))

    server.gates["tasks"] = once
    take_in(live)
    assert served[0] == {5}  # of 1 and 5, which is the first of each half, 1 is labelled
    assert known(backend)[1] == Label(1, "dog")
    assert set(engine_of(live).tasks()) == set(range(1, 9))
    calls = len(server.called("spread_tasks"))
    take_in(backend.live(PROJECT))
    assert len(server.called("spread_tasks")) == calls, "it has been read"


@pytest.mark.usefixtures("small_slices")
@pytest.mark.parametrize("action", ["nothing", "label", "delete"])
def test_the_order_of_a_large_project_grows_while_it_is_read(
    server: FakeLabelStudio, backend: Backend, action: str
) -> None:
    live = backend.live(PROJECT)
    served: list[set[int]] = []

    def go_on() -> None:
        """Before each page: wait for the slice that the page before has asked for."""
        if len(server.called("tasks")) == 2:
            until(lambda: live.images.unlabelled() == 2, "the second slice is not encoded")
            if action != "nothing":
                backend.deliver(server.annotate(7, "cat") if action == "label" else server.delete_tasks(7))
                live.apply.step()
            served.append(serve(live, server))
            assert backend.project(PROJECT).state == "syncing"

    server.gates["tasks"] = go_on
    take_in(live)
    assert served == [{5, 7} if action == "nothing" else {5}]  # every second task; 1 and 3 are labelled
    assert set(engine_of(live).tasks()) == set(server.projects[PROJECT].tasks)
    assert engine_of(live).labels().get(7) == (Label(7, "cat") if action == "label" else None)


@pytest.mark.usefixtures("small_slices")
def test_a_slice_that_fails_does_not_stop_the_reading(server: FakeLabelStudio, backend: Backend) -> None:
    live = backend.live(PROJECT)
    server.fail_after["spread_tasks"] = (1, LabelStudioUnavailable("away"))
    take_in(live)
    assert "spread_tasks" not in server.fail_after
    assert set(engine_of(live).tasks()) == set(range(1, 9))


@pytest.mark.usefixtures("small_slices")
def test_a_reading_that_broke_off_is_done_again_without_encoding_twice(
    server: FakeLabelStudio, backend: Backend
) -> None:
    server.fail_after["tasks"] = (1, LabelStudioUnavailable("away"))
    with pytest.raises(LabelStudioUnavailable):
        take_in(backend.live(PROJECT))
    live = backend.live(PROJECT)
    take_in(live)
    assert backend.encoder.encoded == 8
    assert set(engine_of(live).tasks()) == set(range(1, 9))


@pytest.mark.usefixtures("small_slices")
def test_the_first_order_of_a_large_project_does_not_wait_for_its_tabs(
    server: FakeLabelStudio, backend: Backend
) -> None:
    live = backend.live(PROJECT)
    del server.calls[:]
    take_in(live)
    names = [name for name, *_ in server.calls]
    before = names[: names.index("spread_tasks")]
    assert before.count("project") == before.count("ml_backends") == before.count("set_sampling") == 1
    assert not {"tabs", "create_tab", "ensure_webhook"} & set(before)
    assert {"create_tab", "ensure_webhook"} <= set(names)


def test_reading_again_changes_nothing(backend: Backend) -> None:
    read(backend)
    before = known(backend), backend.counts(PROJECT)
    assert read(backend).deleted_tasks == 0
    assert (known(backend), backend.counts(PROJECT)) == before


def test_what_is_gone_from_label_studio_goes_here_too(server: FakeLabelStudio, backend: Backend) -> None:
    read(backend)
    server.delete_tasks(1, 5)
    server.delete_annotation(max(server.projects[PROJECT].annotations))
    assert read(backend).deleted_tasks == 2
    labels = known(backend)
    assert set(labels) == {2, 3, 4, 6, 7, 8}
    assert labels[3] == Label(3)


def test_what_is_gone_is_deleted_in_pieces_that_nobody_waits_long_for(
    server: FakeLabelStudio, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    read(backend)
    monkeypatch.setattr(reading, "FORGOTTEN_AT_ONCE", 3)
    pieces: list[int] = []

    def noted(real: Callable[..., Any], conn: Any, project: int, ids: Sequence[int], seen: int) -> Any:
        pieces.append(len(ids))
        return real(conn, project, ids, seen)

    for name in ("delete_unseen_tasks", "delete_unseen_annotations"):
        monkeypatch.setattr(tasks, name, partial(noted, getattr(tasks, name)))
    server.delete_tasks(*range(1, 8))
    assert read(backend).deleted_tasks == 7
    assert pieces == [3, 3, 1, 3]
    server.delete_tasks(8)
    read(backend)
    assert backend.counts(PROJECT).tasks == 0


def test_label_studio_going_away_takes_nothing_for_deleted(server: FakeLabelStudio, backend: Backend) -> None:
    read(backend)
    server.delete_tasks(8)
    for method in ("tasks", "annotations"):
        server.fail_after = {method: (0 if method == "annotations" else 1, LabelStudioUnavailable("away"))}
        with pytest.raises(LabelStudioUnavailable):
            read(backend)
        assert backend.counts(PROJECT).tasks == 8


def test_a_label_config_that_cannot_be_used_is_kept_and_told(server: FakeLabelStudio, backend: Backend) -> None:
    server.change_project(PROJECT, label_config=NOTHING_TO_CHOOSE)
    with pytest.raises(BadLabelConfig):
        read(backend)
    assert backend.project(PROJECT).label_config == NOTHING_TO_CHOOSE


@pytest.mark.parametrize("moment", ["tasks", "annotations"])
@pytest.mark.parametrize("action", ["annotate", "change", "unlabel", "delete", "import", "label config"])
def test_what_people_do_while_the_project_is_read_has_the_last_word(
    server: FakeLabelStudio, backend: Backend, moment: str, action: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = backend.live(PROJECT)
    original = getattr(server, moment)
    numbers = sorted(server.projects[PROJECT].annotations)
    do = {
        "annotate": lambda: server.annotate(7, "cat"),
        "change": lambda: server.change_annotation(numbers[0], "cat"),
        "unlabel": lambda: server.delete_annotation(numbers[1]),
        "delete": lambda: server.delete_tasks(1, 6),
        "import": lambda: server.import_tasks(PROJECT, 2),
        "label config": lambda: server.change_project(PROJECT, label_config=CONFIG.replace("cat", "owl")),
    }[action]
    done: list[int] = []

    def read_and_then(*arguments: Any) -> Iterator[Any]:
        pages = list(original(*arguments))  # read before it happens, written after
        if not done:
            done.append(backend.deliver(do()))
            live.apply.step()
        yield from pages

    monkeypatch.setattr(server, moment, read_and_then)
    take_in(live)
    assert done
    there = server.projects[PROJECT]
    assert set(engine_of(live).tasks()) == set(there.tasks)
    answers = {a["task"]: a["result"][0]["value"]["choices"][0] for a in there.annotations.values()}
    expected = {
        task: Label(task, choice) if choice != "invalid" else Label(task, invalid=True)
        for task, choice in answers.items()
        if choice in (*live.schema.config.classes, "invalid")
    }
    assert engine_of(live).labels() == expected
    assert backend.project(PROJECT).label_config == there.label_config
    assert live.followed.label_config == there.label_config


def test_a_change_of_settings_that_overtakes_the_reading_stays(
    server: FakeLabelStudio, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = backend.live(PROJECT)
    original = server.project
    calls: list[int] = []

    def project(number: int) -> Any:
        info = original(number)
        calls.append(number)
        if len(calls) != 2:  # the first one is the look at the connection, which read_project relies on
            return info
        backend.deliver(server.change_project(PROJECT, label_config=CONFIG.replace("cat", "owl"), sampling="Random"))
        live.apply.step()
        return info

    monkeypatch.setattr(server, "project", project)
    take_in(live)
    assert live.schema.config.classes == ("dog", "owl")
    kept = backend.project(PROJECT)
    assert (kept.label_config, kept.sampling) == (CONFIG.replace("cat", "owl"), "Random")


def test_annotations_of_a_few_tasks_are_read_alone(server: FakeLabelStudio, backend: Backend) -> None:
    read(backend)
    server.annotate(4, "dog")
    server.annotate(5, "dog")
    reading.read_annotations(backend.context(PROJECT), [4])
    assert server.calls[-1] == ("annotations", PROJECT, (4,))
    with backend.database.read() as conn:
        assert set(tasks.annotations_of(conn, PROJECT)) == {1, 2, 3, 4}


def test_the_tab_shows_the_lowest_score_on_top(server: FakeLabelStudio, backend: Backend) -> None:
    reading.configure(backend.context(PROJECT))
    Tabs(backend.context(PROJECT)).make("Uncertainty sampling", ())
    assert server.projects[PROJECT].sampling == backend.project(PROJECT).sampling == "Uncertainty sampling"
    assert server.titles(PROJECT) == ["Default", NEXT, CHECK]
    (shown,) = [data for data in server.projects[PROJECT].views.values() if data["title"] == NEXT]
    assert shown["ordering"] == ["tasks:predictions_score"]


def test_headers_for_the_webhook_are_sent_only_with_basic_auth(tmp_path: Path, server: FakeLabelStudio) -> None:
    plain = Backend(tmp_path / "a", server, numbers=(PROJECT,))
    assert connection.webhook_headers(plain.settings, PROJECT) == {}
    guarded = Backend(tmp_path / "b", server, numbers=(PROJECT,), basic_auth_user="a", basic_auth_pass="b")
    (secret,) = connection.webhook_headers(guarded.settings, PROJECT).values()
    assert secret.startswith(f"Bearer {PROJECT}.")
    assert secret not in connection.webhook_headers(guarded.settings, PROJECT + 1).values()
    assert "YTpi" not in secret  # base64 of a:b, the user name and password themselves
    (backend,) = server.ml_backends(PROJECT)
    for each in (plain, guarded):
        connection.ensure_webhook(PROJECT, backend, each.settings, server)  # type: ignore[arg-type]
        (headers,) = server.projects[PROJECT].webhooks.values()
        assert headers == connection.webhook_headers(each.settings, PROJECT)
        each.close()


def forgotten(backend: Backend) -> list[list[int]]:
    return list(reading.forget_deleted(backend.context(PROJECT)))


def test_deleted_tasks_are_found_by_ids_a_page_at_a_time(server: FakeLabelStudio, backend: Backend) -> None:
    read(backend)
    server.delete_tasks(1, 4, 8)
    assert forgotten(backend) == [[1, 4], [], [8]]  # 2, 3, 5 · 6, 7 · beyond
    assert set(known(backend)) == set(server.projects[PROJECT].tasks)
    assert not any(forgotten(backend))


def test_a_project_emptied_is_found_empty(server: FakeLabelStudio, backend: Backend) -> None:
    read(backend)
    server.delete_tasks(*range(1, 9))
    assert sorted(task for page in forgotten(backend) for task in page) == list(range(1, 9))
    assert known(backend) == {}


def test_where_label_studio_broke_off_nothing_is_taken_for_deleted(server: FakeLabelStudio, backend: Backend) -> None:
    read(backend)
    server.delete_tasks(1, 8)
    server.fail_after = {"task_ids": (1, LabelStudioUnavailable("away"))}
    pages = reading.forget_deleted(backend.context(PROJECT))
    assert next(pages) == [1]
    with pytest.raises(LabelStudioUnavailable):
        next(pages)
    assert set(known(backend)) == {2, 3, 4, 5, 6, 7, 8}


def test_a_task_that_comes_while_ids_are_read_is_no_deleted_one(server: FakeLabelStudio, backend: Backend) -> None:
    live = backend.live(PROJECT)
    take_in(live)
    server.delete_tasks(8)
    pages = reading.forget_deleted(backend.context(PROJECT))
    found = next(pages)
    backend.deliver(server.import_tasks(PROJECT, 2))
    live.apply.step()
    for page in pages:
        found += page
    assert found == [8]
    assert set(known(backend)) == set(server.projects[PROJECT].tasks)
