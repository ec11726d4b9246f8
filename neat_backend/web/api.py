"""The API for people and programs: what `neat-backend status` and the dashboard show, as JSON."""

from __future__ import annotations

from flask import Blueprint, jsonify, request
from flask.typing import ResponseReturnValue

from neat_backend.errors import BadRequest
from neat_backend.service import Service

MOST_ROWS = 10_000


def routes(service: Service) -> Blueprint:
    blueprint = Blueprint("api", __name__, url_prefix="/api")

    @blueprint.get("/projects")
    def projects() -> ResponseReturnValue:
        return jsonify(projects=service.projects())

    @blueprint.get("/projects/<int:project>")
    def status(project: int) -> ResponseReturnValue:
        return jsonify(service.status(project))

    @blueprint.get("/projects/<int:project>/ranking")
    def ranking(project: int) -> ResponseReturnValue:
        limit = _number("limit", 100, MOST_ROWS)
        offset = _number("offset", 0, 2**31)
        return jsonify(ranking=service.ranking(project, limit, offset), limit=limit, offset=offset)

    @blueprint.get("/projects/<int:project>/rounds")
    def rounds(project: int) -> ResponseReturnValue:
        return jsonify(rounds=service.rounds(project))

    @blueprint.get("/projects/<int:project>/failed-images")
    def failed_images(project: int) -> ResponseReturnValue:
        return jsonify(failed_images=service.failed_images(project))

    @blueprint.post("/projects/<int:project>/train")
    def train(project: int) -> ResponseReturnValue:
        return jsonify(event=service.train(project)), 202

    @blueprint.post("/projects/<int:project>/sync")
    def sync(project: int) -> ResponseReturnValue:
        return jsonify(event=service.sync(project)), 202

    @blueprint.post("/projects/<int:project>/retry-images")
    def retry_images(project: int) -> ResponseReturnValue:
        return jsonify(event=service.retry_images(project)), 202

    return blueprint


def _number(name: str, default: int, most: int) -> int:
    text = request.args.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text[:12]) > most:
        raise BadRequest(f"{name}={text!r}: give a whole number from 0 to {most}", name)
    return int(text)
