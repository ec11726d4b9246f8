"""A project's tasks page by page, in the order of their ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from neat_backend.labelstudio.transport import Transport

IDS_PER_CALL = 200  # ids are sent in the query string; a server may refuse one that is longer than 4 kB
Params = Mapping[str, Any]
Page = list[dict[str, Any]]


class Pages:
    """Each page holds the tasks above the last id of the page before, so that changes meanwhile shift nothing."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def matching(
        self,
        project: int,
        params: Params,
        filters: list[dict[str, Any]],
        page_size: int,
        selected: Mapping[str, Any] | None = None,
    ) -> Iterator[Page]:
        """Tasks that match the filters by id, each page the ones after the last id of the page before."""
        last = 0
        while True:
            page, total = self._above(project, params, last, page_size, filters, selected)
            if page:
                yield page
                last = int(page[-1]["id"])
            # The server may give smaller pages than requested, so its count decides the end.
            if len(page) == total:
                return

    def spread(self, project: int, params: Params, page_size: int, places: int) -> Page:
        """So many pages of tasks from all over the project: those with evenly spaced ids; each task once, by id.

        Where more than half of these ids do not exist, a page from each of so many places. Few of these requests count
        the project's tasks, which takes Label Studio 0.3 s of 1,000,000.
        """
        wanted = page_size * places
        oldest, total = self._above(project, {**params, "include": "id"}, 0, 1)
        if total <= wanted:
            return self._above(project, params, 0, wanted)[0] if total else []
        newest = self._task_page(project, {**params, "include": "id"}, {"ordering": ["-tasks:id"]}, 1)
        last = self._transport.read(lambda answer: int(answer["tasks"][0]["id"]), newest)
        first = int(oldest[0]["id"])
        even = [first + (last - first) * number // (wanted - 1) for number in range(wanted)]
        found = [task for page in self.of_tasks(project, params, even) for task in page]
        if len(found) < wanted / 2:
            for place in range(places):
                found += self._above(project, params, first - 1 + (last - first) * place // places, page_size)[0]
        return [task for _, task in sorted({int(task["id"]): task for task in found}.items())][:wanted]

    def of_tasks(self, project: int, params: Params, tasks: Sequence[int]) -> Iterator[Page]:
        """The given tasks that the project has."""
        ids = sorted(set(tasks))
        for start in range(0, len(ids), IDS_PER_CALL):
            included = ids[start : start + IDS_PER_CALL]
            yield from self.matching(project, params, [], len(included), {"all": False, "included": included})

    def _above(
        self,
        project: int,
        params: Params,
        id: int,
        page_size: int,
        filters: Sequence[dict[str, Any]] = (),
        selected: Mapping[str, Any] | None = None,
    ) -> tuple[Page, int]:
        """The first tasks above this id that match, and how many there are."""
        items = [*filters, task_filter("id", "greater", "Number", id)]
        query: dict[str, Any] = {"filters": {"conjunction": "and", "items": items}, "ordering": ["tasks:id"]}
        if selected is not None:
            query["selectedItems"] = selected
        answer = self._task_page(project, params, query, page_size)
        page, total = self._transport.read(_checked, answer, id)
        return page, total

    def _task_page(self, project: int, params: Params, query: Mapping[str, Any], size: int) -> Any:
        compact = json.dumps(query, separators=(",", ":"))
        return self._transport.get("/api/tasks/", {**params, "project": project, "page_size": size, "query": compact})


def _checked(answer: Mapping[str, Any], last: int) -> tuple[Page, int]:
    """A page of tasks, and the number of tasks from it on. Raises ValueError for an impossible page.

    A cache may return the previous page or an empty one. The first would be read forever; after the second, all tasks
    would count as deleted.
    """
    page, total = list(answer["tasks"]), int(answer["total"])
    ids = [last, *(int(task["id"]) for task in page)]
    if page and (ids[1] == last or ids != sorted(ids)):
        raise ValueError(f"task ids don't rise above {last}")
    if not min(total, 1) <= len(page) <= total:
        raise ValueError(f"{len(page)} tasks in a page, of {total} that there are")
    return page, total


def task_filter(column: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    """One condition on tasks, in the Data Manager's JSON."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}
