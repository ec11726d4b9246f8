"""gunicorn's log lines in this package's format."""

from __future__ import annotations

from typing import Any

from gunicorn.glogging import Logger

from neat_backend import logs
from neat_backend.settings import Settings


class GunicornLogger(Logger):
    """For `--logger-class`: NEAT_LOG_FORMAT holds for gunicorn too."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(logs.formatter(Settings.from_env().log_format))
