"""The API for people and programs: the content of `neat-backend status` and the dashboard as JSON."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from flask import Blueprint, Response, jsonify, request
from flask.typing import ResponseReturnValue
from numpy.typing import NDArray
from PIL import Image

from neat_backend.errors import BadRequest
from neat_backend.labelstudio.values import timestamp
from neat_backend.service.lead import Lead
from neat_backend.service.search import MOST_FOUND, SHOWN, Search
from neat_backend.service.service import Service
from neat_backend.web.bodies import json_body
from neat_backend.web.numbers import whole_number

if TYPE_CHECKING:
    from neat_backend.exports import Wanted

MOST_ROWS = 10_000
MEDIA_TYPES = {"csv": "text/csv", "jsonl": "application/x-ndjson", "parquet": "application/vnd.apache.parquet"}


def routes(service: Service, lead: Lead) -> Blueprint:
    blueprint = Blueprint("api", __name__, url_prefix="/api")
    search = Search(service)

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

    @blueprint.get("/projects/<int:project>/insight")
    def insight(project: int) -> ResponseReturnValue:
        return jsonify(service.insight(project))

    @blueprint.get("/projects/<int:project>/people")
    def people(project: int) -> ResponseReturnValue:
        return jsonify(people=lead.people(project))

    @blueprint.get("/projects/<int:project>/pace")
    def pace(project: int) -> ResponseReturnValue:
        return jsonify(lead.pace(project))

    @blueprint.post("/projects/<int:project>/target")
    def target(project: int) -> ResponseReturnValue:
        body = json_body()
        return jsonify(found=lead.set_target(project, body.get("found") if isinstance(body, dict) else None))

    @blueprint.get("/projects/<int:project>/map")
    def places(project: int) -> ResponseReturnValue:
        return _columns(service.map_tags(project)["places"], lambda: service.map_places(project))

    @blueprint.get("/projects/<int:project>/map/marks")
    def marks(project: int) -> ResponseReturnValue:
        return _columns(service.map_tags(project)["marks"], lambda: service.map_marks(project), packed=True)

    @blueprint.get("/projects/<int:project>/failed-images")
    def failed_images(project: int) -> ResponseReturnValue:
        limit, offset = _number("limit", MOST_ROWS, MOST_ROWS), _number("offset", 0, 2**31)
        return jsonify(failed_images=service.failed_images(project, limit, offset), limit=limit, offset=offset)

    @blueprint.get("/projects/<int:project>/tasks/<int:task>/thumbnail")
    def thumbnail(project: int, task: int) -> ResponseReturnValue:
        found = service.thumbnail(project, task)
        if found is None:
            return jsonify(error=f"task {task} has no picture here (yet)", field="task"), 404
        key, pixels = found
        answer = Response(_png(pixels), mimetype="image/png")
        answer.set_etag(f"{key & (2**64 - 1):016x}-{len(pixels)}")
        answer.headers["Cache-Control"] = "private, no-cache"
        return answer.make_conditional(request)

    @blueprint.get("/projects/<int:project>/tasks/<int:task>/explanation")
    def explanation(project: int, task: int) -> ResponseReturnValue:
        return jsonify(service.explain(project, task))

    @blueprint.get("/projects/<int:project>/tasks/<int:task>/similar")
    def similar(project: int, task: int) -> ResponseReturnValue:
        return jsonify(search.like(project, task, _number("limit", SHOWN, MOST_FOUND)))

    @blueprint.get("/projects/<int:project>/search")
    def by_text(project: int) -> ResponseReturnValue:
        return jsonify(search.text(project, request.args.get("text", ""), _number("limit", SHOWN, MOST_FOUND)))

    @blueprint.post("/projects/<int:project>/selection")
    def selection(project: int) -> ResponseReturnValue:
        return jsonify(search.select(project, _tasks(json_body())))

    @blueprint.get("/projects/<int:project>/export")
    def export(project: int) -> ResponseReturnValue:
        from neat_backend import exports  # loads slowly

        format, features, wanted = request.args.get("format", "csv"), request.args.get("features", ""), _wanted()
        raw = _flag("raw")
        pieces = exports.stream(service.settings, service.database, project, format, wanted, features, raw)
        name = f"project-{project}-labels.{format}"
        answer = Response(pieces, mimetype=MEDIA_TYPES[format])
        answer.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        answer.headers["Cache-Control"] = "no-store"
        return answer

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


def _columns(tag: str, made: Callable[[], bytes | None], packed: bool = False) -> Response | tuple[Response, int]:
    """The map's columns; made only for a caller without those of this tag. packed: compress them."""
    answer = Response(mimetype="application/octet-stream")
    answer.headers["Cache-Control"] = "private, no-cache"
    if tag:
        answer.set_etag(tag)
        if answer.make_conditional(request).status_code == 304:
            return answer
    columns = made()
    if columns is None:
        return jsonify(error="there is no map yet: it is drawn when images have been encoded", field="project"), 404
    if packed:
        answer.vary.add("Accept-Encoding")
        if request.accept_encodings["gzip"]:
            answer.headers["Content-Encoding"] = "gzip"
            columns = gzip.compress(columns, 1, mtime=0)
    answer.set_data(columns)
    return answer


def _tasks(body: Any) -> list[int]:
    """The task ids of a body."""
    tasks = body.get("tasks") if isinstance(body, dict) else None
    if not isinstance(tasks, list) or not all(type(task) is int and 0 < task < 2**63 for task in tasks):
        raise BadRequest('give the tasks\' numbers as a list, such as {"tasks": [3, 5]}', "tasks")
    return tasks


def _wanted() -> Wanted:
    """The query of an export."""
    from neat_backend import exports

    since = request.args.get("since")
    return exports.Wanted(
        include_invalid=_flag("include_invalid"),
        since=timestamp(since, "since") if since else None,
        round=_number("round", 0, 2**31) if request.args.get("round") else None,
        min_agreement=_share("min_agreement"),
    )


def _flag(name: str) -> bool:
    text = request.args.get(name, "0")
    if text not in ("0", "1"):
        raise BadRequest(f"{name}={text!r}: give 0 or 1", name)
    return text == "1"


def _share(name: str) -> float:
    text = request.args.get(name) or "0"
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1:
        raise BadRequest(f"{name}={text!r}: give a share from 0 to 1", name)
    return share


def _png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels uint8 [h, w, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png", compress_level=1)
    return file.getvalue()


def _number(name: str, default: int, most: int) -> int:
    text = request.args.get(name, "")
    if not text:
        return default
    number = whole_number(text, most)
    if number is None:
        raise BadRequest(f"{name}={text[:100]!r}: give a whole number from 0 to {most}", name)
    return number
