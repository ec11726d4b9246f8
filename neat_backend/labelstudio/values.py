"""Single values of Label Studio's JSON: checked, with the field's name in the error (BadRequest)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from neat_backend.errors import BadRequest

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def project_id(value: Any, field: str) -> int:
    """A project's id, from `7`, `"7"` or Label Studio's `"7.1700000000"` (ID.CREATED)."""
    if isinstance(value, str):
        head = value.partition(".")[0]
        if re.fullmatch(r"[0-9]{1,18}", head):
            value = int(head)
    return id_of(value, field)


def timestamp(value: Any, field: str) -> datetime:
    """An ISO time as a datetime in UTC; missing = the epoch, without an offset = UTC."""
    if value in (None, ""):
        return EPOCH
    if not isinstance(value, str):
        raise BadRequest(f"{field} must be a time in ISO format", field)
    try:
        # Python 3.10 reads neither "Z" nor other than 3 or 6 digits after the point.
        text = re.sub(r"\.(\d+)", lambda match: "." + match[1][:6].ljust(6, "0"), value.strip())
        moment = datetime.fromisoformat(re.sub(r"[zZ]$", "+00:00", text))
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise BadRequest(f"{field} must be a time in ISO format", field) from None


def annotator_of(value: Any, path: str) -> int | None:
    value = bare_id(value)
    return None if value is None else id_of(value, path)


def bare_id(value: Any) -> Any:
    """The id of something that comes as an id or as an object with one."""
    return value.get("id") if isinstance(value, Mapping) else value


def extra_params(value: Any) -> dict[str, Any]:
    """What the user typed in the form of the connection. Raises BadRequest."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise BadRequest('extra params must be JSON, such as {"k": 10}', "extra_params") from None
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadRequest('extra params must be a JSON object, such as {"k": 10}', "extra_params")
    return dict(value)


def items_of(payload: Mapping[str, Any], *names: str) -> list[Mapping[str, Any]]:
    for name in names:
        value = payload.get(name)
        if value is not None:
            return value if isinstance(value, list) else [value]
    return []


def check_times(item: Mapping[str, Any], path: str) -> None:
    for key in ("created_at", "updated_at"):
        timestamp(item.get(key), f"{path}.{key}")


def object_of(value: Any, path: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadRequest(f"{path or 'the body'} must be a JSON object", path)
    return value


def text_of(value: Any, path: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"{path} must be text", path)
    return value


def id_of(value: Any, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63:
        raise BadRequest(f"{path} must be an id, a whole number above 0", path)
    return value


def count_of(value: Any) -> int:
    return value if isinstance(value, int) else 0
