"""The dashboard: pages for people, drawn on the server from what the service answers; live.js fetches them anew.

`GET /` is also Label Studio's health check: whoever does not ask for HTML gets the JSON that it expects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Blueprint, Response, jsonify, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue

from neat_backend import __version__
from neat_backend.errors import BadRequest
from neat_backend.service import overview
from neat_backend.service.overview import interval
from neat_backend.service.service import Service
from neat_backend.web import charts
from neat_backend.web.numbers import whole_number

STATES = {
    "connecting": ("Connecting", "Label Studio has told us of this project; it has not been read yet."),
    "syncing": ("Reading", "Tasks and annotations are being read from Label Studio."),
    "embedding": ("Encoding images", "Labels are taken in meanwhile, and what is encoded is served."),
    "ready": ("Working", "Every label is answered by a new order."),
    "blocked": ("Needs you", "It can't go on until somebody acts."),
    "away": ("Label Studio away", "Label Studio doesn't answer; tried again by itself."),
    "disconnected": ("Disconnected", "Label Studio has no connection of it to this backend: nothing is published."),
}
VERDICTS = {  # on whether to go on: in words, and how good that is
    overview.GO_ON: ("Go on", "good"),
    overview.SOON: ("Stop soon: little is left in the next batch", "wait"),
    overview.STOP: ("You can stop: nearly all of your classes are found", "good"),
    overview.UNSURE: ("Too early to say", "quiet"),
    overview.NOTHING_LEFT: ("Nothing is left to label", "good"),
}
TASK_STATES = {
    "unlabelled": "waiting for a label",
    "labelled": "labelled",
    "invalid": "labelled as none of your classes",
    "skipped": "answered without a label",
    "failed": "its image failed",
    "pending": "its image is not encoded yet",
}
MOST_FAILED = 50  # failed images shown
MOST_MISTAKES = 12
MOST_IN_BATCH = 100  # pictures of the next batch
MOST_ROUNDS = 30  # rounds drawn, the latest


def routes(service: Service) -> Blueprint:
    blueprint = Blueprint("pages", __name__)

    @blueprint.get("/")
    def home() -> ResponseReturnValue:
        wanted = request.accept_mimetypes.best_match(["application/json", "text/html"])
        if wanted != "text/html":
            answer = jsonify(status="UP", model_class="NeatModel", version=__version__)
            answer.vary.add("Accept")
            return answer
        return _page("home.html", projects=[_shown(service, status) for status in service.projects()])

    @blueprint.get("/projects/<int:project>")
    def project(project: int) -> ResponseReturnValue:
        status, insight = service.status(project), service.insight(project)
        rounds = _rounds(status["rounds"], insight["batches"])[-MOST_ROUNDS:]
        batch_size = service.batch_size(project)
        return _page(
            "project.html",
            project=_shown(service, status),
            rounds=rounds,
            insight=insight,
            verdict=VERDICTS[insight["verdict"]],
            precision=charts.precision(insight["batches"][-MOST_ROUNDS:]),
            accuracy=charts.accuracy(rounds),
            histogram=charts.histogram(insight["scores"]),
            classes=charts.classes(insight["classes"]),
            unseen=[one["name"] for one in insight["classes"] if not one["labels"]],
            box=(charts.WIDTH, charts.HEIGHT, charts.LEFT, charts.RIGHT, charts.BOTTOM),
            batch=service.ranking(project, min(batch_size, MOST_IN_BATCH)),
            batch_size=batch_size,
            map=service.map_tags(project),
            mistakes=insight["mistakes"][:MOST_MISTAKES],
            more_mistakes=max(0, len(insight["mistakes"]) - MOST_MISTAKES) + insight["more_mistakes"],
            failed=service.failed_images(project, MOST_FAILED),
            more_failed=max(0, status["tasks"]["failed"] - MOST_FAILED),
            label_studio=_http(service.label_studio(project)),
        )

    @blueprint.get("/projects/<int:project>/tasks")
    def find_task(project: int) -> ResponseReturnValue:
        """A form's answer: the page of the task whose number was typed in."""
        text = request.args.get("task", "").strip()
        task = whole_number(text, 2**63 - 1)
        if not task:
            raise BadRequest(f"task={text[:100]!r}: give a task's number, as Label Studio shows it", "task")
        return redirect(url_for("pages.task", project=project, task=task))

    @blueprint.get("/projects/<int:project>/tasks/<int:task>")
    def task(project: int, task: int) -> ResponseReturnValue:
        told, status = service.explain(project, task), service.status(project)
        return _page(
            "task.html",
            project={"id": project, "title": status["title"] or f"Project {project}"},
            told=told,
            state=TASK_STATES[told["state"]],
            has_picture=service.thumbnail(project, task) is not None,
            label_studio=_http(service.label_studio(project)),
        )

    return blueprint


def for_people() -> bool:
    """Whether this request is a browser's, for a page rather than for the API."""
    endpoint = request.endpoint or "pages."
    return endpoint.startswith("pages.") and "text/html" in request.headers.get("Accept", "")


def refusal(words: str) -> str:
    """The page that says what can't be shown."""
    return render_template("error.html", version=__version__, words=words[:1].upper() + words[1:])


def seconds_in_words(seconds: float | None) -> str:
    """ "2 min left"; nothing where nobody knows."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 90:
        return f"{max(1, round(seconds))} s left"
    return f"{round(seconds / 60)} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"


def _page(name: str, **values: Any) -> ResponseReturnValue:
    answer = Response(render_template(name, version=__version__, **values), mimetype="text/html")
    answer.headers["Cache-Control"] = "private, no-cache"
    answer.vary.add("Accept")
    answer.add_etag()
    return answer.make_conditional(request)  # nothing is sent again, or swapped in the page, that is the same


def _shown(service: Service, status: Mapping[str, Any]) -> dict[str, Any]:
    """A project's status with its words."""
    name, meaning = STATES[status["state"]]
    running = [one for one in status["rounds"] if one["state"] == "running"]
    training = {"number": running[-1]["number"]} if running else None
    if training:
        now = service.training(status["id"], training["number"]) or {}
        left = now.get("eta_seconds") if now.get("phase") == "training" else None
        training |= {"epoch": now.get("epoch", 0), "epochs": now.get("epochs", 0), "left": seconds_in_words(left)}
    if status["state"] == "ready" and not status["tasks"]["tasks"]:
        meaning = "The project has no tasks yet. Import images in Label Studio; they are taken in at once."
    labelled = status["labelled"]["known"] + status["labelled"]["invalid"]
    return {
        **status,
        "title": status["title"] or f"Project {status['id']}",
        "state_name": name,
        "meaning": meaning,
        "left": seconds_in_words(status["progress"]["eta_seconds"]),
        "training": training,
        "labelled_total": labelled,
        "found": round(100 * status["labelled"]["known"] / labelled) if labelled else None,
    }


def _rounds(rounds: Sequence[Mapping[str, Any]], batches: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rounds with shares in whole per cent, the interval of the accuracy, and what random would have brought."""
    random = {one["round"]: one["random"] for one in batches}
    return [
        {
            **one,
            "precision_percent": None if one["precision"] is None else round(100 * one["precision"]),
            "accuracy_percent": None if not one["held_out"] else round(100 * one["held_out_accuracy"]),
            "accuracy_interval": _percent(interval(one["held_out_correct"], one["held_out"])),
            "random": {name: round(100 * share) for name, share in (random.get(one["number"]) or {}).items()},
        }
        for one in rounds
    ]


def _percent(shares: tuple[float, float] | None) -> tuple[int, int] | None:
    return None if shares is None else (round(100 * shares[0]), round(100 * shares[1]))


def _http(url: str) -> str:
    """Only what a link may lead to."""
    return url if url.startswith(("http://", "https://")) else ""
