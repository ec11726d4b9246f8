"""The routes that Label Studio calls: parse, hand over, answer."""

from __future__ import annotations

import time
from typing import Any

from flask import Blueprint, Response, g, jsonify, request
from flask.typing import ResponseReturnValue

from neat_backend import __version__, logs
from neat_backend.errors import BadRequest
from neat_backend.labelstudio.events import parse_predict, parse_setup, parse_webhook
from neat_backend.labelstudio.values import project_id
from neat_backend.service.service import Service
from neat_backend.web.bodies import json_body
from neat_backend.web.prometheus import Metrics


def routes(service: Service, metrics: Metrics) -> Blueprint:
    blueprint = Blueprint("protocol", __name__)

    @blueprint.get("/health")
    def health() -> ResponseReturnValue:
        # Label Studio waits one second: nothing here may wait for the database.
        return jsonify(status="UP", model_class="NeatModel", version=__version__)

    @blueprint.post("/setup")
    def setup() -> ResponseReturnValue:
        try:
            version = service.connect(parse_setup(json_body()), our_url())
        except BadRequest as error:
            return refused(error)
        return jsonify(model_version=version)

    @blueprint.post("/predict")
    def predict() -> ResponseReturnValue:
        results = service.predict(parse_predict(json_body()), our_url())
        return jsonify(results=results, model_version=results[0]["model_version"] if results else None)

    @blueprint.post("/webhook")
    def webhook() -> ResponseReturnValue:
        began, action, outcome = time.perf_counter(), "", "failed"
        try:
            event = parse_webhook(json_body())
            action = event.action
            logs.about(project=event.project)
            if event.known and g.get("webhook_of", event.project) != event.project:
                outcome = "rejected"
                return jsonify(error="this webhook's secret is that of another project", field="project.id"), 403
            number = service.accept(event, our_url())
            outcome = "accepted" if number else "ignored"
        except BadRequest:
            outcome = "rejected"
            raise
        finally:
            metrics.webhook(action, outcome, time.perf_counter() - began)
        return jsonify(status=outcome, event=number), 201 if number else 200

    @blueprint.post("/train")
    def train() -> ResponseReturnValue:
        # Label Studio before 1.4.1 sends all annotations along; they are read from its API instead.
        return jsonify(event=service.train(body_project())), 201

    @blueprint.route("/versions", methods=["GET", "POST"])
    def versions() -> ResponseReturnValue:
        # Label Studio's GET names no project: then the answer has the versions of all.
        if request.method == "POST":
            return jsonify(versions=service.versions(body_project()))
        project = request.args.get("project")
        return jsonify(versions=service.versions(project_id(project, "project") if project else None))

    @blueprint.post("/job_status")
    def job_status() -> ResponseReturnValue:
        # Label Studio asks about jobs that another backend once named at this address; 410 = removed.
        return jsonify(error="this backend keeps no jobs; see /api/projects", field=""), 410

    @blueprint.get("/metrics")
    def scrape() -> ResponseReturnValue:
        return Response(metrics.text(), content_type="text/plain; version=0.0.4; charset=utf-8")

    return blueprint


def our_url() -> str:
    """The address of this backend in the request."""
    return request.url_root.rstrip("/")


def body_project() -> int:
    body: Any = json_body()
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    return project_id(body.get("project"), "project")


def refused(error: BadRequest) -> ResponseReturnValue:
    """400 with the words in the status line too, which is all that Label Studio shows people."""
    response = jsonify(error=str(error), field=error.field)
    words = " ".join(str(error).split()).encode("ascii", "replace").decode()
    response.status = f"400 {words[:300]}"
    return response
