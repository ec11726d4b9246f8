"""Request bodies as JSON, or a BadRequest in words."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from flask import request

from neat_backend.errors import BadRequest

MAX_DEPTH = 100  # what is taken in must be readable again, also by a process with less room on its stack


def json_body() -> Any:
    """The request's JSON. Raises BadRequest for another content type, what is no JSON, or is nested too deeply."""
    if not request.is_json:
        raise BadRequest("send JSON, with the header Content-Type: application/json")
    try:
        body = json.loads(request.get_data(cache=False), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadRequest(f"the body is not JSON: {reason}") from None
    level, depth = [body], 0
    while level := [each for one in level if isinstance(one, dict | list) for each in _parts(one)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise BadRequest(f"the body is nested more than {MAX_DEPTH} deep")
    return body


def _parts(of: dict[str, Any] | list[Any]) -> list[Any]:
    """What is in it and may hold something itself."""
    return [one for one in (of.values() if isinstance(of, dict) else of) if isinstance(one, dict | list)]


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in JSON")
