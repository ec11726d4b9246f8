"""Two hosts that share a database and an object store, and no folder: what the first has computed is the second's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from neat_backend.errors import LeaseLost, StoreError
from neat_backend.service.service import Service
from neat_backend.store import projects
from neat_backend.worker.live import LiveProject
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, FakeTraining, settle, state, take_in

Open = Callable[[str], Backend]


@pytest.fixture
def server() -> FakeLabelStudio:
    server = FakeLabelStudio()
    server.add_project(PROJECT)
    server.import_tasks(PROJECT, 12)
    return server


@pytest.fixture
def host(server: FakeLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """A host by its name, each with a data folder of its own."""
    monkeypatch.setattr("neat_backend.worker.steps.query_rounds.TrainingProcess", FakeTraining)
    FakeTraining.running.clear()
    opened: list[Backend] = []

    def open_(name: str) -> Backend:
        database = opened[0].database if opened else None
        opened.append(Backend(tmp_path / name, server, database, arrays_url=f"file://{tmp_path}/bucket"))
        return opened[-1]

    yield open_
    opened[0].close()


def keep(live: LiveProject) -> bool:
    """Put what has changed on the object store."""
    (step,) = [step for step in live.steps if step.name == "keep"]
    return step.step()


def test_the_second_goes_on_without_encoding_anything_again(
    server: FakeLabelStudio, host: Open, tmp_path: Path
) -> None:
    a, b = host("a"), host("b")
    first = a.live()
    settle(first)
    a.deliver(server.annotate(1, "dog"))
    a.deliver(server.annotate(2, "cat"))
    settle(first)
    assert keep(first)
    assert not keep(first)
    a.deliver(server.annotate(3, "dog"))  # the first dies here

    second = b.live(owner="another")
    settle(second)
    assert a.encoder.encoded == 12
    assert b.encoder.encoded == 0
    anew = Backend(tmp_path / "anew", server)  # one that encodes everything itself
    read = anew.live()
    take_in(read)
    assert state(second) == state(read)
    anew.close()
    first.context.arrays.append("features/x", [1], [1], [[0.5]])
    with pytest.raises(LeaseLost):
        keep(first)


def test_what_is_lost_on_the_way_is_encoded_again(server: FakeLabelStudio, host: Open, tmp_path: Path) -> None:
    a, b = host("a"), host("b")
    first = a.live()
    settle(first)
    server.import_tasks(PROJECT, 3)
    first.wanted.read = True
    settle(first)
    before = state(first)
    keep(first)
    segments = sorted((tmp_path / "bucket").rglob("projects/7/features/**/*.npz.*"))
    assert len(segments) >= 2
    segments[-1].write_bytes(segments[-1].read_bytes()[:-20])
    second = b.live()
    settle(second)
    assert 0 < b.encoder.encoded < 15
    assert state(second) == before


def test_a_round_whose_classifier_did_not_get_there_is_trained_again(server: FakeLabelStudio, host: Open) -> None:
    a, b = host("a"), host("b")
    first = a.live()
    settle(first)
    for task, choice in ((1, "dog"), (2, "cat"), (3, "dog"), (4, "cat")):
        a.deliver(server.annotate(task, choice))
    settle(first)
    assert first.rounds.step()
    FakeTraining.running[-1].succeed()
    keep(first)  # without a classifier: such a training writes none
    assert first.rounds.step()
    second = b.live()
    take_in(second)
    assert second.rounds.step()
    assert len(FakeTraining.running) == 2


def test_a_web_elsewhere_answers_as_the_one_beside_the_worker(server: FakeLabelStudio, host: Open) -> None:
    a, far = host("a"), host("far")
    live = a.live()
    settle(live)
    for task in (1, 2, 3):
        a.deliver(server.annotate(task, ("dog", "cat", "dog")[task - 1]))
        settle(live)
        live.insight.step()
        keep(live)
        near, there = (Service(one.settings, one.database) for one in (a, far))
        assert there.ranking(PROJECT) == near.ranking(PROJECT) != []
        assert there.status(PROJECT)["labelled"] == near.status(PROJECT)["labelled"]
        assert there.projects() == near.projects()
        assert there.explain(PROJECT, 5) == near.explain(PROJECT, 5)
        assert (there.thumbnail(PROJECT, 5) or (0, 0))[0] == (near.thumbnail(PROJECT, 5) or (0, 1))[0]
        assert there.insight(PROJECT) == near.insight(PROJECT)


def test_what_is_on_its_way_is_not_explained_wrongly(
    server: FakeLabelStudio, host: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, far = host("a"), host("far")
    live = a.live()
    settle(live)
    keep(live)
    service = Service(far.settings, far.database)
    assert service._objects is not None
    monkeypatch.setattr(service._objects, "mirror", lambda *_: (_ for _ in ()).throw(StoreError("no route to host")))
    with pytest.raises(StoreError, match="are being downloaded"):
        service.explain(PROJECT, 5)
    assert service.thumbnail(PROJECT, 5) is None
    monkeypatch.undo()
    assert service.explain(PROJECT, 5)["task"] == 5


def test_forgetting_a_project_empties_the_store(server: FakeLabelStudio, host: Open, tmp_path: Path) -> None:
    a = host("a")
    live = a.live()
    settle(live)
    keep(live)
    assert list((tmp_path / "bucket/projects/7").rglob("*.npz*"))
    with a.database.begin() as conn:
        projects.release_lease(conn, PROJECT, "me")
    Service(a.settings, a.database).forget(PROJECT)
    assert not (tmp_path / "bucket/projects/7").exists()
