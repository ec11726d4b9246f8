"""Tabs of the Data Manager: made once, found again, kept right, whoever else makes or changes tabs meanwhile.

Label Studio has no tab that is unique: a name may be used twice, and two callers that look first and then make
one make two. So whoever makes a tab looks again afterwards, and of several untouched ones with the same title
the oldest stays. Each maker comes to the same answer, also where one was killed in between.

What a person has changed is theirs: such a tab is found by its id whatever it is called now, and left alone but
for what its doc says.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from neat_backend.errors import NotFoundInLabelStudio

Json = dict[str, Any]

HIDDEN_COLUMNS = [
    f"tasks:{name}"
    for name in (
        "inner_id",
        "annotations_results",
        "annotations_ids",
        "predictions_results",
        "total_predictions",
        "file_upload",
        "storage_filename",
        "created_at",
        "updated_at",
        "updated_by",
        "avg_lead_time",
        "draft_exists",
    )
]
# Of a tab of labelled tasks: what they are labelled with is shown, what only predictions have is not.
HIDDEN_OF_LABELLED = [
    *(name for name in HIDDEN_COLUMNS if name != "tasks:annotations_results"),
    *(f"tasks:{name}" for name in ("predictions_score", "predictions_model_versions", "cancelled_annotations")),
]
NEXT, CHECK = "NEAT: next batch", "NEAT: check these labels"  # their titles
NO_TASK = 0  # an id that no task has


class _Client(Protocol):
    """The part of LabelStudioClient that is used here."""

    def tabs(self, project: int) -> list[Json]: ...

    def create_tab(self, project: int, data: Mapping[str, Any]) -> int: ...

    def change_tab(self, project: int, tab: int, data: Mapping[str, Any]) -> None: ...

    def delete_tab(self, tab: int) -> None: ...


@dataclass(frozen=True)
class Tab:
    """A tab as it should be."""

    title: str
    ordering: tuple[str, ...] = ()  # Label Studio's names, such as "-tasks:predictions_score"
    tasks: tuple[int, ...] | None = None  # exactly these tasks; None = all that nobody has answered

    def data(self) -> Json:
        """As Label Studio keeps it."""
        data: Json = {
            "type": "list",
            "target": "tasks",
            "title": self.title,
            "filters": self._filters(),
            "hiddenColumns": _hidden(HIDDEN_COLUMNS if self.tasks is None else HIDDEN_OF_LABELLED),
        }
        return data | ({"ordering": list(self.ordering)} if self.ordering else {})

    def _filters(self) -> Json:
        if self.tasks is None:
            unanswered = [_filter(name, 0) for name in ("total_annotations", "cancelled_annotations")]
            return {"conjunction": "and", "items": unanswered}
        # One line for each task. Label Studio's server also takes a list of ids, but its page does not know
        # that operator: it would show the wrong one and save it.
        return {"conjunction": "or", "items": [_filter("id", task) for task in self.tasks or (NO_TASK,)]}


def ensure(client: _Client, project: int, wanted: Tab, known: int | None) -> tuple[int, bool]:
    """The id of the tab, and whether it was made just now.

    known: its id as it was noted last. A tab of unlabelled tasks that shows just the opposite order is turned
    round; in one of given tasks they are replaced, unless a person has put other filters there. Raises
    LabelStudioError.
    """
    tabs = client.tabs(project)
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
    """Delete the later ones that another start has made and nobody has touched."""
    for tab in tabs:
        if int(tab["id"]) > kept and _is_untouched(tab, wanted):
            with contextlib.suppress(NotFoundInLabelStudio):
                client.delete_tab(int(tab["id"]))


def _is_untouched(tab: Json, wanted: Tab) -> bool:
    """Is it one that this backend makes, as it makes them?"""
    data, ours = _data(tab), wanted.data()
    same = all(data.get(name) == ours[name] for name in ("title", "type", "target", "hiddenColumns"))
    return same and _shows(data, wanted) and _ordering(data) == wanted.ordering


def _mended(tab: Json, wanted: Tab) -> Json | None:
    """The tab's data as they should be; None = as they are."""
    data = _data(tab)
    if wanted.tasks is None:
        opposite = tuple(name[1:] if name.startswith("-") else f"-{name}" for name in wanted.ordering)
        turn = bool(opposite) and _ordering(data) == opposite
        return {**data, "ordering": list(wanted.ordering)} if turn else None
    made = wanted.data()
    # As versions before this one made it: it hides the label in question.
    former = data.get("hiddenColumns") == _hidden(HIDDEN_COLUMNS)
    renewed = ("hiddenColumns", "ordering") if former else ()
    if _shows(data, wanted) and _lines(data) != _lines(made):
        renewed = (*renewed, "filters")
    change = {name: made[name] for name in renewed if name in made}
    return {**data, **change} if change else None


def _hidden(columns: Sequence[str]) -> Json:
    return {"explore": list(columns), "labeling": list(columns)}


def _shows(data: Json, wanted: Tab) -> bool:
    """Has it the filters that this backend makes, for whichever tasks, or none at all?"""
    if wanted.tasks is None:
        return _lines(data) == _lines(wanted.data())
    several = len(_lines(data)) > 1
    of_ids = all(line[:2] == ("filter:tasks:id", "equal") for line in _lines(data))
    return of_ids and not (several and _filters(data).get("conjunction") != "or")


def _lines(data: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    items = _filters(data).get("items") or []
    return [(item.get("filter"), item.get("operator"), item.get("value"), "child_filter" in item) for item in items]


def _ordering(data: Mapping[str, Any]) -> tuple[Any, ...]:
    """Label Studio keeps whatever it is given."""
    found = data.get("ordering")
    return tuple(found) if isinstance(found, list) else ()


def _filters(data: Mapping[str, Any]) -> Mapping[str, Any]:
    return data.get("filters") or {}


def _data(tab: Json) -> Json:
    return tab.get("data") or {}


def _filter(column: str, value: int) -> Json:
    return {"filter": f"filter:tasks:{column}", "operator": "equal", "type": "Number", "value": value}
