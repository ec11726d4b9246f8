"""A test client that holds every answer to what the app says of itself at /api/openapi.json."""

from __future__ import annotations

import json
from typing import Any

from flask.testing import FlaskClient
from jsonschema import Draft202012Validator, FormatChecker
from werkzeug.exceptions import HTTPException
from werkzeug.test import TestResponse

from neat_backend.web.openapi import describe, path

_ERROR = {"$ref": "#/components/schemas/Error"}


class DescribedClient(FlaskClient):
    """Fails where an answer has a status, a media type or a shape that the description lacks."""

    def open(self, *args: Any, **kwargs: Any) -> TestResponse:
        answer = super().open(*args, **kwargs)
        protected = bool(self.application.extensions["neat"].settings.basic_auth_user)
        check(strict(self.application, protected), self.application, answer)
        return answer


_DOCUMENTS: dict[tuple[object, ...], dict[str, Any]] = {}


def strict(app: Any, protected: bool) -> dict[str, Any]:
    """The description, in which what is answered has no field that is not named. Apps of the same routes share one."""
    key = (protected, *sorted(rule.rule for rule in app.url_map.iter_rules()))
    if key not in _DOCUMENTS:
        _DOCUMENTS[key] = _described(app, protected)
    return _DOCUMENTS[key]


def _described(app: Any, protected: bool) -> dict[str, Any]:
    document = describe(app, protected)
    for name, schema in document["components"]["schemas"].items():
        if not name.endswith("Body") and schema.get("type") == "object":
            schema["additionalProperties"] = False
    return document


def check(document: dict[str, Any], app: Any, answer: TestResponse) -> None:
    """AssertionError unless the answer is as described."""
    request = answer.request
    where = f"{request.method} {request.path} → {answer.status_code}"
    if request.method not in ("GET", "POST"):
        return
    try:
        rule, _ = app.url_map.bind("localhost").match(request.path, request.method, return_rule=True)
    except HTTPException:
        _fits(document, _ERROR, answer.json, where)
        return
    operation = document["paths"][path(rule.rule)][request.method.lower()]
    given = operation["responses"].get(str(answer.status_code))
    if answer.status_code == 500:
        return  # no route documents it; the test that causes it knows why
    assert given is not None, f"{where} is not in neat_backend/web/openapi/operations.py"
    if "$ref" in given:
        given = document["components"]["responses"][given["$ref"].rpartition("/")[2]]
    content = given.get("content", {})
    if not content:
        assert not answer.data, f"{where} has a body that is not described"
        return
    assert answer.mimetype in content, f"{where}: {answer.mimetype} is not described"
    if answer.mimetype == "application/json":
        _fits(document, content["application/json"]["schema"], answer.json, where)


def _fits(document: dict[str, Any], schema: dict[str, Any], body: Any, where: str) -> None:
    whole = {**schema, "components": document["components"]}
    for error in Draft202012Validator(whole, format_checker=FormatChecker()).iter_errors(body):
        at = "/".join(map(str, error.absolute_path))
        raise AssertionError(f"{where} differs from neat_backend/web/openapi/responses.py at {at!r}: {error.message}")
    json.dumps(body, allow_nan=False)
