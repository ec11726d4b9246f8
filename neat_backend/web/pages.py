"""The dashboard: pages for people, rendered on the server; live.js refreshes them.

`GET /` is also Label Studio's health check: a request that does not accept HTML gets the JSON that it expects.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, jsonify, redirect, request, url_for
from flask.typing import ResponseReturnValue

from neat_backend import __version__
from neat_backend.errors import BadRequest
from neat_backend.service import overview
from neat_backend.service.lead import Lead
from neat_backend.service.overview import interval
from neat_backend.service.search import SHOWN, Search
from neat_backend.service.service import Service
from neat_backend.web import charts, shown, wording
from neat_backend.web.numbers import whole_number

VERDICTS = {  # on whether to go on: in words, and how good that is
    overview.GO_ON: ("Go on", "good"),
    overview.SOON: ("Stop soon: little is left to find", "wait"),
    overview.STOP: ("You can stop: the target is reached", "good"),
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
FIRST_PICTURES = 8  # of the next batch, in the first row
LEAST_COMPARED = 10  # labels, below which no share of them is shown
MOST_IN_BATCH = 100  # pictures of the next batch
MOST_ROUNDS = 30  # rounds drawn, the latest
CHART = {"box": (charts.WIDTH, charts.HEIGHT, charts.LEFT, charts.RIGHT, charts.BOTTOM)}


def routes(service: Service, lead: Lead) -> Blueprint:
    blueprint = Blueprint("pages", __name__)
    searching = Search(service)

    @blueprint.get("/")
    def home() -> ResponseReturnValue:
        wanted = request.accept_mimetypes.best_match(["application/json", "text/html"])
        if wanted != "text/html":
            answer = jsonify(status="UP", model_class="NeatModel", version=__version__)
            answer.vary.add("Accept")
            return answer
        return shown.page("home.html", projects=[shown.describe(service, status) for status in service.projects()])

    @blueprint.get("/projects/<int:project>")
    def project(project: int) -> ResponseReturnValue:
        insight, batch_size, pace = service.insight(project), service.batch_size(project), lead.pace(project)
        return shown.tab(
            service,
            project,
            "project",
            insight=insight,
            verdict=VERDICTS[insight["verdict"]],
            pace=pace,
            to_go=wording.to_go(pace, insight["no_estimate"]),
            accuracy=insight["accuracy"],
            days=charts.days(pace["days"]),
            precision=charts.precision(insight["batches"][-MOST_ROUNDS:]),
            batch=service.ranking(project, min(batch_size, MOST_IN_BATCH)),
            batch_size=batch_size,
            first=FIRST_PICTURES,
            **CHART,
        )

    @blueprint.get("/projects/<int:project>/classes")
    def classes(project: int) -> ResponseReturnValue:
        insight = service.insight(project)
        found = insight["classes"]
        unseen = [one["name"] for one in found if not one["labels"]]
        return shown.tab(
            service,
            project,
            "classes",
            classes=charts.classes(found),
            unseen=unseen,
            left=insight["left"],
            no_estimate=insight["no_estimate"],
        )

    @blueprint.get("/projects/<int:project>/people")
    def people(project: int) -> ResponseReturnValue:
        return shown.tab(service, project, "people", people=lead.people(project), least=LEAST_COMPARED)

    @blueprint.get("/projects/<int:project>/export")
    def export(project: int) -> ResponseReturnValue:
        return shown.tab(service, project, "export")

    @blueprint.get("/projects/<int:project>/quality")
    def quality(project: int) -> ResponseReturnValue:
        insight = service.insight(project)
        return shown.tab(
            service,
            project,
            "quality",
            insight=insight,
            accuracy=charts.accuracy(_rounds(service, project)),
            mistakes=insight["mistakes"][:MOST_MISTAKES],
            more_mistakes=max(0, len(insight["mistakes"]) - MOST_MISTAKES) + insight["more_mistakes"],
            **CHART,
        )

    @blueprint.get("/projects/<int:project>/map")
    def map(project: int) -> ResponseReturnValue:
        return shown.tab(service, project, "map", insight=service.insight(project), map=service.map_tags(project))

    @blueprint.get("/projects/<int:project>/system")
    def system(project: int) -> ResponseReturnValue:
        failed = service.failed_images(project, MOST_FAILED)
        return shown.tab(
            service,
            project,
            "system",
            rounds=_rounds(service, project),
            histogram=charts.histogram(service.insight(project)["scores"]),
            failed=failed,
            **CHART,
        )

    @blueprint.get("/projects/<int:project>/search")
    def search(project: int) -> ResponseReturnValue:
        """Images like a text or like a task's, where either is given."""
        text, found = request.args.get("text", "").strip(), None
        if request.args.get("task"):
            found = searching.like(project, _task_number(), SHOWN)
        elif text:
            found = searching.text(project, text, SHOWN)
        return shown.tab(service, project, "search", text=text, search=found)

    @blueprint.get("/projects/<int:project>/tasks")
    def find_task(project: int) -> ResponseReturnValue:
        """Redirect a form to the page of the task whose number was typed in."""
        return redirect(url_for("pages.task", project=project, task=_task_number()))

    @blueprint.get("/projects/<int:project>/tasks/<int:task>")
    def task(project: int, task: int) -> ResponseReturnValue:
        explanation, status = service.explain(project, task), service.status(project)
        return shown.page(
            "task.html",
            project={"id": project, "title": status["title"] or f"Project {project}"},
            explanation=explanation,
            state=TASK_STATES[explanation["state"]],
            has_picture=service.thumbnail(project, task) is not None,
            label_studio=shown.link(service.label_studio(project)),
        )

    return blueprint


def for_people() -> bool:
    """Whether this request is a browser's, for a page rather than for the API."""
    endpoint = request.endpoint or "pages."
    return endpoint.startswith("pages.") and "text/html" in request.headers.get("Accept", "")


def _task_number() -> int:
    """The query's task. Raises BadRequest."""
    text = request.args.get("task", "").strip()
    task = whole_number(text, 2**63 - 1)
    if not task:
        raise BadRequest(f"task={text[:100]!r}: give a task's number, as Label Studio shows it", "task")
    return task


def _rounds(service: Service, project: int) -> list[dict[str, Any]]:
    """The latest rounds with shares in whole per cent, the accuracy's interval, and the share of a random batch."""
    random = {one["round"]: one["random"] for one in service.insight(project)["batches"]}
    return [
        {
            **one,
            "precision_percent": None if one["precision"] is None else round(100 * one["precision"]),
            "accuracy_percent": None if not one["held_out"] else round(100 * one["held_out_accuracy"]),
            "accuracy_interval": shown.percents(interval(one["held_out_correct"], one["held_out"])),
            "random": {name: round(100 * share) for name, share in (random.get(one["number"]) or {}).items()},
        }
        for one in service.rounds(project)[-MOST_ROUNDS:]
    ]
