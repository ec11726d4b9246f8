"""The scores that sort the tab of labels to check, beside the scores of the order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from neat_backend.labelstudio.label_config import parse
from neat_backend.store.insights import Mistake
from neat_backend.worker.steps.suspicions import AGAIN_SECONDS, LOOK_SECONDS, SHORTEST_REST_SECONDS
from tests.fake_label_studio import CONFIG
from tests.worker.publishing.site import AWAY, PROJECT, Site

LABELS = parse(CONFIG, ("invalid",))


def found(*chances: tuple[int, float]) -> list[Mistake]:
    return [Mistake(task, "dog", chance, "cat", 2, 0, 0.9) for task, chance in chances]


def look(site: Site, *chances: tuple[int, float]) -> bool:
    site.now += SHORTEST_REST_SECONDS
    return site.suspicions.step(found(*chances), LABELS)


def scores(site: Site) -> dict[int, list[float]]:
    """Of the version that is switched on, without the unlabelled tasks."""
    project = site.server.projects[PROJECT]
    there = project.predictions[project.model_version]
    return {task: [one["score"] for one in there[task]] for task in there if task not in site.pool and there[task]}


def choices(site: Site, task: int) -> Sequence[str]:
    project = site.server.projects[PROJECT]
    (one,) = project.predictions[project.model_version][task]
    return [choice for part in one["result"] for choice in part["value"]["choices"]]


def test_every_revision_has_them_and_serves_the_order_as_without_them(site: Site) -> None:
    site.label(1, 2)
    assert not look(site)
    assert look(site, (2, 0.9), (1, 0.6))
    site.step([4, 5, 6])
    assert scores(site) == {2: [0.9], 1: [0.6]}
    assert choices(site, 2) == ["cat"]
    site.now += 60
    site.step([6, 5, 4])
    assert scores(site) == {2: [0.9], 1: [0.6]}
    assert site.served() == [6, 5, 4]
    assert len(site.imports()) == 2, "they come with the head"


def test_between_revisions_new_ones_come_and_old_ones_go(site: Site) -> None:
    site.label(1, 2, 3)
    look(site, (2, 0.9), (1, 0.6))
    site.step([4, 5, 6])
    assert look(site, (3, 0.8), (1, 0.7))
    assert scores(site) == {3: [0.8], 1: [0.7]}
    assert look(site)
    assert scores(site) == {}
    assert site.server.versions(PROJECT) == ["neat-r000001"]


def test_a_label_from_the_published_head_loses_the_score_by_which_it_was_served(site: Site) -> None:
    site.step([4, 5, 6])
    site.label(4)
    assert look(site, (4, 0.9))
    assert scores(site) == {4: [0.9]}
    assert site.served() == [5, 6]


def test_a_changed_chance_is_sent_where_it_changes_the_order(site: Site) -> None:
    site.label(1, 2)
    look(site, (2, 0.9), (1, 0.6))
    site.step([4, 5, 6])
    before = len(site.imports())
    assert look(site, (2, 0.8), (1, 0.7))
    assert len(site.imports()) == before
    assert look(site, (1, 0.95), (2, 0.8))
    assert scores(site) == {1: [0.95], 2: [0.8]}


def test_what_may_have_landed_is_not_there_twice(site: Site) -> None:
    site.label(1)
    site.step([4, 5, 6])
    site.server.fail_after = {"import_predictions, landed": (0, AWAY)}
    assert not look(site, (1, 0.9))
    site.server.fail_after = {}
    assert not look(site, (1, 0.9)), "it waits after a failure"
    site.now += AGAIN_SECONDS
    assert look(site, (1, 0.9))
    assert scores(site) == {1: [0.9]}


def test_where_several_people_answer_they_lie_behind_the_order_and_fill_nothing_in(site: Site) -> None:
    site.server.projects[PROJECT].opinions = 2
    site.label(1, 2)
    look(site, (2, 0.9), (1, 0.6))
    site.step([4, 5, 6])
    project = site.server.projects[PROJECT]
    there = project.predictions[project.model_version]
    assert sorted(there, key=lambda task: there[task][0]["score"]) == [4, 5, 6, 1, 2]
    assert choices(site, 1) == []


def test_a_change_of_the_number_of_people_is_noticed(site: Site) -> None:
    site.label(1)
    look(site, (1, 0.9))
    site.step([4, 5, 6])
    site.server.projects[PROJECT].opinions = 2
    assert not look(site, (1, 0.9))
    site.now += LOOK_SECONDS
    assert look(site, (1, 0.9))
    assert choices(site, 1) == []


def test_a_task_that_has_its_label_no_more_keeps_one_score(site: Site) -> None:
    site.label(1)
    look(site, (1, 0.9))
    site.pool.add(1)
    site.step([1, 5, 6])
    there = site.server.projects[PROJECT].predictions["neat-r000001"]
    assert [one["score"] for one in there[1]] < [one["score"] for one in there[5]]


def test_a_process_that_lost_the_project_writes_none(site: Site) -> None:
    site.label(1)
    site.step([4, 5, 6])

    def lost() -> None:
        raise AssertionError("lost")

    site.suspicions._check_ownership = lost
    with pytest.raises(AssertionError, match="lost"):
        look(site, (1, 0.9))
    assert scores(site) == {}
