"""The state after any stream of events, lost webhooks and crashes."""

from __future__ import annotations

import contextlib
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neat_backend.errors import StoreError
from neat_backend.records import Label
from neat_backend.store import inbox
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps import reading
from tests.fake_label_studio import (
    FakeLabelStudio,
)
from tests.living import PROJECT, Backend, engine_of, state, take_in
from tests.worker.live.actions import ACTIONS, AWAY, FEW, do, labels, read_anew, some_server


@FEW
@given(actions=ACTIONS, pauses=st.integers(1, 6))
def test_after_any_stream_of_events_the_state_is_that_of_a_project_read_anew(
    actions: list[tuple[str, int]], pauses: int
) -> None:
    server = some_server()
    with tempfile.TemporaryDirectory() as folder:
        backend = Backend(Path(folder) / "a", server)
        live = backend.live()
        take_in(live)
        reads = len(server.called("tasks"))
        for at, (action, number) in enumerate(actions):
            body = do(server, action, number)
            for _ in range(2 if number % 5 == 0 else 1):  # some come twice
                if body is not None:
                    backend.deliver(body)
            if at % pauses == 0:
                take_in(live)
        take_in(live)
        assert len(server.called("tasks")) == reads, "events alone were enough"
        assert state(live) == read_anew(folder + "/b", server)
        counts = backend.counts()
        known, invalid, unlabelled = vars(engine_of(live).counts()).values()
        assert known + invalid + unlabelled == counts.tasks == counts.ready == len(server.projects[PROJECT].tasks)
        backend.close()


@FEW
@given(actions=ACTIONS, order=st.randoms(use_true_random=False))
def test_events_in_any_order_come_to_the_same_once_counters_are_compared(
    actions: list[tuple[str, int]], order: random.Random
) -> None:
    server = some_server()
    with tempfile.TemporaryDirectory() as folder:
        backend = Backend(Path(folder) / "a", server, reconcile_seconds=60)
        live = backend.live()
        take_in(live)
        bodies = [body for action in actions if (body := do(server, *action)) is not None]
        bodies += [body for body in bodies if order.random() < 0.3]
        order.shuffle(bodies)
        for body in bodies:
            backend.deliver(body)
        take_in(live)
        live.bulk.syncing.compare()
        take_in(live)
        assert state(live) == read_anew(folder + "/b", server)
        backend.close()


@FEW
@given(actions=ACTIONS, arrives=st.lists(st.booleans(), min_size=12, max_size=12))
def test_whatever_webhooks_are_lost_one_comparison_makes_up_for_them(
    actions: list[tuple[str, int]], arrives: list[bool]
) -> None:
    server = some_server()
    with tempfile.TemporaryDirectory() as folder:
        backend = Backend(Path(folder) / "a", server, reconcile_seconds=60)
        live = backend.live()
        take_in(live)
        for action, arrived in zip(actions, arrives, strict=False):
            body = do(server, *action)
            if body is not None and arrived:
                backend.deliver(body)
                take_in(live)
        live.bulk.syncing.compare()
        take_in(live)
        assert state(live) == read_anew(folder + "/b", server)
        backend.close()


@FEW
@given(
    actions=ACTIONS, deaths=st.lists(st.sampled_from(["", "", "idle", "stored", "embedding"]), min_size=12, max_size=12)
)
def test_a_process_that_dies_at_any_moment_leaves_the_state_of_one_that_did_not(
    actions: list[tuple[str, int]], deaths: list[str]
) -> None:
    server = some_server()
    with tempfile.TemporaryDirectory() as folder:
        backend = Backend(Path(folder) / "a", server)
        live = backend.live()
        take_in(live)
        for (action, number), death in zip(actions, deaths, strict=False):
            body = do(server, action, number)
            if body is not None:
                backend.deliver(body)
            if death == "stored":  # between the store's commit and the engine
                with backend.database.read() as conn:
                    waiting = inbox.pending(conn, PROJECT)
                if waiting:
                    live.apply._store(waiting)
                server.failing = AWAY  # nothing can be read: the store alone has to do
            elif death == "embedding":
                live.apply.step()

                def die() -> None:
                    raise MemoryError("killed")

                backend.encoder.before_encoding = die
                with contextlib.suppress(MemoryError):
                    take_in(live)
                backend.encoder.before_encoding = lambda: None
            if death:
                live = backend.live()
                while live.apply.step():
                    pass
            server.failing = None
            take_in(live)
            if death:
                assert state(live) == read_anew(tempfile.mkdtemp(dir=folder), server)
        backend.close()


def test_labels_are_there_after_a_death_though_label_studio_is_away(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    for task, choice in ((1, "dog"), (2, "invalid"), (3, "cat")):
        backend.deliver(server.annotate(task, choice))
    with backend.database.read() as conn:
        live.apply._store(inbox.pending(conn, PROJECT))  # and the engine never hears of it
    again = backend.live()
    live.intake.mark_stale()
    live.apply.step()
    live.learning.step()
    assert state(again) == state(live)
    assert labels(again) == {1: Label(1, "dog"), 2: Label(2, invalid=True), 3: Label(3, "cat")}


def test_a_database_that_fails_between_the_commit_and_the_engine_loses_nothing(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.deliver(server.annotate(1, "dog"))

    def down(*_: object) -> Any:
        raise StoreError("the database is down")

    with monkeypatch.context() as patch:
        patch.setattr(reading, "resolve_labels", down)
        with pytest.raises(StoreError):
            live.apply.step()
        with pytest.raises(StoreError):
            live.apply.step()
    assert not live.apply.step()  # no event is left to bring it up again
    assert labels(live) == {1: Label(1, "dog")}


def test_known_invalid_and_unlabelled_are_disjoint_and_cover_the_tasks(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    for task, choice in ((1, "dog"), (2, "invalid"), (3, None), (4, "cat")):
        backend.deliver(server.annotate(task, choice))
    take_in(live)
    pool = set(engine_of(live).ranking().ids.tolist())
    known = {t for t, x in labels(live).items() if x.choice is not None}
    invalid = {t for t, x in labels(live).items() if x.invalid}
    assert (known, invalid) == ({1, 4}, {2})
    assert pool == set(range(1, 13)) - known - invalid
