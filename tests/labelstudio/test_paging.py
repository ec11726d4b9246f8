"""A few tasks of a project, from a real Label Studio."""

from __future__ import annotations

from neat_backend.demo.label_studio import Annotator
from neat_backend.labelstudio.client import LabelStudioClient
from tests.labelstudio.server import CONFIG, add_tasks


def test_a_few_tasks_from_all_over_a_project(client: LabelStudioClient, person: Annotator, project: int) -> None:
    assert client.spread_tasks(project, "image", 2, 4) == []
    ids = add_tasks(person, project, 40)
    found = client.spread_tasks(project, "image", 2, 4)
    assert [task.id for task in found] == [ids[at] for at in (0, 5, 11, 16, 22, 27, 33, 39)]
    assert found[2].image == "/data/upload/11.png"
    assert [task.id for task in client.spread_tasks(project, "image", 30, 4)] == ids


def test_a_few_tasks_of_a_project_whose_ids_have_gaps(
    client: LabelStudioClient, person: Annotator, project: int
) -> None:
    first = add_tasks(person, project, 5)
    add_tasks(person, person.create_project("between", CONFIG), 200)
    ids = [*first, *add_tasks(person, project, 5)]
    found = client.spread_tasks(project, "image", 2, 4)
    assert [task.id for task in found] == [ids[at] for at in (0, 1, 5, 6, 9)]
