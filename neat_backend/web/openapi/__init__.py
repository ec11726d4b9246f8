"""One description of every route that the app serves, as OpenAPI 3.1: for programs, and as a page for people.

`answers.py` and `requests.py` have the models, `operations.py` the routes; this module makes the document of them.
Tests compare it with the app's URL map and with every answer in the tests of `web/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from flask import Blueprint, Flask, Response, current_app, jsonify, render_template, request
from flask.typing import ResponseReturnValue
from pydantic.json_schema import models_json_schema

from neat_backend import __version__
from neat_backend.web.openapi.operations import OPERATIONS, PAGE, TAGS, Operation
from neat_backend.web.openapi.request_bodies import BODIES
from neat_backend.web.openapi.responses import ANSWERS

VERSION = "3.1.0"
_REF = "#/components/schemas/{model}"
_ABOUT = (
    "The backend's API. Everything but `/health` needs the user name and password of"
    " `BASIC_AUTH_USER` and `BASIC_AUTH_PASS`, where they are set; `/webhook` also takes the secret that Label Studio"
    " was given for the project. Errors are JSON with `error`, in plain words, and `field`, the part of the request"
    " that is wrong."
)
_REFUSALS = {  # status → what it means, of every route that can give it
    400: "The request can't be understood; the answer names the field.",
    401: "User name and password are missing or wrong.",
    403: "Posted from a page of another site, sent from another machine without credentials, or with the secret of"
    " another project's webhook.",
    404: "No such project, task or address here.",
    413: "The body is too large.",
    503: "The database can't be used just now; try again after `Retry-After` seconds.",
}


def routes(protected: bool) -> Blueprint:
    """The document and its page. protected: whether credentials are required."""
    blueprint = Blueprint("openapi", __name__)

    @blueprint.get("/api/openapi.json")
    def document() -> ResponseReturnValue:
        return jsonify(describe(current_app, protected))

    @blueprint.get("/api/docs")
    def page() -> ResponseReturnValue:
        described = describe(current_app, protected)
        html = render_template(
            "docs.html", version=__version__, doc=described, sections=_sections(described), said=said
        )
        answer = Response(html, mimetype="text/html")
        answer.headers["Cache-Control"] = "private, no-cache"
        answer.add_etag()
        return answer.make_conditional(request)

    return blueprint


def describe(app: Flask, protected: bool) -> dict[str, Any]:
    """The OpenAPI document of the app, JSON-ready."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in [*OPERATIONS, *_pages(app)]:
        item = paths.setdefault(path(operation.rule), {})
        item[operation.method.lower()] = _operation(operation, protected)
    _, schemas = models_json_schema(
        [*((model, "serialization") for model in ANSWERS), *((model, "validation") for model in BODIES)],
        ref_template=_REF,
    )
    document: dict[str, Any] = {
        "openapi": VERSION,
        "info": {"title": "NEAT backend", "version": __version__, "description": _ABOUT},
        "tags": [{"name": name, "description": words} for name, words in TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "responses": {
                f"Refused{status}": {"description": words, "content": _json("Error")}
                for status, words in _REFUSALS.items()
            },
        },
    }
    if protected:
        document["components"]["securitySchemes"] = {"basic": {"type": "http", "scheme": "basic"}}
        document["security"] = [{"basic": []}]
    return document


def path(rule: str) -> str:
    """Flask's `/projects/<int:project>` as `/projects/{project}`."""
    return re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule)


def said(schema: dict[str, Any]) -> str:
    """A schema in words: `list of Ranked`, `text or nothing`, `“csv” or “jsonl”`."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(said(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"“{one}”" for one in schema["enum"])
    if "const" in schema:
        return f"“{schema['const']}”"
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {said(schema.get('items', {}))}"
    words = {"string": "text", "integer": "whole number", "boolean": "true or false", "null": "nothing"}
    limits = [f"from {schema['minimum']}"] if "minimum" in schema else []
    limits += [f"to {schema['maximum']}"] if "maximum" in schema else []
    name = "time, ISO 8601" if schema.get("format") == "date-time" else words.get(kind, kind)
    return " ".join([name, *limits])


def _operation(operation: Operation, protected: bool) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [*_in_path(operation.rule), *(dict(one) for one in operation.query)],
        "responses": {},
    }
    if operation.about:
        described["description"] = operation.about
    if not described["parameters"]:
        del described["parameters"]
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _json(operation.body.__name__)}
    for status, given in operation.answers.items():
        content = _json(given.__name__) if isinstance(given, type) else {kind: {"schema": {}} for kind in given}
        words = operation.said.get(status, "Success.")
        described["responses"][str(status)] = {"description": words, "content": content}
    if not operation.open and protected:
        described["responses"]["401"] = {"$ref": "#/components/responses/Refused401"}
    for status in operation.refusals():
        described["responses"].setdefault(str(status), {"$ref": f"#/components/responses/Refused{status}"})
    if operation.open and protected:
        described["security"] = []
    return described


def _in_path(rule: str) -> Iterator[dict[str, Any]]:
    for kind, name in re.findall(r"<(?:(\w+):)?(\w+)>", rule):
        schema: dict[str, Any] = {"type": "integer", "minimum": 0} if kind == "int" else {"type": "string"}
        if kind != "int":
            schema["minLength"] = 1
        yield {"name": name, "in": "path", "required": True, "schema": schema}


def _json(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REF.format(model=model)}}}


def _pages(app: Flask) -> Iterator[Operation]:
    """The dashboard's pages, which are for people: without details."""
    listed = {operation.rule for operation in OPERATIONS}
    for rule in app.url_map.iter_rules():
        if rule.endpoint.startswith("pages.") and rule.rule not in listed:
            name = rule.endpoint.partition(".")[2].replace("_", " ")
            for method in sorted((rule.methods or set()) & {"GET", "POST"}):
                yield Operation(
                    method,
                    rule.rule,
                    "pages",
                    f"The dashboard: {name}",
                    {200: ("text/html",), 304: (), 400: PAGE, 404: PAGE},
                    said={304: "As it was at the last time.", 400: "It can't be shown now.", 404: "It is not here."},
                )


def _sections(document: dict[str, Any]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """For the page: tag, description, operations with every `$ref` to an answer resolved."""
    found: dict[str, list[dict[str, Any]]] = {tag["name"]: [] for tag in document["tags"]}
    for address, item in document["paths"].items():
        for method, operation in item.items():
            given = {
                status: document["components"]["responses"][one["$ref"].rpartition("/")[2]] if "$ref" in one else one
                for status, one in sorted(operation["responses"].items())
            }
            row = {**operation, "method": method.upper(), "path": address, "responses": given}
            found[operation["tags"][0]].append(row)
    return [(tag["name"], tag["description"], found[tag["name"]]) for tag in document["tags"]]
