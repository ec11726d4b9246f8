"""Log lines, for people or for programs, with the project, task and event that they are about.

Messages name them as `project %d, task %d`, so a line gets their numbers without further arguments. Lines
of other packages and libraries get those that `about` has set for their thread.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any

PLAIN = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
IDS = ("project", "task", "event")

_about: ContextVar[Mapping[str, int]] = ContextVar("about", default={})  # noqa: B039 (never changed in place)
# What ends a line, moves a terminal's cursor or turns the direction of writing.
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069]")
_PLACE = re.compile(r"%(?:%|[-#0 +]*(?:\*|\d+)?(?:\.(?:\*|\d+))?[a-zA-Z])")
_NAMED = re.compile(rf"\b({'|'.join(IDS)}) $")


def about(**ids: int) -> None:
    """Set the ids of this thread's lines that name none themselves; without ids: none."""
    _about.set(ids)


def set_up(level: str, form: str) -> None:
    """Log to stderr, a line for each event. form: "plain" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(form))
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("httpx").setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("alembic").setLevel(logging.WARNING)


def formatter(form: str) -> logging.Formatter:
    return JsonLines() if form == "json" else PlainLines(PLAIN)


class PlainLines(logging.Formatter):
    """One line for each event, also if its message has line breaks; a traceback is indented below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return _escaped(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"    {_escaped(line)}" for line in super().formatException(ei).splitlines())


class JsonLines(logging.Formatter):
    """One JSON object a line; docs/monitoring.md names the fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
            "thread": record.threadName,
            **_about.get(),
            **named(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def named(record: logging.LogRecord) -> dict[str, int]:
    """The ids that a message names: `("project %d, task %d: …", 3, 1204)` → project 3, task 1204."""
    found: dict[str, int] = {}
    if not isinstance(record.msg, str) or not isinstance(record.args, tuple):
        return found
    place = 0
    for match in _PLACE.finditer(record.msg):
        if match.group() == "%%":
            continue
        name = _NAMED.search(record.msg, 0, match.start())
        if name and place < len(record.args) and isinstance(value := record.args[place], int):
            found.setdefault(name[1], value)
        place += 1 + match.group().count("*")
    return found
