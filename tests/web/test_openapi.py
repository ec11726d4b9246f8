"""The description of the routes: complete, valid, and the same as what they do."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from jsonschema import Draft202012Validator

from neat_backend.service.service import Service
from neat_backend.web.app import create_app
from neat_backend.web.openapi import describe, path, said
from neat_backend.web.openapi.operations import OPERATIONS
from tests.described import DescribedClient, strict
from tests.serving import make_database, make_settings

WEBHOOKS = {file.stem: file for file in (Path(__file__).parents[1] / "labelstudio" / "webhooks").glob("*.json")}


def document(app: Flask) -> dict[str, Any]:
    return describe(app, False)


def test_every_route_is_described_and_nothing_else(app: Flask) -> None:
    there = {
        (path(rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    described = {(address, method) for address, item in document(app)["paths"].items() for method in item}
    assert described == there, "neat_backend/web/openapi/operations.py describes the routes"


def test_it_is_served_and_is_openapi(client: FlaskClient, app: Flask) -> None:
    found = client.get("/api/openapi.json").json
    assert found == document(app)
    assert found["openapi"].startswith("3.1")
    for schema in found["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    ids = [operation["operationId"] for item in found["paths"].values() for operation in item.values()]
    assert len(set(ids)) == len(ids)
    assert all(name.isidentifier() for name in ids)
    for address, item in found["paths"].items():
        for operation in item.values():
            named = {one["name"] for one in operation.get("parameters", []) if one["in"] == "path"}
            assert named == {part[1:-1] for part in address.split("/") if part.startswith("{")}


def test_every_reference_leads_somewhere(app: Flask) -> None:
    found = document(app)

    def follow(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                there: Any = found
                for part in value["$ref"].removeprefix("#/").split("/"):
                    there = there[part]
            for one in value.values():
                follow(one)
        elif isinstance(value, list):
            for one in value:
                follow(one)

    follow(found)


def test_credentials_are_part_of_it_where_they_are_asked_for(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, basic_auth_user="me", basic_auth_pass="secret")
    database = make_database(settings)
    app = create_app(settings, database)
    app.test_client_class = DescribedClient
    client = app.test_client()
    for address in ("/api/openapi.json", "/api/docs"):
        assert client.get(address).status_code == 401
    header = {"Authorization": "Basic " + base64.b64encode(b"me:secret").decode()}
    found = client.get("/api/openapi.json", headers=header).json
    assert found is not None
    assert found["security"] == [{"basic": []}]
    for address, item in found["paths"].items():
        for operation in item.values():
            assert ("401" in operation["responses"]) == (address != "/health")
    assert found["paths"]["/health"]["get"]["security"] == []
    assert client.get("/health").status_code == 200
    database.dispose()


def test_the_page_names_every_route_and_shape_and_needs_nothing_from_elsewhere(client: FlaskClient, app: Flask) -> None:
    answer = client.get("/api/docs")
    for operation in OPERATIONS:
        assert f"<code>{operation.method} {path(operation.rule)}</code>" in answer.text
    for name in document(app)["components"]["schemas"]:
        assert f'id="schema-{name}"' in answer.text
    assert "http://" not in answer.text
    assert "https://" not in answer.text
    assert "<script>" not in answer.text
    assert " style=" not in answer.text
    assert client.get("/api/docs", headers={"If-None-Match": answer.headers["ETag"]}).status_code == 304


@pytest.mark.parametrize("name", sorted(WEBHOOKS))
def test_what_label_studio_really_sends_fits_what_is_said_of_it(app: Flask, name: str) -> None:
    address = {"setup": "/setup", "predict": "/predict"}.get(name, "/webhook")
    found = document(app)
    body = found["paths"][address]["post"]["requestBody"]["content"]["application/json"]["schema"]
    Draft202012Validator({**body, "components": found["components"]}).validate(json.loads(WEBHOOKS[name].read_text()))


def test_an_answer_that_is_not_as_described_fails_a_test(app: Flask, client: FlaskClient, service: Service) -> None:
    strict(app, False)  # kept for this app
    service.projects = lambda: [{"id": "seven"}]  # type: ignore[method-assign, assignment, list-item]
    with pytest.raises(AssertionError, match=r"differs from neat_backend/web/openapi/responses\.py"):
        client.get("/api/projects")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"$ref": "#/components/schemas/Round"}, "Round"),
        ({"type": "array", "items": {"type": "string"}}, "list of text"),
        ({"anyOf": [{"type": "number"}, {"type": "null"}]}, "number or nothing"),
        ({"enum": ["csv", "jsonl"], "type": "string"}, "“csv” or “jsonl”"),
        ({"const": "UP"}, "“UP”"),
        ({"type": "integer", "minimum": 0, "maximum": 9}, "whole number from 0 to 9"),
        ({"type": "string", "format": "date-time"}, "time, ISO 8601"),
        ({}, "anything"),
    ],
)
def test_shapes_in_words(schema: dict[str, Any], words: str) -> None:
    assert said(schema) == words
