"""Predictions and pages of the order, from the stored ranking.

A `ranking` is what `snapshots.read_ranking` gives: columns of all unlabelled tasks, ascending by `ids`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from neat_backend.errors import BadRequest
from neat_backend.labelstudio.events import project_id
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.labelstudio.publisher import reasons, result, score
from neat_backend.records import Project, Ranked
from neat_backend.service.status import NO_VERSION
from neat_backend.store import snapshots
from neat_backend.store.snapshots import Head


def predictions(
    project: Project,
    tasks: Sequence[Mapping[str, Any]],
    ranking: dict[str, Any] | None,
    config: LabelConfig | None,
    choice_of: Callable[[Ranked], str | None],
) -> list[dict[str, Any]]:
    """One prediction per task, in order; a task without a score gets one that puts it last.

    config: None = no choice is pre-filled. choice_of: the choice to pre-fill for a task, None for none.
    """
    version = project.model_version or NO_VERSION
    answers = []
    for task in tasks:
        at = _place(ranking, task["id"])
        filled: list[dict[str, Any]] = []
        priority = 0.0
        if ranking is not None and at is not None:
            scored = snapshots.row(ranking, at, at)
            priority = scored.priority
            if config is not None:
                choice = choice_of(scored)
                filled = result(choice if choice in config.classes else None, config, reasons(scored))
        answers.append({"result": filled, "score": score(priority, project.sampling), "model_version": version})
    return answers


def project_of(tasks: Sequence[Mapping[str, Any]]) -> int:
    """The project that the first task with one names. Raises BadRequest."""
    for at, task in enumerate(tasks):
        if task.get("project") is not None:
            return project_id(task["project"], f"tasks[{at}].project")
    raise BadRequest("neither the body nor a task names the project", "project")


def scored(ranking: dict[str, Any] | None, ids: set[int]) -> set[int]:
    """Those of `ids` that have a score."""
    if ranking is None or not ids:
        return set()
    wanted = np.fromiter(ids, dtype=np.int64, count=len(ids))
    return {int(task) for task in wanted[np.isin(wanted, ranking["ids"])]}


def order(ranking: dict[str, Any], head: Head | None) -> np.ndarray:
    """Indices into the ranking's columns, best first: the head in its order, then by priority and smaller id."""
    ids: np.ndarray = ranking["ids"]  # [n], ascending
    tasks = np.array([task.task for task in head.tasks] if head else [], np.int64)
    first = np.searchsorted(ids, tasks)  # a ranking that was read with its head has them all
    rest = np.ones(len(ids), bool)
    rest[first] = False
    at = np.flatnonzero(rest)
    return np.concatenate([first, at[np.lexsort((ids[at], -ranking["priority"][at]))]])


def _place(ranking: dict[str, Any] | None, task: int | None) -> int | None:
    """Index of the task in the ranking's columns; None if it has no score."""
    if ranking is None or task is None:
        return None
    ids: np.ndarray = ranking["ids"]
    at = int(np.searchsorted(ids, task))
    return at if at < len(ids) and ids[at] == task else None
