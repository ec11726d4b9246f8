"""Helpers of all dashboard pages: a project's tabs, its state in words, sending a page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flask import Response, render_template, request
from flask.typing import ResponseReturnValue

from neat_backend import __version__
from neat_backend.service.service import Service

TABS = (  # a project's pages: the endpoint in the blueprint "pages", the name in the row of tabs
    ("project", "Overview"),
    ("classes", "Classes"),
    ("people", "People"),
    ("quality", "Quality"),
    ("map", "Map"),
    ("search", "Search"),
    ("export", "Export"),
    ("system", "Technical"),
)
STATES = {
    "connecting": ("Connecting", "Label Studio has connected this project; it has not been read yet."),
    "syncing": ("Reading", "Tasks and annotations are being read from Label Studio."),
    "embedding": ("Encoding images", "Labels are taken in meanwhile, and what is encoded is served."),
    "ready": ("Working", "Each label updates which images come next."),
    "blocked": ("Needs you", "It can't go on until somebody acts."),
    "away": ("Label Studio away", "Label Studio doesn't answer; tried again by itself."),
    "disconnected": ("Disconnected", "Label Studio has no connection of it to this backend: nothing is published."),
}


def page(name: str, **values: Any) -> ResponseReturnValue:
    """Render a template; 304 for a browser that has the same page."""
    answer = Response(render_template(name, version=__version__, **values), mimetype="text/html")
    answer.headers["Cache-Control"] = "private, no-cache"
    answer.vary.add("Accept")
    answer.add_etag()
    return answer.make_conditional(request)  # an unchanged page is neither sent nor swapped


def tab(service: Service, project: int, name: str, **values: Any) -> ResponseReturnValue:
    """A page of a project, `name`.html, with its state and the row of tabs. Raises UnknownProject.

    name: the endpoint, one of TABS; the template extends "tab.html" and fills the block "tab".
    """
    return page(
        f"{name}.html",
        project=describe(service, service.status(project)),
        tabs=TABS,
        here=name,
        label_studio=link(service.label_studio(project)),
        **values,
    )


def refusal(words: str) -> str:
    """The page of an error."""
    return render_template("error.html", version=__version__, words=words[:1].upper() + words[1:])


def seconds_in_words(seconds: float | None) -> str:
    """ "2 min left"; "" where it is unknown."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    if seconds < 90:
        return f"{max(1, round(seconds))} s left"
    return f"{round(seconds / 60)} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"


def describe(service: Service, status: Mapping[str, Any]) -> dict[str, Any]:
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


def percents(shares: tuple[float, float] | None) -> tuple[int, int] | None:
    """Both ends of a range in whole per cent."""
    return None if shares is None else (round(100 * shares[0]), round(100 * shares[1]))


def link(url: str) -> str:
    """The URL if a link may lead to it, else ""."""
    return url if url.startswith(("http://", "https://")) else ""
