"""Searching images by a text or by another image, and passing chosen ones to Label Studio.

Similarities are computed here, from the features in the arrays, without PyTorch. A text's features and the tab of
chosen tasks come from the worker (`store.requests`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from neat_backend.errors import BadRequest, StoreError, UnknownTask
from neat_backend.service import similar
from neat_backend.service.service import Service
from neat_backend.store import requests, snapshots
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.requests import SELECTION, TEXT, Request

SHOWN, MOST_FOUND = 48, 200  # images of one search: default, maximum
MOST_SELECTED = 100  # tasks in the tab; each is a line among its filters
LONGEST_TEXT = 200  # characters
LOOK_SECONDS = 0.1  # between reads of the worker's answer


class Search:
    """Searches the projects of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def like(self, project: int, task: int, limit: int) -> dict[str, Any]:
        """The images most similar to a task's, itself left out, JSON-ready.

        Raises UnknownProject, UnknownTask for one without features, or StoreError while the features are downloaded.
        """
        arrays, kind = self._features(project)
        found = arrays.one(kind, task) if kind and 0 < task < 2**63 else None
        if found is None:
            raise UnknownTask(f"project {project} has no features of a task {task} here (yet)", "task")
        return {"task": task, "found": similar.nearest(arrays, kind, found[1], limit, without=task)}

    def text(self, project: int, text: str, limit: int) -> dict[str, Any]:
        """The images most similar to a text, JSON-ready; `found` is None while the worker has not answered.

        `problem` says why the text can't be searched for. Raises BadRequest, UnknownProject, StoreError as above.
        """
        text = " ".join(text.split())
        if not 0 < len(text) <= LONGEST_TEXT:
            raise BadRequest(f"text has {len(text)} characters: give 1 to {LONGEST_TEXT}", "text")
        arrays, kind = self._features(project)
        answered = self._request(project, TEXT, f"{kind} {text}", text)
        result: dict[str, Any] = {"text": text, "found": None, "problem": answered.error}
        if answered.answer is not None:
            feature = np.frombuffer(answered.answer, "<f4")
            result["found"] = similar.nearest(arrays, kind, feature, limit)
        return result

    def select(self, project: int, tasks: Sequence[int]) -> dict[str, Any]:
        """Request Label Studio's tab “NEAT: selection” of these tasks from the worker; the result, JSON-ready.

        Of more than MOST_SELECTED, those that come first in the order, then those that are not in it. `tab` is None
        while the worker has not answered. Raises BadRequest, UnknownProject, or StoreError with the worker's reason.
        """
        wanted = list(dict.fromkeys(tasks))
        if not wanted:
            raise BadRequest("tasks is empty: name at least one task", "tasks")
        chosen = self._first(project, wanted)
        body = json.dumps(chosen)
        answered = self._request(project, SELECTION, "", body, again=True)
        if answered.error:
            raise StoreError(f"The tab could not be made: {answered.error}")
        tab = None if answered.answer is None else int(answered.answer)
        return {"tasks": len(chosen), "left_out": len(wanted) - len(chosen), "tab": tab}

    def _features(self, project: int) -> tuple[ProjectArrays, str]:
        arrays = self._service.arrays_with_features(project)
        return arrays, snapshots.features_kind(arrays, snapshots.read_head(arrays))

    def _first(self, project: int, tasks: list[int]) -> list[int]:
        if len(tasks) <= MOST_SELECTED:
            return tasks
        arrays = self._service.arrays_with_features(project)
        places = snapshots.places(arrays, snapshots.read_head(arrays), tasks)
        last = len(places) + max((one.rank for one in places.values()), default=0)
        return sorted(tasks, key=lambda task: (places[task].rank if task in places else last, task))[:MOST_SELECTED]

    def _request(self, project: int, kind: str, name: str, body: str, again: bool = False) -> Request:
        """File a request and wait for the worker's answer, for a bounded time. again: ignore an earlier answer."""
        database = self._service.database
        with database.read() as conn:
            known = requests.get(conn, project, kind, name)
        if known is None or again:
            with database.begin() as conn:
                requests.ask(conn, project, kind, name, body)
        until = time.monotonic() + self._service.settings.predict_wait_seconds
        while True:
            with database.read() as conn:
                found = requests.get(conn, project, kind, name)
            if found is None or found.answer is not None or found.error or time.monotonic() > until:
                return found or Request(kind, name, body, None, "")
            time.sleep(LOOK_SECONDS)
