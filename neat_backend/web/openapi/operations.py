"""Every route: purpose, parameters, answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from neat_backend.web.openapi import lead_responses as lead
from neat_backend.web.openapi import request_bodies
from neat_backend.web.openapi import responses as of

TAGS = {
    "projects": "Where things stand, what comes next and why.",
    "orders": "Requests for work on a project; each is filed, and the worker does it.",
    "label studio": "What Label Studio calls; label-studio-ml's protocol.",
    "operations": "For load balancers and Prometheus, and this description.",
    "pages": "For people, in a browser.",
}

Given = type[BaseModel] | tuple[str, ...]  # JSON of that shape, or one of these media types


@dataclass(frozen=True)
class Operation:
    """One method of one route."""

    method: str
    rule: str  # as Flask has it
    tag: str
    summary: str
    answers: Mapping[int, Given]  # by status
    said: Mapping[int, str] = field(default_factory=dict)  # what a status means here
    query: Sequence[Mapping[str, Any]] = ()
    body: type[BaseModel] | None = None
    about: str = ""
    open: bool = False  # needs no credentials
    refuses_query: bool = False  # 400 for a query that can't be meant

    @property
    def id(self) -> str:
        """`get_api_projects_project`: unique, and a name in most languages."""
        return re.sub(r"\W+", "_", f"{self.method.lower()}{re.sub(r'<(?:[a-z]+:)?', '<', self.rule)}").strip("_")

    def refusals(self) -> Iterator[int]:
        """Statuses of errors that it can give, those of `answers` apart."""
        if self.body is not None:
            yield from (400, 413)
        elif self.refuses_query:
            yield 400
        if not self.open:
            yield 403
        if "<" in self.rule or self.body is request_bodies.ProjectBody:
            yield 404
        if not self.open:
            yield 503


def _query(name: str, about: str, default: Any = None, **schema: Any) -> dict[str, Any]:
    given = {**schema, **({} if default is None else {"default": default})}
    return {"name": name, "in": "query", "required": False, "description": about, "schema": given}


_FILED: Mapping[int, Given] = {202: of.Filed}
_SAID_FILED = {202: "It is in the queue."}
PAGE = ("text/html", "application/json")  # a page for browsers
_PROJECT, _TASK = "/api/projects/<int:project>", "/api/projects/<int:project>/tasks/<int:task>"

OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/api/projects", "projects", "The status of all projects", {200: of.Projects}),
    Operation("GET", _PROJECT, "projects", "The status of one project", {200: of.Project}),
    Operation(
        "GET",
        f"{_PROJECT}/ranking",
        "projects",
        "Unlabelled tasks, best first",
        {200: of.Ranking},
        refuses_query=True,
        query=[
            _query("limit", "How many.", 100, type="integer", minimum=0, maximum=10_000),
            _query("offset", "How many to pass over.", 0, type="integer", minimum=0, maximum=2**31),
        ],
    ),
    Operation(
        "GET",
        f"{_TASK}/explanation",
        "projects",
        "Why a task has its place in the order",
        {200: of.Explanation},
        refuses_query=True,
        about="400 while the project's label config can't be used.",
    ),
    Operation(
        "GET",
        f"{_TASK}/thumbnail",
        "projects",
        "The small picture of a task",
        {200: ("image/png",), 304: ()},
        {304: "The picture is that of the ETag that was sent."},
    ),
    Operation(
        "GET",
        f"{_TASK}/similar",
        "projects",
        "Images like that of a task",
        {200: of.Similar},
        refuses_query=True,
        query=[_query("limit", "How many.", 48, type="integer", minimum=0, maximum=200)],
    ),
    Operation(
        "GET",
        f"{_PROJECT}/search",
        "projects",
        "Images that a text describes",
        {200: of.Found},
        refuses_query=True,
        query=[
            _query("text", "What is on the image, in English.", type="string", minLength=1, maxLength=200),
            _query("limit", "How many.", 48, type="integer", minimum=0, maximum=200),
        ],
        about="By the encoder's text side; that of CLIP has one.",
    ),
    Operation("GET", f"{_PROJECT}/rounds", "projects", "Query rounds, first to last", {200: of.Rounds}),
    Operation(
        "GET",
        f"{_PROJECT}/insight",
        "projects",
        "How it does, what is left and which labels may be wrong",
        {200: of.Insight},
    ),
    Operation(
        "GET",
        f"{_PROJECT}/map",
        "projects",
        "The map of the pool",
        {200: ("application/octet-stream",), 304: ()},
        {304: "The map is that of the ETag that was sent."},
        about="Little-endian: uint32 n, uint32 check, uint32 [n] task ids ascending, uint16 [n, 2] places on a square"
        " of 65,535 steps each way. 404 until images have been encoded.",
    ),
    Operation(
        "GET",
        f"{_PROJECT}/map/marks",
        "projects",
        "What the tasks on the map are labelled with",
        {200: ("application/octet-stream",), 304: ()},
        {304: "The marks are those of the ETag that was sent."},
        about="In the map's order, little-endian: uint32 n, uint32 check (equal to the map's that it belongs to),"
        " int16 [n]: 0 and more = place of the class in the project's `classes`, -1 = invalid, -3 = unlabelled, -10 ="
        " first of the next batch, -11 = second and so on, -20000 = unlabelled and predicted as the first class,"
        " -20001 as the second and so on.",
    ),
    Operation(
        "GET",
        f"{_PROJECT}/failed-images",
        "projects",
        "Tasks whose image can't be had",
        {200: of.FailedImages},
        refuses_query=True,
        query=[
            _query("limit", "How many.", 10_000, type="integer", minimum=0, maximum=10_000),
            _query("offset", "How many to pass over.", 0, type="integer", minimum=0, maximum=2**31),
        ],
    ),
    Operation(
        "GET",
        f"{_PROJECT}/export",
        "projects",
        "The labelled data set, as a stream",
        {200: ("text/csv", "application/x-ndjson", "application/vnd.apache.parquet")},
        {200: "The same bytes for the same labels."},
        refuses_query=True,
        query=[
            _query("format", "Which; Parquet needs pyarrow.", "csv", type="string", enum=["csv", "jsonl", "parquet"]),
            _query("features", "The images' features as a column, with parquet.", type="string", enum=["parquet"]),
            _query("include_invalid", "1 = not the known ones alone.", "0", type="string", enum=["0", "1"]),
            _query(
                "raw",
                "1 = in CSV, no ' before texts that a spreadsheet would run as a formula.",
                "0",
                type="string",
                enum=["0", "1"],
            ),
            _query("since", "Labelled since then; a time with its zone.", type="string", format="date-time"),
            _query("round", "Labelled for this query round.", type="integer", minimum=0),
            _query(
                "min_agreement",
                "Share of the annotators that must agree with the label.",
                type="number",
                minimum=0,
                maximum=1,
            ),
        ],
    ),
    Operation("GET", f"{_PROJECT}/people", "projects", "The annotators: labels, pace, agreement", {200: lead.People}),
    Operation(
        "GET",
        f"{_PROJECT}/pace",
        "projects",
        "Labels a day, and what is left to the target",
        {200: lead.Pace},
    ),
    Operation(
        "POST",
        f"{_PROJECT}/target",
        "orders",
        "Set which share of the images of known classes is to be found",
        {200: lead.Target},
        body=request_bodies.TargetBody,
    ),
    Operation("POST", f"{_PROJECT}/train", "orders", "Train a classifier now", _FILED, _SAID_FILED),
    Operation("POST", f"{_PROJECT}/sync", "orders", "Read the whole project again", _FILED, _SAID_FILED),
    Operation(
        "POST",
        f"{_PROJECT}/selection",
        "orders",
        "Show these tasks in Label Studio's tab “NEAT: selection”",
        {200: of.Selected},
        body=request_bodies.SelectionBody,
    ),
    Operation("POST", f"{_PROJECT}/retry-images", "orders", "Try the failed images again", _FILED, _SAID_FILED),
    Operation(
        "GET",
        "/health",
        "label studio",
        "Alive",
        {200: of.Health},
        open=True,
        about="Looks at nothing: Label Studio waits one second for it.",
    ),
    Operation(
        "POST",
        "/setup",
        "label studio",
        "Take in a connection",
        {200: of.Connected},
        body=request_bodies.SetupBody,
        about="The words of a 400 stand in the status line too, where Label Studio shows them.",
    ),
    Operation(
        "POST",
        "/webhook",
        "label studio",
        "Take in news",
        {201: of.Acknowledged, 200: of.Acknowledged},
        {201: "It is kept, and will be applied.", 200: "It is of no use here."},
        body=request_bodies.WebhookBody,
    ),
    Operation(
        "POST",
        "/predict",
        "label studio",
        "A prediction for each task, in order",
        {200: of.Predictions},
        body=request_bodies.PredictBody,
        about="Waits at most `NEAT_PREDICT_WAIT` seconds for tasks that were not known.",
    ),
    Operation(
        "GET",
        "/versions",
        "label studio",
        "Model versions",
        {200: of.Versions, 404: of.Error},
        refuses_query=True,
        query=[_query("project", "Of which project; all if left out.", type="string")],
        said={404: "No such project here."},
    ),
    Operation(
        "POST",
        "/versions",
        "label studio",
        "Model versions of a project",
        {200: of.Versions},
        body=request_bodies.ProjectBody,
    ),
    Operation(
        "POST",
        "/train",
        "label studio",
        "Ask for a round",
        {201: of.Filed},
        {201: "It is in the queue."},
        body=request_bodies.ProjectBody,
    ),
    Operation("POST", "/job_status", "label studio", "There are no jobs", {410: of.Error}, {410: "There are no jobs."}),
    Operation(
        "GET",
        "/health/ready",
        "operations",
        "Alive, at work and keeping up",
        {200: of.Readiness, 503: of.Readiness},
        {503: "Not ready; the reasons say why."},
    ),
    Operation("GET", "/metrics", "operations", "Metrics for Prometheus", {200: ("text/plain",)}),
    Operation("GET", "/api/openapi.json", "operations", "This description", {200: ("application/json",)}),
    Operation(
        "GET",
        "/api/docs",
        "operations",
        "This description, as a page",
        {200: ("text/html",), 304: ()},
        {304: "As it was at the last time."},
    ),
    Operation(
        "GET",
        "/",
        "pages",
        "The dashboard, or that the backend is alive",
        {200: ("text/html", "application/json"), 304: ()},
        {304: "As it was at the last time."},
        about="HTML if the request accepts it; else the answer of `/health`, which Label Studio requests here too.",
    ),
    Operation(
        "GET",
        "/projects/<int:project>/tasks",
        "pages",
        "To the page of a task",
        {302: ("text/html",), 400: PAGE},
        {302: "That page.", 400: "This is no task's number."},
        query=[_query("task", "Its number.", type="integer", minimum=1)],
    ),
    Operation(
        "GET",
        "/static/<path:filename>",
        "pages",
        "What the pages are made with",
        {200: ("text/css", "text/javascript", "image/svg+xml"), 304: ()},
        {304: "As it was at the last time."},
    ),
)
