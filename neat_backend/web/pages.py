"""The dashboard: pages for people, drawn on the server from what the service answers; live.js fetches them anew.

`GET /` is also Label Studio's health check: whoever does not ask for HTML gets the JSON that it expects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Blueprint, Response, jsonify, render_template, request
from flask.typing import ResponseReturnValue

from neat_backend import __version__
from neat_backend.service import Service

STATES = {
    "connecting": ("Connecting", "Label Studio has told us of this project; it has not been read yet."),
    "syncing": ("Reading", "Tasks and annotations are being read from Label Studio."),
    "embedding": ("Encoding images", "Labels are taken in meanwhile, and what is encoded is served."),
    "ready": ("Working", "Every label is answered by a new order."),
    "blocked": ("Needs you", "It can't go on until somebody acts."),
    "away": ("Label Studio away", "Label Studio doesn't answer; tried again by itself."),
}
MOST_FAILED = 50  # failed images shown
MOST_ROUNDS = 30  # rounds drawn, the latest
WILSON_Z = 1.96  # 95 %


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
        status = service.status(project)
        failed = service.failed_images(project)
        return _page(
            "project.html",
            project=_shown(service, status),
            rounds=_rounds(status["rounds"])[-MOST_ROUNDS:],
            batch=service.ranking(project, service.batch_size(project)),
            failed=failed[:MOST_FAILED],
            more_failed=max(0, len(failed) - MOST_FAILED),
            label_studio=_http(service.label_studio(project)),
        )

    return blueprint


def interval(right: int, of: int) -> tuple[float, float] | None:
    """Wilson's 95 % interval of a share, which keeps to [0, 1] where few were measured; None of none.

    Worked example: 8 of 10 → 0.490 … 0.943.
    """
    if of <= 0:
        return None
    share, z2 = right / of, WILSON_Z**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = WILSON_Z * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return max(0.0, middle - half), min(1.0, middle + half)


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


def _rounds(rounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rounds with shares in whole per cent, and the interval of the accuracy."""
    return [
        {
            **one,
            "precision_percent": None if one["precision"] is None else round(100 * one["precision"]),
            "accuracy_percent": None if not one["held_out"] else round(100 * one["held_out_accuracy"]),
            "accuracy_interval": _percent(interval(one["held_out_correct"], one["held_out"])),
        }
        for one in rounds
    ]


def _percent(shares: tuple[float, float] | None) -> tuple[int, int] | None:
    return None if shares is None else (round(100 * shares[0]), round(100 * shares[1]))


def _http(url: str) -> str:
    """Only what a link may lead to."""
    return url if url.startswith(("http://", "https://")) else ""
