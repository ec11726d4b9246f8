"""The order that annotators are served."""

from __future__ import annotations

from pathlib import Path

import pytest

from neat_backend.errors import LabelStudioUnavailable
from neat_backend.records import Label
from neat_backend.worker.live import LiveProject
from tests.fake_label_studio import (
    FakeLabelStudio,
    label_config,
)
from tests.living import PROJECT, Backend, FakeTraining, engine_of, settle, state
from tests.worker.live.actions import in_engine, labels


def test_in_round_mode_the_batch_is_fixed_until_the_round_ends_even_over_a_restart(
    server: FakeLabelStudio, tmp_path: Path, trainings: list[FakeTraining]
) -> None:
    backend = Backend(tmp_path, server, rerank="round")
    server.import_tasks(PROJECT, 24)
    live = backend.live()
    settle(live)
    batch = server.served(PROJECT)
    assert len(batch) == 8
    for number, task in enumerate(batch[:3]):
        backend.deliver(server.annotate(task, ("dog", "cat")[number % 2]))
        settle(live)
        assert server.served(PROJECT) == batch[number + 1 :]
    assert len(server.called("import_predictions")) == 1
    live = backend.live()
    settle(live)
    assert server.served(PROJECT) == batch[3:]
    backend.deliver(server.annotate(batch[3], "cat"))
    settle(live)
    assert live.rounds.step()
    trainings[-1].succeed()
    assert live.rounds.step()
    settle(live)
    assert server.served(PROJECT) == engine_of(live).head() != batch[4:]
    backend.close()


@pytest.mark.parametrize("rerank", ["live", "round"])
def test_another_strategys_plan_is_what_annotators_are_served(
    server: FakeLabelStudio, tmp_path: Path, rerank: str
) -> None:
    backend = Backend(tmp_path, server, strategy="coreset", rerank=rerank)
    server.import_tasks(PROJECT, 24)
    live = backend.live()
    settle(live)
    assert live.plan.step()
    assert not live.plan.step(), "nothing has changed since"
    settle(live)
    planned = [ranked.task for ranked in live.plan.head()]
    assert server.served(PROJECT) == planned != engine_of(live).head()
    event = backend.deliver(server.annotate(planned[0], "dog"))
    settle(live)
    assert server.served(PROJECT) == planned[1:], "until there is a new plan, the old one, less what is labelled"
    assert live.is_busy()
    assert backend.project().published_event != event, "what was answered is not in the order yet"
    assert live.plan.step()
    settle(live)
    assert backend.project().published_event == event
    if rerank == "live":
        again = [ranked.task for ranked in live.plan.head()]
        assert server.served(PROJECT)[:4] == again[:4]
    backend.close()


def test_in_round_mode_no_batch_is_fixed_while_only_some_images_are_in(
    server: FakeLabelStudio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neat_backend.compute.embedding.FLUSH_IMAGES", 2)
    backend = Backend(tmp_path, server, rerank="round", encode_batch_size=2)
    server.import_tasks(PROJECT, 20)
    live = backend.live()
    backend.encoder.before_encoding = lambda: live.publish.step() and None
    settle(live)
    assert len(server.served(PROJECT)) == 8
    assert live.publish._current._batch == engine_of(live).head()
    backend.close()


def test_what_annotators_are_served_is_the_order_after_every_label(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    for number in range(8):
        task = server.served(PROJECT)[0]
        event = backend.deliver(server.annotate(task, ("dog", "invalid", "cat")[number % 3]))
        settle(live)
        served = server.served(PROJECT)
        assert served[:4] == engine_of(live).head(len(served))[:4]
        assert backend.project().published_event == event


def test_a_death_right_after_the_switch_leaves_nothing_behind(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise SystemExit

    backend.deliver(server.change_project(PROJECT, sampling="Sequential sampling"))
    live.apply.step()
    with monkeypatch.context() as patch:
        patch.setattr("neat_backend.worker.steps.publishing.revisions.switched", die)
        with pytest.raises(SystemExit):
            live.publish.step()
    assert server.projects[PROJECT].model_version == "neat-r000002"  # which the store has never heard of
    again = backend.live()
    assert not again.tidy.step()
    assert server.versions(PROJECT) == ["neat-r000001", "neat-r000002"]
    settle(again)
    monkeypatch.setattr("neat_backend.worker.steps.publishing.SETTLED_SECONDS", 0.0)
    while again.tidy.step():
        pass
    assert server.versions(PROJECT) == [server.projects[PROJECT].model_version] == ["neat-r000003"]


def test_tasks_that_vanished_without_a_word_are_found_when_nothing_of_the_head_is_taken(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    server.delete_tasks(*range(1, 13))  # and no webhook
    live.followed.sampling = "Sequential sampling"
    live.publish._done = ()
    with pytest.raises(LabelStudioUnavailable):
        live.publish.step()
    settle(live)
    assert in_engine(live) == set()
    assert backend.counts().tasks == 0


def test_a_head_with_tasks_that_are_gone_is_served_without_them_and_read_again(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    gone = server.served(PROJECT)[-1]
    server.delete_tasks(gone)  # and no webhook
    backend.deliver(server.change_project(PROJECT, sampling="Sequential sampling"))
    reads = len(server.called("tasks"))
    settle(live)
    assert len(server.called("tasks")) > reads
    assert gone not in in_engine(live)
    assert gone not in server.served(PROJECT)


def test_several_projects_keep_to_themselves(server: FakeLabelStudio, tmp_path: Path) -> None:
    server.add_project(8, label_config("owl", "invalid"))
    backend = Backend(tmp_path, server, numbers=(PROJECT, 8))
    server.import_tasks(PROJECT, 6)
    server.import_tasks(8, 6)
    seven, eight = backend.live(), backend.live(8)
    settle(seven)
    settle(eight)
    before = state(eight)
    backend.deliver(server.annotate(1, "dog"))
    settle(seven)
    settle(eight)
    assert state(eight) == before
    assert labels(seven) == {1: Label(1, "dog")}
    backend.deliver(server.annotate(7, "owl"))
    settle(eight)
    assert labels(eight) == {7: Label(7, "owl")}
    assert set(server.served(PROJECT)) == {2, 3, 4, 5, 6}
    assert set(server.served(8)) == set(range(8, 13))
    backend.close()
