"""A worker writes the Data Manager's columns into a real Label Studio, where they can be read and filtered by."""

from __future__ import annotations

import json
from typing import Any

from neat_backend.demo.label_studio import Annotator
from tests.e2e.loop import KNOWN, SETTINGS, Labelling, Standing
from tests.waiting import until

HEAD = 2 * int(SETTINGS["NEAT_BATCH_SIZE"])


def test_what_comes_next_has_its_class_and_inconsistency_in_the_data_manager(
    standing: Standing, annotator: Annotator, digits: Labelling
) -> None:
    def data() -> dict[int, dict[str, Any]]:
        listed = annotator.call("GET", f"/api/tasks?project={digits.project}&page_size=100&fields=task_only")["tasks"]
        return {task["id"]: task["data"] for task in listed}

    def expected() -> dict[int, tuple[float, str]]:
        head = standing.backend.ranking(digits.project, HEAD)
        return {one["task"]: (round(one["inconsistency"], 1), one["predicted"] or "") for one in head}

    def written() -> bool:
        now = data()
        return all(
            (now[task].get("neat_inconsistency"), now[task].get("neat_class", "")) == values
            for task, values in expected().items()
        )

    until(written)
    head = expected()
    assert len(head) == HEAD
    assert {name for _, name in head.values()} & set(KNOWN), "some are held for a wanted class"
    assert all("image" in one for one in data().values()), "nothing else is touched"

    columns = annotator.call("GET", f"/api/dm/columns?project={digits.project}")["columns"]
    assert {"neat_class", "neat_inconsistency"} <= {one["id"] for one in columns if one.get("parent") == "data"}
    name = next(name for _, name in head.values() if name)
    wanted = {"filter": "filter:tasks:data.neat_class", "operator": "equal", "type": "String", "value": name}
    query = json.dumps({"filters": {"conjunction": "and", "items": [wanted]}})
    answer = annotator.call("GET", f"/api/tasks?project={digits.project}&query={query}&page_size=100")["tasks"]
    assert {one["id"] for one in answer} == {task for task, one in data().items() if one.get("neat_class") == name}

    status = standing.backend.status(digits.project)
    assert status["tasks"]["pending"] == 0, "a written column makes nobody encode the image again"
