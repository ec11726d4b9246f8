"""What a live project measures of its own work, as the web reads it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from neat_backend.errors import LabelStudioUnavailable
from neat_backend.store import measures
from neat_backend.store.measures import PUBLISH, RERANK, SERVE
from neat_backend.worker.live import LiveProject
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, engine_of, label_studio_of, settle, take_in


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of(12)


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    monkeypatch.setattr(measures, "SAVE_SECONDS", 0)
    backend = Backend(tmp_path, server, reconcile_seconds=3600)
    yield backend
    backend.close()


def counted(live: LiveProject) -> dict[str, int]:
    live.tidy.step()
    return {name: int(timings.counts.sum()) for name, timings in measures.read(live.context.arrays).histograms.items()}


def test_each_label_is_timed_from_its_arrival_to_its_being_served(server: FakeLabelStudio, backend: Backend) -> None:
    live = backend.live()
    settle(live)
    before = counted(live)
    assert (before[RERANK], before[SERVE]) == (0, 0)
    assert before[PUBLISH] >= 1
    for task in (1, 2):
        backend.deliver(server.annotate(task, "dog"))
        settle(live)
    after = counted(live)
    assert (after[RERANK], after[SERVE]) == (2, 2)


def test_what_waits_for_label_studio_is_not_served_yet(server: FakeLabelStudio, backend: Backend) -> None:
    live = backend.live()
    settle(live)
    backend.deliver(server.annotate(engine_of(live).head()[0], "dog"))
    live.apply.step()
    assert counted(live)[SERVE] == 0
    settle(live)
    assert counted(live)[SERVE] == 1


def test_a_whole_reading_says_that_all_is_equal_and_a_comparison_that_it_still_is(
    server: FakeLabelStudio, backend: Backend
) -> None:
    live = backend.live()
    settle(live)
    read_at = backend.project().compared_at
    assert read_at is not None
    assert datetime.now(timezone.utc) - read_at < timedelta(minutes=1)
    live.bulk.syncing.compare()
    compared_at = backend.project().compared_at
    assert compared_at is not None
    assert compared_at > read_at


def test_a_comparison_that_could_not_be_made_is_none(server: FakeLabelStudio, backend: Backend) -> None:
    live = backend.live()
    settle(live)
    read_at = backend.project().compared_at
    backend.deliver(server.annotate(1, "dog"))  # not applied yet
    live.bulk.syncing.compare()
    assert backend.project().compared_at == read_at


def test_a_comparison_that_label_studio_broke_off_is_made_as_soon_as_it_is_back(
    server: FakeLabelStudio, backend: Backend
) -> None:
    live = backend.live()
    settle(live)
    live.bulk.syncing.compare_at = 0
    server.annotate(3, "dog")  # in the gap
    server.failing = LabelStudioUnavailable("away")
    with pytest.raises(LabelStudioUnavailable):
        live.bulk.step()
    server.failing = None
    settle(live)
    assert set(engine_of(live).labels()) == {3}


def test_what_no_webhook_told_is_counted_by_what_it_was(server: FakeLabelStudio, backend: Backend) -> None:
    live = backend.live()
    settle(live)
    server.annotate(3, "dog")
    server.annotate(4, "cat")
    server.import_tasks(PROJECT, 1)
    server.delete_tasks(7, 8, 9)
    live.bulk.syncing.compare()
    settle(live)
    counted(live)
    assert measures.read(live.context.arrays).found == {"labels": 2, "images": 1, "deleted": 3}


class TestPeopleAtWorkWhileCountersAreCompared:
    """What is counted there and still on its way to us is no reason to read a large project again."""

    def someone_labels(
        self, server: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch, times: int
    ) -> list[dict[str, object]]:
        """Between our looks, so many times; the webhooks, which are not delivered yet."""
        changed, on_their_way = server.changed_tasks, []
        tasks = iter(range(1, 1 + times))

        def then_someone_labels(*arguments: object) -> Iterator[object]:
            yield from changed(*arguments)  # type: ignore[arg-type]
            if (task := next(tasks, None)) is not None:
                on_their_way.append(server.annotate(task, "dog"))

        monkeypatch.setattr(server, "changed_tasks", then_someone_labels)
        return on_their_way

    @pytest.mark.parametrize("times", [1, 2, 9])
    def test_the_project_is_not_read_again(
        self, server: FakeLabelStudio, backend: Backend, monkeypatch: pytest.MonkeyPatch, times: int
    ) -> None:
        live = backend.live()
        settle(live)
        reads = len(server.called("tasks"))
        on_their_way = self.someone_labels(server, monkeypatch, times)
        live.bulk.syncing.compare()
        settle(live)
        assert len(server.called("tasks")) == reads
        for body in on_their_way:
            backend.deliver(body)
        settle(live)
        assert len(engine_of(live).labels()) == len(on_their_way) == min(times, 3)

    def test_what_counters_alone_can_tell_still_has_it_read(self, server: FakeLabelStudio, backend: Backend) -> None:
        live = backend.live()
        settle(live)
        there = server.projects[PROJECT]
        server.annotate(1, "dog")
        there.tasks[1] |= {"updated_at": "2020-01-01T00:00:00+00:00"}  # restored from somewhere: its time has not moved
        live.bulk.syncing.compare()
        settle(live)
        assert set(engine_of(live).labels()) == {1}


def test_a_version_that_is_being_switched_on_is_no_foreign_one(
    server: FakeLabelStudio, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = backend.live()
    settle(live)
    publishing = live.publishing
    assert publishing is not None
    switch = publishing.publisher.switch

    def and_meanwhile_it_is_compared(version: str) -> None:
        switch(version)
        live.bulk.syncing.compare()

    monkeypatch.setattr(publishing.publisher, "switch", and_meanwhile_it_is_compared)
    for task in engine_of(live).head()[:6]:
        backend.deliver(server.annotate(task, "dog"))
    for _ in range(2):
        take_in(live)
        live.publish.step()
    assert publishing.version == "neat-r000002", "published again for nothing"


def test_a_foreign_version_is_replaced_by_ours(server: FakeLabelStudio, backend: Backend) -> None:
    live = backend.live()
    settle(live)
    server.projects[PROJECT].model_version = "somebody's"
    live.bulk.syncing.compare()
    settle(live)
    assert server.projects[PROJECT].model_version == live.publishing.version == "neat-r000002"
