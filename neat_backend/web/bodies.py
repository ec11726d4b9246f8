"""Parsing of JSON request bodies."""

from __future__ import annotations

import json
import threading
from typing import Any, NoReturn

from flask import Flask, g, request
from werkzeug.exceptions import ServiceUnavailable

from neat_backend.errors import BadRequest

STRUCTURE = (b"{", b"[", b",", b":")  # counted within texts too
MAX_PARTS = 4_000_000  # a value of two bytes takes a hundred in memory; 1,000,000 deleted tasks need this many
LARGE_BYTES = 1024 * 1024
WAIT_SECONDS, RETRY_AFTER_SECONDS = 10.0, 5
MAX_DEPTH = 100  # stored bodies must be readable by a process with a smaller stack too

_turn = threading.Semaphore()


def json_body() -> Any:
    """The request's JSON. Raises BadRequest for another content type, invalid JSON, or too deep nesting.

    One large body at a time: other requests wait, and get ServiceUnavailable after WAIT_SECONDS.
    """
    if not request.is_json:
        raise BadRequest("send JSON, with the header Content-Type: application/json")
    data = request.get_data(cache=False)
    if sum(data.count(sign) for sign in STRUCTURE) > MAX_PARTS:
        raise BadRequest(f"the body has more than {MAX_PARTS:,} values, the most here: send fewer at a time")
    if len(data) > LARGE_BYTES and "large_body" not in g:
        _take_turn()
    try:
        body = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadRequest(f"the body is not JSON: {reason}") from None
    level, depth = [body], 0
    while level := [each for one in level if isinstance(one, dict | list) for each in _parts(one)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise BadRequest(f"the body is nested more than {MAX_DEPTH} deep")
    return body


def one_large_at_a_time(app: Flask) -> None:
    """Release the next waiting large body when a request with one has been answered."""

    @app.teardown_request
    def let_the_next(_: BaseException | None) -> None:
        if g.pop("large_body", False):
            _turn.release()


def _take_turn() -> None:
    if not _turn.acquire(timeout=WAIT_SECONDS):
        raise ServiceUnavailable("other large bodies are being taken in just now", retry_after=RETRY_AFTER_SECONDS)
    g.large_body = True


def _parts(of: dict[str, Any] | list[Any]) -> list[Any]:
    """The items that may contain others themselves."""
    return [one for one in (of.values() if isinstance(of, dict) else of) if isinstance(one, dict | list)]


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
