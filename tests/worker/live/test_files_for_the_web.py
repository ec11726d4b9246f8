"""The files that the worker writes for the web."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from neat_backend.errors import LeaseLost, StoreError
from neat_backend.labelstudio.events import PredictRequest
from neat_backend.labelstudio.publisher import score
from neat_backend.records import Label
from neat_backend.service.service import Service
from neat_backend.store import projects, snapshots
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps import shown_state
from tests.fake_label_studio import (
    FakeLabelStudio,
)
from tests.living import PROJECT, Backend, engine_of, settle
from tests.worker.live.actions import ACTIONS, FEW, do, settle_once, some_server


def test_the_files_for_the_web_show_order_counts_and_version(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    event = backend.deliver(server.annotate(1, "dog"))
    settle(live)
    head, engine = snapshots.read_head(live.context.arrays), engine_of(live)
    assert head is not None
    assert engine is not None
    assert list(head.tasks) == engine.ranked(engine.head())
    assert (head.known, head.invalid, head.unlabelled, head.classes) == (1, 0, 11, engine.classes)
    assert head.event == event
    assert head.model_version == server.projects[PROJECT].model_version == backend.project().model_version
    ranking = snapshots.read_ranking(live.context.arrays, head)
    assert ranking is not None
    expected = vars(engine.ranking()) | {"queue": np.where(engine.ranking().queue < 2, engine.ranking().queue, -1)}
    assert expected.keys() - ranking.keys() == {"quality"}
    expected["drawn"] = np.isin(ranking["ids"], list(engine.draw_priorities()))
    for name, values in ranking.items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


class Counting:
    """How often the whole ranking is made, and which files are written."""

    def __init__(self, live: LiveProject, patch: pytest.MonkeyPatch) -> None:
        self.rankings, self.files = 0, list[str]()
        make, write = engine_of(live).copied_ranking, live.context.arrays.write_snapshot

        def made() -> Any:
            self.rankings += 1
            return make()

        def written(name: str, arrays: Any) -> None:
            self.files.append(name)
            write(name, arrays)

        patch.setattr(engine_of(live), "copied_ranking", made)
        patch.setattr(live.context.arrays, "write_snapshot", written)


def test_waiting_to_publish_computes_and_writes_nothing_over_and_over(
    server: FakeLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend(tmp_path, server, publish_interval_seconds=1000)
    server.import_tasks(PROJECT, 12)
    live = backend.live()
    settle(live)
    backend.deliver(server.annotate(server.served(PROJECT)[1], "dog"))
    backend.deliver(server.annotate(server.served(PROJECT)[0], "invalid"))
    live.apply.step()
    live.learning.step()
    live.publishing._served.reverse()  # another order than the one to come
    counting = Counting(live, monkeypatch)
    looks = []
    ranked = engine_of(live).ranked
    monkeypatch.setattr(engine_of(live), "ranked", lambda tasks: (looks.append(1), ranked(tasks))[1])
    for _ in range(5):
        assert not live.publish.step()
    assert (counting.files, counting.rankings, len(looks)) == (["head", "ranking"], 1, 1)
    assert live.is_busy()  # its last order is not published
    backend.close()


def test_the_order_of_a_round_is_shown_when_it_is_served(server: FakeLabelStudio, tmp_path: Path) -> None:
    backend = Backend(tmp_path, server, publish_interval_seconds=1000, classifier="resnet18")
    server.import_tasks(PROJECT, 12)
    for task, choice in enumerate(("dog", "cat", "dog", "cat"), 1):
        server.annotate(task, choice)
    live = backend.live()
    settle(live)
    engine, publishing = engine_of(live), live.publishing
    assert engine is not None
    assert publishing is not None

    def shown() -> list[int]:
        head = snapshots.read_head(live.context.arrays)
        assert head is not None
        return [ranked.task for ranked in head.tasks]

    served = server.served(PROJECT)
    assert shown() == engine.head() == served
    said = np.random.default_rng(0).dirichlet((1, 1), 12).astype(np.float32)
    engine.set_probabilities(range(1, 13), said, engine.classes)
    assert engine.head() != served
    assert not live.publish.step()  # it has to wait
    assert shown() == served == server.served(PROJECT)
    publishing.interval_seconds = 0
    assert live.publish.step()
    assert shown() == engine.head() == server.served(PROJECT)
    publishing.interval_seconds = 1000
    backend.deliver(server.annotate(engine.head()[0], "dog"))
    live.apply.step()
    live.learning.step()
    live.publish.step()
    assert shown() == engine.head()  # a label is shown at once
    backend.close()


def test_nothing_at_all_is_done_when_nothing_has_changed(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> Any:
        raise AssertionError("there was nothing to do")

    calls = len(server.calls)
    for what, name in (
        (live.context.database, "read"),
        (live.context.database, "begin"),
        (live.publish._current, "order"),
        (live.context.arrays, "_write"),
    ):
        monkeypatch.setattr(what, name, never)
    for _ in range(3):
        assert live.publish.step()
    assert len(server.calls) == calls


@pytest.fixture
def costly(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Writing the whole ranking takes ten seconds; the clock, to be moved on."""
    now = [1000.0]
    monkeypatch.setattr(shown_state, "CHEAP_RANKING_SECONDS", -1.0)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    write = snapshots.write_ranking

    def slow(*args: Any) -> None:
        now[0] += 10
        write(*args)

    monkeypatch.setattr(snapshots, "write_ranking", slow)
    return now


def test_a_costly_ranking_is_made_at_its_pace_and_the_last_one_is_written_in_the_end(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, costly: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(live, monkeypatch)

    def label(choice: str) -> None:
        backend.deliver(server.annotate(server.served(PROJECT)[0], choice))
        live.apply.step()
        live.learning.step()

    label("dog")
    assert live.publish.step()  # the first one is made at once
    assert counting.rankings == 1
    for number in range(6):
        label(("dog", "invalid")[number % 2])
        for _ in range(3):
            assert not live.publish.step()  # it is served, but not all of it is shown
        assert server.served(PROJECT)[0] == engine_of(live).head()[0]
        costly[0] += 20
    assert counting.rankings == 1
    assert counting.files.count("head") == 7  # the head is always shown
    assert live.is_busy()
    costly[0] += 200 - 6 * 20 - 1
    assert not live.publish.step()
    costly[0] += 1
    assert live.publish.step()
    assert counting.rankings == 2
    assert not live.is_busy()
    ranking = live.context.arrays.read_snapshot("ranking")
    assert ranking is not None
    np.testing.assert_array_equal(ranking["ids"], engine_of(live).ranking().ids)


def test_what_was_labelled_or_deleted_since_the_ranking_was_written_is_not_in_it(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, costly: list[float]
) -> None:
    service = Service(backend.settings, backend.database)

    def shown() -> list[int]:
        return [row["task"] for row in service.ranking(PROJECT)]

    backend.deliver(server.annotate(1, "dog"))
    settle_once(live)
    backend.deliver(server.annotate(2, "cat"))
    backend.deliver(server.delete_tasks(3))
    settle_once(live)
    assert {1, 2, 3}.isdisjoint(shown())
    assert (len(shown()), service.status(PROJECT)["unlabelled"], service.status(PROJECT)["caught_up"]) == (9, 9, True)
    backend.deliver(server.delete_annotation(max(server.projects[PROJECT].annotations)))  # and taken back
    settle_once(live)
    assert {1, 3}.isdisjoint(shown())
    assert len(shown()) == 10
    assert shown()[:8] == engine_of(live).head()
    costly[0] += 1000
    assert live.publish.step()
    assert shown() == engine_of(live).head(12)


@FEW
@given(actions=ACTIONS)
def test_an_older_ranking_is_read_with_what_is_newer(actions: list[tuple[str, int]]) -> None:
    server = some_server()
    server.import_tasks(PROJECT, 12)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(shown_state, "CHEAP_RANKING_SECONDS", -1.0)
        patch.setattr(shown_state, "RANKING_RESTS", 1e9)
        backend = Backend(Path(folder), server)
        live, service = backend.live(), Service(backend.settings, backend.database)
        settle_once(live)
        for action in actions:
            body = do(server, *action)
            if body is not None:
                backend.deliver(body)
            settle_once(live)
            head, counts, status = engine_of(live).head(), engine_of(live).counts(), service.status(PROJECT)
            shown = [row["task"] for row in service.ranking(PROJECT)]
            assert shown[: len(head)] == head
            assert set(shown) <= set(engine_of(live).ranking().ids.tolist())
            assert len(set(shown)) == len(shown)
            assert (status["labelled"], status["unlabelled"]) == (
                {"known": counts.known, "invalid": counts.invalid},
                counts.unlabelled,
            )
            assert status["caught_up"]
            answers = service.predict(PredictRequest(PROJECT, "", [{"id": task} for task in head]))
            assert [answer["score"] for answer in answers] == [
                score(ranked.priority, backend.project().sampling) for ranked in engine_of(live).ranked(head)
            ]
        backend.close()


def test_a_ranking_that_could_not_be_written_is_written_later(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreError("no space left")

    backend.deliver(server.annotate(1, "dog"))
    live.apply.step()
    live.learning.step()
    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "write_ranking", full)
        with pytest.raises(StoreError):
            live.publish.step()
    assert Service(backend.settings, backend.database).ranking(PROJECT)[0]["task"] != 1
    assert live.publish.step()
    ranking = live.context.arrays.read_snapshot("ranking")
    assert ranking is not None
    assert 1 not in ranking["ids"]


def test_a_project_that_was_lost_shows_nothing_any_more(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    backend.deliver(server.change_project(PROJECT, sampling="Sequential sampling"))
    live.apply.step()
    other = backend.live(owner="another")
    settle(other)
    shown = snapshots.read_head(live.context.arrays)
    engine_of(live).set_labels([Label(5, "dog")])
    live.learning.step()
    with pytest.raises(LeaseLost):
        live.publish.step()
    assert snapshots.read_head(live.context.arrays) == shown


def test_an_order_that_was_being_written_when_the_worker_was_stopped_does_not_replace_its_successors(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.deliver(server.annotate(5, "dog"))
    live.apply.step()
    live.learning.step()
    original = live.context.arrays._locked
    others: list[LiveProject] = []

    @contextlib.contextmanager
    def stopped(exclusive: bool) -> Iterator[None]:
        if exclusive and not others:
            live.owned.leased_until = 0.0  # long ago
            others.append(backend.live(owner="another"))
            backend.deliver(server.annotate(6, "cat"))
            settle(others[0])
        with original(exclusive):
            yield

    monkeypatch.setattr(live.context.arrays, "_locked", stopped)
    with pytest.raises(StoreError, match="lease"):
        live.publish.step()
    shown = snapshots.read_head(live.context.arrays)
    assert shown is not None
    assert others[0].shown.head is not None
    assert (shown.known, shown.event) == (2, others[0].shown.head.event)


def test_a_state_that_could_not_be_written_is_written_later(
    backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object, **__: object) -> None:
        raise StoreError("the database is down")

    with monkeypatch.context() as patch:
        patch.setattr(projects, "update", down)
        with pytest.raises(StoreError):
            live.owned.state.problem("bulk", projects.AWAY, "gone")
    live.owned.state.problem("bulk", projects.AWAY, "gone")
    assert backend.project().state == projects.AWAY
    with monkeypatch.context() as patch:
        patch.setattr(projects, "update", down)
        with pytest.raises(StoreError):
            live.owned.state.solved("bulk")
    live.bulk.step()
    assert backend.project().state == projects.READY
