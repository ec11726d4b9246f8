"""Of the answers, how many found a choice filled in, and how many kept it: counted by what was published."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from neat_backend.service.service import Service
from neat_backend.store import inbox
from neat_backend.worker.live import LiveProject
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, label_studio_of, settle, take_in


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of()


@pytest.fixture
def backend(server: FakeLabelStudio, tmp_path: Path) -> Iterator[Backend]:
    with closing(Backend(tmp_path, server, reconcile_seconds=60, prefill="vote")) as made:
        yield made


@pytest.fixture
def live(server: FakeLabelStudio, backend: Backend) -> LiveProject:
    server.import_tasks(PROJECT, 16, annotated=["dog"] * 3)
    made = backend.live()
    settle(made)
    return made


def filled(server: FakeLabelStudio) -> dict[int, str]:
    """What the labelling page shows, of the version that is switched on."""
    project = server.projects[PROJECT]
    shown = project.predictions[project.model_version]
    return {task: one["result"][0]["value"]["choices"][0] for task, (one,) in shown.items() if one["result"]}


def counted(backend: Backend) -> dict[str, object]:
    found: dict[str, object] = Service(backend.settings, backend.database).status(PROJECT)["prefilled"]
    return found


def test_each_answer_is_compared_with_what_its_annotator_was_shown(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    expected = {"answered": 0, "filled": 0, "kept": 0}
    for choice in ("dog", "cat", "dog", "invalid", "dog"):
        task = server.served(PROJECT)[0]
        shown = filled(server).get(task)
        expected["answered"] += 1
        expected["filled"] += shown is not None
        expected["kept"] += shown == choice
        backend.deliver(server.annotate(task, choice))
        settle(live)
    assert {name: counted(backend)[name] for name in expected} == expected
    assert 0 < expected["kept"] < expected["filled"]  # else this would show nothing


def test_another_process_goes_on_counting(server: FakeLabelStudio, backend: Backend, live: LiveProject) -> None:
    task = server.served(PROJECT)[0]
    assert filled(server)[task] == "dog"
    again = backend.live()  # it has published nothing yet, the annotator sees what the first one did
    backend.deliver(server.annotate(task, "dog"))
    take_in(again)
    assert counted(backend)["kept"] == 1


def test_an_answer_that_no_webhook_told_of_counts_too(
    server: FakeLabelStudio, backend: Backend, live: LiveProject
) -> None:
    server.annotate(server.served(PROJECT)[0], "dog")
    live.wanted.compare_now()
    settle(live)
    assert counted(backend)["kept"] == 1


def test_a_death_before_the_event_is_marked_applied_counts_it_once(
    server: FakeLabelStudio, backend: Backend, live: LiveProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.deliver(server.annotate(server.served(PROJECT)[0], "dog"))

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(inbox, "mark_applied", die)
        with pytest.raises(SystemExit):
            live.apply.step()
    assert counted(backend)["answered"] == 0
    take_in(backend.live())
    assert counted(backend)["answered"] == counted(backend)["kept"] == 1


def test_the_figures_are_said_in_words(server: FakeLabelStudio, backend: Backend, live: LiveProject) -> None:
    assert counted(backend)["said"] == ""
    backend.deliver(server.annotate(server.served(PROJECT)[0], "dog"))
    settle(live)
    assert counted(backend)["said"] == "Pre-filled 100 % of 1 answer, kept 100 %."


def test_a_choice_that_label_studio_refused_was_not_filled_in(server: FakeLabelStudio, backend: Backend) -> None:
    server.drop_every_choice = True
    server.import_tasks(PROJECT, 16, annotated=["dog"] * 3)
    live = backend.live()
    settle(live)
    assert not filled(server)
    backend.deliver(server.annotate(server.served(PROJECT)[0], "dog"))
    settle(live)
    assert (counted(backend)["answered"], counted(backend)["filled"]) == (1, 0)
