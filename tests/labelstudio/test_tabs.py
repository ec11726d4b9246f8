"""Tabs of the Data Manager against a real Label Studio."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from neat_backend.demo.label_studio import Annotator
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.labelstudio.publisher import Prediction, Publisher
from neat_backend.labelstudio.tabs import Tab, ensure
from tests.labelstudio.server import add_tasks
from tests.waiting import HANGS

LABELS = LabelConfig("class", "image", "image", ("dog", "cat"), ("invalid",))
NEXT = Tab("NEAT: next batch", ("tasks:predictions_score",))
CHECK_TITLE = "NEAT: check these labels"


def check(*tasks: int) -> Tab:
    return Tab(CHECK_TITLE, tasks=tasks)


def titles(person: Annotator, project: int) -> list[str]:
    return [tab["data"]["title"] for tab in person.tabs(project)]


def shown(person: Annotator, project: int, tab: int) -> list[int]:
    return [task["id"] for task in person.call("GET", f"/api/tasks/?view={tab}&project={project}")["tasks"]]


def test_the_tab_of_what_comes_next_shows_the_order_and_only_what_nobody_has_answered(
    client: LabelStudioClient, person: Annotator, project: int
) -> None:
    ids = add_tasks(person, project, 5)
    Publisher(client, project, LABELS).import_revision("v", [Prediction(ids[2], 0.1), Prediction(ids[1], 0.2)])
    client.set_model_version(project, "v")
    person.annotate(ids[0], "dog")
    person.skip(ids[4])
    tab, made = ensure(client, project, NEXT, None)
    assert made
    assert shown(person, project, tab) == [ids[2], ids[1], ids[3]]


def test_a_tab_is_made_once_and_again_when_somebody_has_deleted_it(
    client: LabelStudioClient, person: Annotator, project: int
) -> None:
    tab, made = ensure(client, project, NEXT, None)
    assert made
    assert ensure(client, project, NEXT, tab) == (tab, False)
    assert ensure(client, project, NEXT, None) == (tab, False)  # as after a crash before its id was noted
    assert titles(person, project) == ["Default", NEXT.title]
    person.call("DELETE", f"/api/dm/views/{tab}/")
    again, made = ensure(client, project, NEXT, tab)
    assert made
    assert again != tab
    assert titles(person, project) == ["Default", NEXT.title]


def test_a_tab_that_somebody_has_renamed_is_not_made_a_second_time(
    client: LabelStudioClient, person: Annotator, project: int
) -> None:
    tab, _ = ensure(client, project, NEXT, None)
    (data,) = [one["data"] for one in person.tabs(project) if one["id"] == tab]
    person.call("PATCH", f"/api/dm/views/{tab}/", {"project": project, "data": {**data, "title": "Als Nächstes"}})
    assert ensure(client, project, NEXT, tab) == (tab, False)
    assert titles(person, project) == ["Default", "Als Nächstes"]


def test_a_tab_that_shows_the_opposite_order_is_turned_round_any_other_order_is_left(
    client: LabelStudioClient, person: Annotator, project: int
) -> None:
    tab, _ = ensure(client, project, NEXT, None)
    other_way = Tab(NEXT.title, ("-tasks:predictions_score",))
    assert ensure(client, project, other_way, tab) == (tab, False)
    (found,) = [one for one in person.tabs(project) if one["id"] == tab]
    assert found["data"]["ordering"] == ["-tasks:predictions_score"]
    assert len(found["data"]["filters"]["items"]) == 2
    data = {**found["data"], "ordering": ["tasks:id"]}
    person.call("PATCH", f"/api/dm/views/{tab}/", {"project": project, "data": data})
    assert ensure(client, project, NEXT, tab) == (tab, False)
    (found,) = [one for one in person.tabs(project) if one["id"] == tab]
    assert found["data"]["ordering"] == ["tasks:id"]


def test_the_tab_of_labels_to_check_shows_exactly_these_tasks(
    client: LabelStudioClient, person: Annotator, project: int
) -> None:
    ids = add_tasks(person, project, 60)
    tab, _ = ensure(client, project, check(), None)
    assert shown(person, project, tab) == []
    for wanted in (ids[3:5], ids[4:6], ids[:50], []):
        assert ensure(client, project, check(*wanted), tab) == (tab, False)
        assert shown(person, project, tab) == wanted
    assert titles(person, project).count(check().title) == 1


def test_filters_that_a_person_has_put_there_are_theirs(
    client: LabelStudioClient, person: Annotator, project: int
) -> None:
    ids = add_tasks(person, project, 3)
    tab, _ = ensure(client, project, check(ids[0]), None)
    (data,) = [one["data"] for one in person.tabs(project) if one["id"] == tab]
    more = {"filter": "filter:tasks:total_annotations", "operator": "greater", "type": "Number", "value": 0}
    theirs = {"conjunction": "and", "items": [*data["filters"]["items"], more]}
    person.call("PATCH", f"/api/dm/views/{tab}/", {"project": project, "data": {**data, "filters": theirs}})
    ensure(client, project, check(ids[1]), tab)
    (data,) = [one["data"] for one in person.tabs(project) if one["id"] == tab]
    assert data["filters"]["items"] == theirs["items"]


class Slow:
    """A client that waits for another one after it has looked, so that both find nothing and both make a tab."""

    def __init__(self, client: LabelStudioClient, together: threading.Barrier) -> None:
        self.client, self.together, self.first = client, together, True

    def tabs(self, project: int) -> list[dict[str, Any]]:
        found = self.client.tabs(project)
        if self.first:
            self.first = False
            self.together.wait(HANGS)
        return found

    def create_tab(self, project: int, data: Mapping[str, Any]) -> int:
        return self.client.create_tab(project, data)

    def change_tab(self, project: int, tab: int, data: Mapping[str, Any]) -> None:
        self.client.change_tab(project, tab, data)

    def delete_tab(self, tab: int) -> None:
        self.client.delete_tab(tab)


def test_two_starts_at_once_leave_one_tab(client: LabelStudioClient, person: Annotator, project: int) -> None:
    client.create_tab(project, {"type": "list", "target": "tasks", "title": "Default"})
    together = threading.Barrier(2)
    starts = [threading.Thread(target=ensure, args=(Slow(client, together), project, NEXT, None)) for _ in range(2)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert titles(person, project) == ["Default", NEXT.title]


def test_what_a_start_has_left_that_was_killed_in_between_is_cleared_away(
    client: LabelStudioClient, person: Annotator, project: int
) -> None:
    tab, _ = ensure(client, project, check(), None)
    client.create_tab(project, check().data())
    touched = client.create_tab(project, {**check().data(), "gridWidth": 7, "ordering": ["-tasks:id"]})
    assert ensure(client, project, check(), tab) == (tab, False)
    assert [one["id"] for one in person.tabs(project)][1:] == [tab, touched]  # a person's own, of the same name


def test_a_column_is_set_without_anything_else_noticing(
    client: LabelStudioClient, person: Annotator, project: int
) -> None:
    ids = add_tasks(person, project, 3)
    before = person.call("GET", f"/api/tasks/{ids[0]}/")
    person.call("PATCH", f"/api/tasks/{ids[1]}/", {"data": {"image": "/data/upload/1.png", "theirs": "kept"}})
    client.set_column(project, ids[:2], "neat_class", "dog")
    client.set_column(project, ids[:1], "neat_inconsistency", 6.3)
    client.set_column(project, [], "neat_class", "cat")  # none, not all
    after = [person.call("GET", f"/api/tasks/{task}/") for task in ids]
    assert after[0]["data"] == {"image": "/data/upload/0.png", "neat_class": "dog", "neat_inconsistency": 6.3}
    assert after[1]["data"] == {"image": "/data/upload/1.png", "theirs": "kept", "neat_class": "dog"}
    assert after[2]["data"] == {"image": "/data/upload/2.png"}
    assert after[0]["updated_at"] == before["updated_at"]  # so it is not read again for it
    columns = {column["id"] for column in person.call("GET", f"/api/dm/columns?project={project}")["columns"]}
    assert {"neat_class", "neat_inconsistency"} <= columns


def test_labels_to_check_are_sorted_by_a_column_of_the_tasks_data(
    client: LabelStudioClient, person: Annotator, project: int
) -> None:
    ids = add_tasks(person, project, 4)
    for task, suspicion in zip(ids, (0.6, 1.0, 0.5, 0.9), strict=True):
        client.set_column(project, [task], "neat_suspicion", suspicion)
    tab, _ = ensure(client, project, Tab(CHECK_TITLE, ("-tasks:data.neat_suspicion",), tuple(ids[:3])), None)
    assert shown(person, project, tab) == [ids[1], ids[0], ids[2]]
