"""Tabs of the Data Manager: created once, found again and updated, while others may create or change tabs.

Label Studio's tabs are not unique: a name may be used twice, and two callers that check first and then create a tab
create two. So after creating a tab a caller checks again, and of several unchanged ones with the same title the oldest
stays. All callers reach the same result, also where one was killed in between.

A tab that a person has changed is theirs: it is found by its id, whatever its name, and only changed as `ensure` says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from neat_backend.errors import NotFoundInLabelStudio

Json = dict[str, Any]

_UNUSED = (
    "inner_id",
    "total_annotations",
    "cancelled_annotations",
    "total_predictions",
    "annotations_ids",
    "predictions_model_versions",
    "file_upload",
    "storage_filename",
    "created_at",
    "updated_at",
    "updated_by",
    "completed_at",
    "avg_lead_time",
    "draft_exists",
)
_OF_LABELS = ("annotators", "annotations_results")  # empty until the task is labelled
HIDDEN_IN_GRIDS = [f"tasks:{name}" for name in (*_UNUSED, *_OF_LABELS)]
HIDDEN_IN_LISTS = [f"tasks:{name}" for name in _UNUSED]
GRID_WIDTH = 4  # images in a row
# CSS pixels. The choice stands at the end of an annotation's result, which fits in one line, and in the middle of a
# prediction's, which takes two; the picture follows within 1,400.
WIDTHS = {"tasks:annotations_results": 460, "tasks:predictions_results": 290}
NEXT, CHECK, SELECTION = "NEAT: next batch", "NEAT: check these labels", "NEAT: selection"  # their titles
NO_TASK = 0  # an id that no task has


class _Client(Protocol):
    """The part of LabelStudioClient that is used here."""

    def tabs(self, project: int) -> list[Json]: ...

    def create_tab(self, project: int, data: Mapping[str, Any]) -> int: ...

    def change_tab(self, project: int, tab: int, data: Mapping[str, Any]) -> None: ...

    def delete_tab(self, tab: int) -> None: ...


@dataclass(frozen=True)
class Tab:
    """A tab's wanted state: a grid of images, or a list of labels."""

    title: str
    ordering: tuple[str, ...] = ()  # Label Studio's names, such as "-tasks:predictions_score"
    tasks: tuple[int, ...] | None = None  # exactly these tasks; None = all without an answer
    labels: bool = False  # a list of the tasks' labels

    def data(self) -> Json:
        """The tab in Label Studio's JSON."""
        hidden = HIDDEN_IN_LISTS if self.labels else HIDDEN_IN_GRIDS
        data: Json = {
            "type": "list" if self.labels else "grid",
            "target": "tasks",
            "title": self.title,
            "filters": self._filters(),
            "hiddenColumns": {"explore": list(hidden), "labeling": list(hidden)},
            "gridWidth": GRID_WIDTH,
            "columnsWidth": dict(WIDTHS),
        }
        return data | ({"ordering": list(self.ordering)} if self.ordering else {})

    def _filters(self) -> Json:
        if self.tasks is None:
            unanswered = [_filter(name, 0) for name in ("total_annotations", "cancelled_annotations")]
            return {"conjunction": "and", "items": unanswered}
        # One line for each task. Label Studio's server also takes a list of ids, but its page does not know
        # that operator: it would show the wrong one and save it.
        return {"conjunction": "or", "items": [_filter("id", task) for task in self.tasks or (NO_TASK,)]}


def ensure(
    client: _Client, project: int, wanted: Tab, known: int | None, there: Sequence[Json] | None = None
) -> tuple[int, bool]:
    """The id of the tab, and whether it was just created.

    known: its id as it was noted last. A tab of unlabelled tasks that shows just the opposite order is turned
    round; in one of given tasks they are replaced, unless a person has put other filters there. there: the project's
    tabs as they have just been read. Raises LabelStudioError.
    """
    tabs = client.tabs(project) if there is None else there
    found = _find(tabs, wanted, known)
    if found is not None:
        change = _mended(found, wanted)
        if change is not None:
            client.change_tab(project, int(found["id"]), change)
        _leave_one(client, tabs, wanted, int(found["id"]))
        return int(found["id"]), False
    if not tabs:
        # Label Studio makes its own first tab only in a project without any.
        client.create_tab(project, {"type": "list", "target": "tasks", "title": "Default"})
    made = client.create_tab(project, wanted.data())
    tabs = client.tabs(project)
    first = min((int(tab["id"]) for tab in tabs if _is_untouched(tab, wanted)), default=made)
    _leave_one(client, tabs, wanted, first)
    return first, first == made


def _find(tabs: Sequence[Json], wanted: Tab, known: int | None) -> Json | None:
    for tab in tabs:
        if tab["id"] == known:
            return tab
    return min(
        (tab for tab in tabs if _data(tab).get("title") == wanted.title), key=lambda tab: tab["id"], default=None
    )


def _leave_one(client: _Client, tabs: Sequence[Json], wanted: Tab, kept: int) -> None:
    """Delete later, unchanged tabs that another start has created."""
    for tab in tabs:
        if int(tab["id"]) > kept and _is_untouched(tab, wanted):
            with contextlib.suppress(NotFoundInLabelStudio):
                client.delete_tab(int(tab["id"]))


def _is_untouched(tab: Json, wanted: Tab) -> bool:
    """Whether a tab is as this backend creates it."""
    data, ours = _data(tab), wanted.data()
    same = all(data.get(name) == ours[name] for name in ("title", "type", "target", "hiddenColumns"))
    return same and _shows(data, wanted) and _ordering(data) == wanted.ordering


def _mended(tab: Json, wanted: Tab) -> Json | None:
    """The tab's corrected data; None = nothing to correct."""
    data = _data(tab)
    if wanted.tasks is None:
        opposite = tuple(name[1:] if name.startswith("-") else f"-{name}" for name in wanted.ordering)
        turn = bool(opposite) and _ordering(data) == opposite
        return {**data, "ordering": list(wanted.ordering)} if turn else None
    filters = wanted.data()["filters"]
    return (
        {**data, "filters": filters} if _shows(data, wanted) and _lines(data) != _lines({"filters": filters}) else None
    )


def _shows(data: Json, wanted: Tab) -> bool:
    """Whether the tab has filters of this backend, for any tasks, or none at all."""
    if wanted.tasks is None:
        return _lines(data) == _lines(wanted.data())
    several = len(_lines(data)) > 1
    of_ids = all(line[:2] == ("filter:tasks:id", "equal") for line in _lines(data))
    return of_ids and not (several and _filters(data).get("conjunction") != "or")


def _lines(data: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    items = _filters(data).get("items") or []
    return [(item.get("filter"), item.get("operator"), item.get("value"), "child_filter" in item) for item in items]


def _ordering(data: Mapping[str, Any]) -> tuple[Any, ...]:
    """The tab's ordering, which may be anything: Label Studio does not check it."""
    found = data.get("ordering")
    return tuple(found) if isinstance(found, list) else ()


def _filters(data: Mapping[str, Any]) -> Mapping[str, Any]:
    return data.get("filters") or {}


def _data(tab: Json) -> Json:
    return tab.get("data") or {}


def _filter(column: str, value: int) -> Json:
    return {"filter": f"filter:tasks:{column}", "operator": "equal", "type": "Number", "value": value}
