"""When the Data Manager's tabs are looked at, and what they should show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from neat_backend.errors import LabelStudioUnavailable
from neat_backend.labelstudio.publisher import UNCERTAINTY
from neat_backend.labelstudio.tabs import CHECK, NEXT, SELECTION
from neat_backend.store import insights
from neat_backend.store.insights import Mistake
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps.data_manager import LOOK_SECONDS, MOST_CHECKED, Tabs
from tests.conftest import Clock
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, context_of, label_studio_of, settle


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of()


@pytest.fixture
def tabs(server: FakeLabelStudio, tmp_path: Path, clock: Clock) -> Tabs:
    return Tabs(context_of(tmp_path, server), clock)


def listed(server: FakeLabelStudio) -> list[int]:
    (data,) = [one for one in server.projects[PROJECT].views.values() if one["title"] == CHECK]
    return [line["value"] for line in data["filters"]["items"]]


def test_one_that_was_deleted_is_there_again_after_the_next_look(
    server: FakeLabelStudio, tabs: Tabs, clock: Clock
) -> None:
    assert tabs.step(UNCERTAINTY, [])
    assert not tabs.step(UNCERTAINTY, [])
    (number,) = [n for n, data in server.projects[PROJECT].views.items() if data["title"] == NEXT]
    del server.projects[PROJECT].views[number]
    clock.now += LOOK_SECONDS
    assert tabs.step(UNCERTAINTY, [])
    assert sorted(server.titles(PROJECT)) == ["Default", CHECK, NEXT]


def test_a_change_of_sampling_is_followed_at_once_a_change_of_the_list_not_faster_than_it_can_be_read(
    server: FakeLabelStudio, tabs: Tabs, clock: Clock
) -> None:
    tabs.step(UNCERTAINTY, [])
    assert tabs.step("Sequential sampling", [])
    assert {"-tasks:predictions_score"} == {
        name for data in server.projects[PROJECT].views.values() for name in data.get("ordering", [])
    }
    calls = len(server.calls)
    for task in range(1, 20):
        tabs.step("Sequential sampling", [task])
    assert len(server.calls) == calls
    clock.now += 10
    assert tabs.step("Sequential sampling", [19, 3])
    assert listed(server) == [3, 19]


def test_the_list_is_bounded_and_keeps_the_strongest(server: FakeLabelStudio, tabs: Tabs) -> None:
    tabs.step(UNCERTAINTY, range(1000, 1000 - 2 * MOST_CHECKED, -1))
    assert listed(server) == list(range(1000 - MOST_CHECKED + 1, 1001))


def test_labels_to_check_show_the_label_and_what_the_neighbours_say_the_likeliest_mistake_first(
    server: FakeLabelStudio, tabs: Tabs
) -> None:
    tabs.step(UNCERTAINTY, [3])
    by_title = {data["title"]: data for data in server.projects[PROJECT].views.values()}
    assert by_title[CHECK]["type"] == "list"
    hidden = set(by_title[CHECK]["hiddenColumns"]["explore"])
    shown = {"annotations_results", "annotators", "predictions_score", "predictions_results"}
    assert {f"tasks:{name}" for name in shown}.isdisjoint(hidden)
    assert {"tasks:predictions_model_versions", "tasks:total_predictions"} <= hidden
    assert by_title[CHECK]["ordering"] == ["-tasks:predictions_score"]


def test_what_comes_next_is_a_grid_of_images_without_columns_that_are_empty(
    server: FakeLabelStudio, tabs: Tabs
) -> None:
    tabs.step(UNCERTAINTY, [])
    tabs.select([7])
    by_title = {data["title"]: data for data in server.projects[PROJECT].views.values()}
    for title in (NEXT, SELECTION):
        assert by_title[title]["type"] == "grid"
        hidden = set(by_title[title]["hiddenColumns"]["explore"])
        assert {"tasks:predictions_score", "tasks:predictions_results"}.isdisjoint(hidden)
        assert {"tasks:annotations_results", "tasks:completed_at", "tasks:annotators"} <= hidden


def test_what_a_person_has_hidden_stays_hidden(server: FakeLabelStudio, tabs: Tabs, clock: Clock) -> None:
    tabs.step(UNCERTAINTY, [3])
    mine = {"explore": ["tasks:annotators"], "labeling": []}
    for data in server.projects[PROJECT].views.values():
        data["hiddenColumns"] = mine
    clock.now += LOOK_SECONDS
    tabs.step(UNCERTAINTY, [5])
    assert all(data["hiddenColumns"] == mine for data in server.projects[PROJECT].views.values())
    assert listed(server) == [5]


def test_the_ids_are_known_to_the_next_process(server: FakeLabelStudio, tabs: Tabs, tmp_path: Path) -> None:
    tabs.step(UNCERTAINTY, [])
    for data in server.projects[PROJECT].views.values():
        data["title"] = f"mine: {data['title']}"
    Tabs(context_of(tmp_path, server)).step(UNCERTAINTY, [])
    assert len(server.titles(PROJECT)) == 3


def test_label_studio_away_stops_nothing_and_is_tried_again(server: FakeLabelStudio, tabs: Tabs, clock: Clock) -> None:
    server.failing = LabelStudioUnavailable("away")
    assert not tabs.step(UNCERTAINTY, [])
    assert not tabs.step(UNCERTAINTY, [5])
    server.failing = None
    clock.now += LOOK_SECONDS
    tabs.step(UNCERTAINTY, [5])
    assert listed(server) == [5]


def test_the_longer_it_fails_the_rarer_it_is_tried(
    server: FakeLabelStudio, tabs: Tabs, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    server.failing = LabelStudioUnavailable("away")
    for _ in range(2 * 3600):
        clock.now += 1
        tabs.step(UNCERTAINTY, [])
    assert len(caplog.messages) == 7  # after 1, 2, 4, 8, 16 and 32 minutes more


@pytest.fixture
def live(server: FakeLabelStudio, tmp_path: Path) -> Iterator[LiveProject]:
    server.import_tasks(PROJECT, 6, annotated=["dog", "cat"])
    backend = Backend(tmp_path, server)
    live = backend.live()
    settle(live)
    yield live
    backend.close()


def found(*tasks: int) -> tuple[Mistake, ...]:
    return tuple(Mistake(task, "dog", 0.8, "cat", 2, 0, 0.9) for task in tasks)


def test_a_worker_lists_likely_mistakes_but_those_that_somebody_has_confirmed(
    server: FakeLabelStudio, live: LiveProject
) -> None:
    live.insight._mistakes = found(2, 1)
    live.data_manager.tabs._change_at = 0.0
    live.tidy.step()
    assert listed(server) == [1, 2]
    server.annotate(1, "dog", ground_truth=True)
    live.wanted.read = True
    live.bulk.step()
    live.data_manager.tabs._change_at = 0.0
    live.tidy.step()
    assert listed(server) == [2]


def test_a_worker_scores_likely_mistakes_in_the_revision_that_is_on_until_they_are_confirmed(
    server: FakeLabelStudio, live: LiveProject, clock: Clock
) -> None:
    def scores() -> dict[int, list[float]]:
        there = server.projects[PROJECT].predictions[server.projects[PROJECT].model_version]
        return {task: [one["score"] for one in there[task]] for task in (1, 2) if there.get(task)}

    live.suspicions._clock = clock
    live.insight._mistakes = found(2, 1)
    live.tidy.step()
    assert scores() == {1: [0.8], 2: [0.8]}
    server.annotate(1, "dog", ground_truth=True)
    live.wanted.read = True
    live.bulk.step()
    clock.now += 60
    live.tidy.step()
    assert scores() == {2: [0.8]}


def test_without_configuring_the_project_no_tab_is_made_or_repaired(server: FakeLabelStudio, tmp_path: Path) -> None:
    server.import_tasks(PROJECT, 3)
    backend = Backend(tmp_path, server, configure_project=False)
    live = backend.live()
    settle(live)
    live.tidy.step()
    assert server.titles(PROJECT) == []
    assert not server.called("tabs")
    backend.close()


def test_mistakes_found_by_an_earlier_process_are_listed(server: FakeLabelStudio, live: LiveProject) -> None:
    while live.insight.step():
        pass
    before = insights.read_insight(live.context.arrays)
    assert before is not None
    assert live.insight.mistakes() == before.mistakes
