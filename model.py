"""NeatModel for label-studio-ml's own servers: release 1.0.9 of PyPI, and the 2.x line of its repository.

It hands everything to the same service that `neat-backend serve` uses and does no work itself: run
`neat-backend worker` beside it, with the same settings. Prefer `neat-backend serve`: these servers hold
torch in the web process, start a process per webhook (1.0.9), or don't pass on deletions, bulk actions
and new tasks (2.x), so that changes are noticed only when the project is next compared.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from flask import has_request_context, request
from label_studio_ml.model import LabelStudioMLBase

from neat_backend.labelstudio.events import parse_predict, parse_setup, parse_webhook
from neat_backend.records import TRAIN
from neat_backend.service import Service
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
        """As label-studio-ml calls it: `label_config, train_output` in 1.0.9, `project_id, label_config` in 2.x."""
        self._was_set_up = False
        super().__init__(*args, **kwargs)
        if not self._was_set_up:  # 2.x has done it already
            self.setup()

    def setup(self) -> None:
        """Take in the connection when Label Studio's /setup is being answered.

        Both lines make a model for other requests too, and neither hands it all of the body.
        """
        self._was_set_up = True
        if has_request_context() and request.path.rstrip("/").endswith("/setup"):
            version = service().connect(parse_setup(_body()), request.url_root.rstrip("/"))
            if hasattr(self, "set"):  # 2.x answers /setup with it
                self.set("model_version", version)

    def predict(self, tasks: Sequence[dict[str, Any]], context: Any = None, **kwargs: Any) -> list[dict[str, Any]]:
        """One prediction per task, in order."""
        return service().predict(parse_predict({"tasks": list(tasks), "project": self._project()}))

    def fit(self, *args: Any, **kwargs: Any) -> None:
        """File an event: `fit(event, data)` in 2.x, `fit(tasks, event=…, data=…)` in 1.0.9. Trains nothing here.

        Without an event (1.0.9's /train) a training round is asked for.
        """
        event, data = kwargs.get("event"), kwargs.get("data")
        if event is None and args and isinstance(args[0], str):
            event, data = args[0], data if len(args) < 2 else args[1]
        body = {"project": self._project(), **(data or {}), "action": event or TRAIN}
        service().accept(parse_webhook(body))

    def process_event(self, event: str, data: dict[str, Any], job_id: str, additional_params: dict[str, Any]) -> None:
        """1.0.9 asks this for every webhook, and would drop all but four actions."""
        self.fit(event=event, data=data)

    def _project(self) -> Any:
        """The project as the server names it, "ID" or "ID.CREATED"; None = the tasks tell."""
        return getattr(self, "project_id", None) or _body().get("project")


def _body() -> dict[str, Any]:
    """The body of the request that is being answered, if one is."""
    body = request.get_json(silent=True) if has_request_context() else None
    return body if isinstance(body, dict) else {}
