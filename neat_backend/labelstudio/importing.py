"""Importing predictions: all in one call, or one by one where Label Studio's database can't take that call.

At each import Label Studio 1.23 looks at every task of the project, and names them all in one statement. SQLite takes
250,000 values at most (some builds 32,766), so in a larger project the import fails. Its feature flag
`fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short` makes it look at the named tasks alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from neat_backend.errors import LabelStudioUnavailable, NotFoundInLabelStudio, PredictionsRejected
from neat_backend.labelstudio.transport import Transport

log = logging.getLogger(__name__)

FLAG = "fflag_fix_back_4620_memory_efficient_predictions_import_08012025_short"
TOO_LARGE = "too many SQL variables"  # SQLite's words, in Label Studio's answer
Predictions = Sequence[Mapping[str, Any]]


class Imports:
    """Imports predictions into projects; safe to share between threads."""

    def __init__(self, transport: Transport, landed: Callable[[int, str, Sequence[int]], set[int]]) -> None:
        """landed: project, version, tasks → those of the tasks that have a prediction of the version."""
        self._transport, self._landed = transport, landed
        self._one_by_one: set[int] = set()  # projects that are too large for one call

    def are_one_by_one(self, project: int) -> bool:
        return project in self._one_by_one

    def send(self, project: int, predictions: Predictions) -> int:
        """As `LabelStudioClient.import_predictions`."""
        if project in self._one_by_one:
            return self._send_one_by_one(predictions)
        seconds = self._transport.timeout_seconds + 0.01 * len(predictions)
        path = f"/api/projects/{project}/import/predictions"
        try:
            body = self._transport.send(
                "POST", path, list(predictions), timeout_seconds=seconds, bad=PredictionsRejected
            )
            return self._transport.read(lambda: int(body["created"]))
        except LabelStudioUnavailable as error:
            if TOO_LARGE not in str(error):
                raise
        log.warning(
            "project %d: it is too large for Label Studio's import on SQLite, so predictions are written one by one,"
            " which is slow; start Label Studio with %s=true",
            project,
            FLAG,
        )
        self._one_by_one.add(project)
        there: set[int] = set()
        for version in {str(one["model_version"]) for one in predictions}:
            there |= self._landed(project, version, [one["task"] for one in predictions])
        return len(there) + self._send_one_by_one([one for one in predictions if one["task"] not in there])

    def _send_one_by_one(self, predictions: Predictions) -> int:
        """How many were created; what Label Studio refuses is left out, as by its import."""
        created = 0
        for prediction in predictions:
            try:
                self._transport.send("POST", "/api/predictions/", dict(prediction), bad=PredictionsRejected)
                created += 1
            except (PredictionsRejected, NotFoundInLabelStudio) as error:
                log.info("task %s: %s", prediction["task"], error)
        return created
