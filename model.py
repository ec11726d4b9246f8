"""NeatModel for label-studio-ml's own servers: release 1.0.9 of PyPI, and the 2.x line of its repository.

It hands everything to the same service that `neat-backend serve` uses and does no work itself: run
`neat-backend worker` beside it, with the same settings. Prefer `neat-backend serve`: these servers hold
torch in the web process, start a process per webhook (1.0.9), or don't pass on deletions, bulk actions
and new tasks (2.x), so that changes are noticed only when the project is next compared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from flask import has_request_context, request
from label_studio_ml.exceptions import AnswerException
from label_studio_ml.model import LabelStudioMLBase
from werkzeug.exceptions import HTTPException

from neat_backend.errors import BadRequest, StoreError, UnknownProject, UnknownTask
from neat_backend.labelstudio.events import parse_predict, parse_setup, parse_webhook
from neat_backend.records import TRAIN
from neat_backend.service.service import Service
from neat_backend.settings import Settings
from neat_backend.store.database import Database

log = logging.getLogger(__name__)


@lru_cache(maxsize=1)
def service() -> Service:
    """This process's service, with the settings of its environment."""
    settings = Settings.from_env()
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    database = Database(settings.sqlalchemy_url)
    database.migrate()
    return Service(settings, database)


class NeatModel(LabelStudioMLBase):
    """The open-set ranking as a label-studio-ml model."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As label-studio-ml calls it: `label_config, train_output` in 1.0.9, `project_id, label_config` in 2.x.

        Takes in the connection when Label Studio's /setup is being answered: both lines make a model for other
        requests too, and neither hands it all of the body.
        """
        version = None
        if has_request_context() and request.path.rstrip("/").endswith("/setup"):
            with _answered():  # before 2.x reads the label config, and stumbles over a bad one
                version = service().connect(parse_setup(_body()), _our_url())
        super().__init__(*args, **kwargs)
        if version is not None and hasattr(self, "set"):  # 2.x answers /setup with it
            self.set("model_version", version)

    def set_extra_params(self, extra_params: Any) -> None:
        """The connection has them already; 2.x would keep text alone and fail at an object."""

    def predict(self, tasks: Sequence[dict[str, Any]], context: Any = None, **kwargs: Any) -> list[dict[str, Any]]:
        """One prediction per task, in order."""
        with _answered():
            return service().predict(parse_predict({"tasks": tasks, "project": self._project()}), _our_url())

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """File an event: `fit(event, data)` in 2.x, `fit(tasks, event=…, data=…)` in 1.0.9. Trains nothing here.

        Without an event (1.0.9's /train) a training round is asked for.
        """
        event, data = kwargs.get("event"), kwargs.get("data")
        if event is None and args and isinstance(args[0], str):
            event, data = args[0], data if len(args) < 2 else args[1]
        body = {"project": self._project(), **(data or {}), "action": event or TRAIN}
        with _answered():
            service().accept(parse_webhook(body), _our_url())

    def process_event(self, event: str, data: dict[str, Any], job_id: str, additional_params: dict[str, Any]) -> None:
        """1.0.9 asks this for every webhook, and would drop all but four actions."""
        self.fit(event=event, data=data)

    def _project(self) -> Any:
        """The project as the server names it, "ID" or "ID.CREATED"; None = the tasks tell."""
        named = getattr(self, "project_id", None)
        return _body().get("project") if named in (None, "", "None") else named  # "None": 2.x makes that of none


def _our_url() -> str:
    """The address under which we were called, "" outside of a request."""
    return request.url_root.rstrip("/") if has_request_context() else ""


def _body() -> dict[str, Any]:
    """The body of the request that is being answered, if one is."""
    body = request.get_json(silent=True) if has_request_context() else None
    return body if isinstance(body, dict) else {}


class Refusal(AnswerException, HTTPException):  # type: ignore[misc]
    """An answer in place of a traceback: label-studio-ml's routes let the one class through, Flask the other."""

    def __init__(self, words: str, status: int) -> None:
        AnswerException.__init__(self, status, words, {"traceback": ""})
        HTTPException.__init__(self, words, self.answer)


@contextmanager
def _answered() -> Iterator[None]:
    """Let the server answer our errors as our own web does: 400 or 404 in words, 503 while the database is away."""
    try:
        yield
    except (BadRequest, StoreError) as error:
        if not has_request_context():
            raise
        log.warning("%s refused: %s", request.path, error)
        if isinstance(error, StoreError):
            raise Refusal("the backend can't use its database just now; its log says why", 503) from error
        raise Refusal(str(error), 404 if isinstance(error, UnknownProject | UnknownTask) else 400) from error
