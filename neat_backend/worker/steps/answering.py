"""Answers requests of the web that need the worker: features of a text, a tab of chosen tasks."""

from __future__ import annotations

import json
import logging

from neat_backend.compute.embedding import ReadingEncoder
from neat_backend.errors import NeatError
from neat_backend.store import requests
from neat_backend.store.requests import Request
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.data_manager import Tabs
from neat_backend.worker.steps.step import Step

log = logging.getLogger(__name__)


class Answering(Step):
    """Answers one project's requests; `step` from one thread."""

    name = "answer"
    again_at_once = False
    in_background = True

    def __init__(self, context: Context, encoder: ReadingEncoder, tabs: Tabs) -> None:
        self._context, self._encoder, self._tabs = context, encoder, tabs

    def _work(self) -> bool:
        """Answer the oldest request; True if there was one."""
        with self._context.database.read() as conn:
            waiting = requests.waiting(conn, self._context.project)
        if not waiting:
            return False
        answer, error = None, ""
        try:
            answer = self._answer(waiting[0])
        except NeatError as failed:
            error = str(failed) or type(failed).__name__
            log.warning("project %d: a request could not be answered: %s", self._context.project, error)
        with self._context.database.begin() as conn:
            requests.answer(conn, self._context.project, waiting[0], answer, error)
        return True

    def _answer(self, request: Request) -> bytes:
        """The answer: for a text its features, float32 in little-endian order; for a selection the tab's number."""
        if request.kind == requests.TEXT:
            found = self._encoder.encode_names([request.body])
            if found is None:
                raise NeatError(
                    "the encoder has no text side, so images can't be searched by words; an encoder of CLIP has one:"
                    " NEAT_ENCODER=clip:ViT-B-32/openai"
                )
            return found[0].astype("<f4").tobytes()
        return str(self._tabs.select(json.loads(request.body))).encode()
