from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from neat_backend.demo.label_studio import Annotator
from neat_backend.errors import LabelStudioUnavailable, PredictionsRejected
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.labelstudio.importing import FLAG, Imports
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.labelstudio.publisher import (
    ONE_BY_ONE_AT_ONCE,
    PREDICTIONS_PER_CALL,
    Imported,
    Prediction,
    Publisher,
)
from tests.labelstudio.server import add_tasks

TOO_MANY = "Label Studio answered 500 (POST /api/projects/7/import/predictions): too many SQL variables"


class Answers:
    """Label Studio with a project that is too large for its import; `landed`: tasks with a prediction."""

    timeout_seconds = 30.0

    def __init__(self, said: str = TOO_MANY, landed: tuple[int, ...] = (), gone: tuple[int, ...] = ()) -> None:
        self.said, self.landed, self.gone = said, list(landed), gone
        self.imports = 0

    def send(self, method: str, path: str, body: Any, timeout_seconds: float = 0, bad: Any = None) -> None:
        if path.endswith("/import/predictions"):
            self.imports += 1
            raise LabelStudioUnavailable(self.said)
        assert (method, path) == ("POST", "/api/predictions/")
        if body["task"] in self.gone:
            raise PredictionsRejected("a task is gone")
        self.landed.append(body["task"])

    def found(self, project: int, version: str, tasks: Sequence[int]) -> set[int]:
        return set(tasks) & set(self.landed)


def predictions(*tasks: int) -> list[dict[str, object]]:
    return [{"task": task, "score": 0.5, "model_version": "v1", "result": []} for task in tasks]


def test_a_project_that_is_too_large_for_an_import_gets_its_predictions_one_by_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Answers(landed=(2,), gone=(3,))
    imports = Imports(cast(Any, server), server.found)
    assert imports.send(7, predictions(1, 2, 3)) == 2
    assert sorted(server.landed) == [1, 2], "none is there twice"
    assert f"start Label Studio with {FLAG}=true" in caplog.text
    assert imports.send(7, predictions(4)) == 1
    assert server.imports == 1, "it is not tried again"
    assert imports.are_one_by_one(7)
    assert not imports.are_one_by_one(8)


def test_another_failure_of_an_import_is_raised() -> None:
    server = Answers("Label Studio answered 500: database is locked")
    imports = Imports(cast(Any, server), server.found)
    with pytest.raises(LabelStudioUnavailable, match="locked"):
        imports.send(7, predictions(1))
    assert not imports.are_one_by_one(7)


def test_predictions_one_by_one_are_those_of_an_import(
    client: LabelStudioClient, person: Annotator, project: int
) -> None:
    ids = add_tasks(person, project, 5)
    person.delete_tasks(project, ids[4:])
    publisher = Publisher(client, project, LabelConfig("class", "image", "image", ("dog", "cat"), ("invalid",)))
    wanted = [Prediction(ids[0], 0.2, "dog"), Prediction(ids[1], 0.4), Prediction(ids[4], 0.5)]
    assert publisher.at_once == PREDICTIONS_PER_CALL
    assert publisher.import_revision("all", wanted) == Imported(2, (ids[4],))
    client._imports._one_by_one.add(project)
    assert publisher.at_once == ONE_BY_ONE_AT_ONCE
    assert publisher.import_revision("single", wanted) == Imported(2, (ids[4],))
    found: dict[str, list[tuple[int, float, object]]] = {"all": [], "single": []}
    for made in person.predictions(project):
        found[made["model_version"]].append((made["task"], made["score"], made["result"]))
    assert len(found["all"]) == 2
    assert sorted(found["all"]) == sorted(found["single"])
    publisher.switch("single")
    assert client.project(project).model_version == "single"
