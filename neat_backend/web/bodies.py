"""Request bodies as JSON, or a BadRequest in words."""

from __future__ import annotations

import json
from typing import Any

from flask import request

from neat_backend.errors import BadRequest


def json_body() -> Any:
    """The request's JSON. Raises BadRequest for another content type or what is no JSON."""
    if not request.is_json:
        raise BadRequest("send JSON, with the header Content-Type: application/json")
    try:
        return json.loads(request.get_data(cache=False))
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadRequest(f"the body is not JSON: {reason}") from None
