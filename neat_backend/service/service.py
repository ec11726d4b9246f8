"""What the web, the command line and model.py share: every question and every order, as one function.

Imports neither torch nor Label Studio's SDK: everything here is answered from the store, and everything
that takes long is filed in the inbox for the worker.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import Connection

from neat_backend import connection
from neat_backend.errors import BadLabelConfig, BadRequest, SettingsError, StoreError
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.events import PredictRequest, Setup, Webhook, parse_webhook, pieces, project_id
from neat_backend.labelstudio.publisher import reasons, result, score
from neat_backend.ranking.prefill import filled_in
from neat_backend.records import COMPARE, RETRY_IMAGES, SYNC, TRAIN, Project, Ranked, Round
from neat_backend.service import explanation, overview
from neat_backend.settings import Settings
from neat_backend.store import inbox, kinds, measures, prefills, prequential, projects, rounds, snapshots, tasks
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.intake import Intake
from neat_backend.store.measures import Measured
from neat_backend.store.objects import SMALL, Objects
from neat_backend.store.snapshots import Head

log = logging.getLogger(__name__)

WAITING = "waiting to be read from Label Studio"
NO_VERSION = "neat"  # the model version until a revision has been published
NEGLECT_SECONDS = 30.0  # a worker needs some seconds to start
FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.05, 0.5  # between two looks for a task that is being scored


class Service:
    """All that can be asked of the backend, over one database and data folder."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.database = database
        self._intake = Intake(database)
        self._objects = Objects(settings.arrays_url, settings.data_dir, database) if settings.arrays_url else None

    # Label Studio's questions and news

    def connect(self, setup: Setup, backend_url: str) -> str:
        """Take in a connection (/setup); returns the model version that is switched on.

        The project is read by the worker; here it is only asked to. A label config that can't be used is
        kept, with the project blocked, so that the repaired one (PROJECT_UPDATED) finds it.
        Raises BadLabelConfig, or BadRequest for extra params that can't be used.
        """
        try:
            settings = self.settings.for_project(setup.extra_params)
        except SettingsError as error:
            raise BadRequest(str(error), "extra_params") from error
        fields: dict[str, Any] = {
            "label_config": setup.schema,
            "label_studio_url": setup.hostname,
            "access_token": setup.access_token,
            "extra_params": setup.extra_params,
            "backend_url": backend_url,
        }
        try:
            label_config.read(setup.schema, settings)
        except BadLabelConfig as error:
            with self.database.begin() as conn:
                projects.save_connection(conn, setup.project, **fields, state=projects.BLOCKED, detail=str(error))
            log.warning("project %d can't be used: %s", setup.project, error)
            raise BadLabelConfig(str(error), error.field or "schema") from error

        with self.database.read() as conn:
            known = projects.get(conn, setup.project)
        news = known is None or _is_news(known, fields)
        with self.database.begin() as conn:
            if known is None or known.state in (projects.BLOCKED, projects.DISCONNECTED):
                fields |= {"state": projects.CONNECTING, "detail": WAITING}
            project = projects.save_connection(conn, setup.project, **fields)
            # Label Studio also calls whenever somebody opens the Data Manager or the settings page.
            self._file_once(conn, setup.project, SYNC if news else COMPARE)
        if news:
            log.info("project %d connected from %s", setup.project, setup.hostname or "Label Studio")
        return project.model_version or NO_VERSION

    def accept(self, webhook: Webhook, backend_url: str = "") -> int:
        """File a webhook; returns its event's id once it is durable, 0 for an action of no use here.

        backend_url: where it was sent to, by which the worker tells whether an unknown project is connected to us.
        """
        if not webhook.known:
            log.debug("webhook %s ignored", webhook.action)
            return 0
        told = [{**piece, "backend_url": backend_url} for piece in pieces(webhook.payload)]
        event = self._intake.file(webhook.project, webhook.action, *told)
        log.debug("project %d: event %d, %s", webhook.project, event, webhook.action)
        return event

    def predict(self, request: PredictRequest, backend_url: str = "") -> list[dict[str, Any]]:
        """One prediction per task, in order, from the scores at hand.

        Tasks that were never heard of are filed, and waited for at most `predict_wait_seconds` in all when
        the project is up and running. What has no score by then gets one that puts it last.
        """
        if not request.tasks:
            return []
        number = request.project or _project_of(request.tasks)
        with self.database.read() as conn:
            project = projects.get(conn, number) or Project(number)
        ids = {task["id"] for task in request.tasks if task["id"] is not None}
        ranking = self._ranking(number)
        filed = self._file_unknown(project, request.tasks, ids - _known(ranking, ids), backend_url)
        if filed and project.state == projects.READY:
            ranking = self._wait_for(number, filed, ranking)
            project = self.project(number)

        settings = self.settings.for_project(project.extra_params)
        config: label_config.LabelConfig | None = None
        try:
            xml = request.label_config or project.label_config
            config = label_config.read(xml, settings)
        except BadLabelConfig as error:
            log.warning("project %d: predictions without classes: %s", number, error)
        arrays = ProjectArrays(self.settings.data_dir, number)
        tested = prequential.read(arrays).leader_counts if settings.prefill == "agree" else (0, 0)
        return _predictions(
            project, request.tasks, ranking, config, lambda one: filled_in(one, settings.prefill, tested, settings.k)
        )

    def versions(self, project: int | None) -> list[str]:
        """The switched-on model version of `project`, or those of all projects."""
        with self.database.read() as conn:
            found = projects.all(conn) if project is None else [projects.known(conn, project)]
        return sorted({each.model_version or NO_VERSION for each in found})

    # orders

    def train(self, project: int) -> int:
        """Ask for a training round; returns the event's id. Raises UnknownProject."""
        return self._file(project, TRAIN)

    def sync(self, project: int) -> int:
        """Ask for the whole project to be read again; returns the event's id. Raises UnknownProject."""
        return self._file(project, SYNC)

    def retry_images(self, project: int) -> int:
        """Ask for the failed images to be tried again; returns the event's id. Raises UnknownProject."""
        return self._file(project, RETRY_IMAGES)

    def retry_events(self, project: int) -> int:
        """Put the events that were set aside back into the queue; how many. Raises UnknownProject."""
        with self.database.begin() as conn:
            projects.known(conn, project)
            aside = inbox.set_aside_events(conn, project)
            for event, _ in aside:
                inbox.requeue(conn, event.id)
        return len(aside)

    def forget(self, project: int) -> None:
        """Forget a project with all that is kept of it; nothing changes in Label Studio. Raises UnknownProject."""
        self.project(project)
        connection.forget(self.database, self.settings.data_dir, self._objects, project)
        log.info("project %d forgotten", project)

    # what is known

    def projects(self) -> list[dict[str, Any]]:
        """The status of every connected project, by id."""
        with self.database.read() as conn:
            found = sorted(projects.all(conn), key=lambda each: each.id)
        for project in found:
            self._arrays(project.id)
        with self.database.read() as conn:
            return [self._status(conn, project) for project in found]

    def status(self, project: int) -> dict[str, Any]:
        """All that there is to say about a project, JSON-ready. Raises UnknownProject.

        `caught_up`: everything received so far is in what annotators are served.
        """
        self._arrays(project)
        with self.database.read() as conn:
            return self._status(conn, projects.known(conn, project))

    def rounds(self, project: int) -> list[dict[str, Any]]:
        """The project's query rounds, first to last, JSON-ready. Raises UnknownProject."""
        with self.database.read() as conn:
            projects.known(conn, project)
            return [_round(each) for each in rounds.all(conn, project)]

    def ranking(self, project: int, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
        """Unlabelled tasks with their scores, best first, ties by smaller id. Raises UnknownProject.

        The first ones are the published head, in its order.
        """
        self.project(project)
        head = self._head(project)
        if head is not None and offset + limit <= len(head.tasks):
            return [asdict(task) for task in head.tasks[offset : offset + limit]]
        ranking = self._ranking(project, head)
        if ranking is None:
            return []
        order = _order(ranking, head)[offset : offset + limit]
        return [asdict(snapshots.row(ranking, int(at), offset + number)) for number, at in enumerate(order)]

    def explain(self, project: int, task: int) -> dict[str, Any]:
        """Why a task stands where it stands, JSON-ready; see explanation.py.

        Raises UnknownProject, UnknownTask, BadLabelConfig while the label config can't be used, or StoreError while
        the features are on their way here.
        """
        self._arrays(project, *SMALL, kinds.FEATURES, kinds.PROBABILITIES)
        if self._objects is not None and not self._objects.is_fetched(project, kinds.FEATURES, kinds.PROBABILITIES):
            raise StoreError(f"The features of project {project} are on their way here: ask again in a minute")
        with self.database.read() as conn:
            found = projects.known(conn, project)
            return explanation.explain(conn, self.settings.for_project(found.extra_params), found, task)

    def insight(self, project: int) -> dict[str, Any]:
        """How it does and what is left of it, JSON-ready; see overview.py. Raises UnknownProject."""
        with self.database.read() as conn:
            projects.known(conn, project)
            done = rounds.all(conn, project)
        return overview.describe(self._arrays(project), done)

    def map_tags(self, project: int) -> dict[str, str]:
        """Texts that change with what `map_places` and `map_marks` give; "" = there is no map yet."""
        arrays = self._arrays(project)
        return {"places": overview.places_tag(arrays), "marks": overview.marks_tag(arrays)}

    def map_places(self, project: int) -> bytes | None:
        """The map of the pool, as overview.places gives it. Raises UnknownProject."""
        self.project(project)
        return overview.places(self._arrays(project))

    def map_marks(self, project: int) -> bytes | None:
        """What the map's tasks are labelled with, as overview.marks gives it. Raises UnknownProject."""
        return overview.marks(self._arrays(project), self.batch_size(project))

    def failed_images(self, project: int, limit: int | None = None, offset: int = 0) -> list[dict[str, Any]]:
        """Tasks whose image can't be had, by ascending id, with the reason. Raises UnknownProject."""
        with self.database.read() as conn:
            projects.known(conn, project)
            return [_json(each) for each in tasks.failed_images(conn, project, limit, offset)]

    def thumbnail(self, project: int, task: int) -> tuple[int, np.ndarray] | None:
        """The small picture that a task's image was made into, uint8 [side, side, 3], and the key of that image.

        None while there is none. Raises UnknownProject.
        """
        self.project(project)
        arrays = self._arrays(project, kinds.IMAGES)
        return arrays.one(kinds.thumbnails_kind(self.settings.image_size), task) if 0 < task < 2**63 else None

    def training(self, project: int, number: int) -> dict[str, Any] | None:
        """How far the training of a round is: phase, epoch, epochs, eta_seconds; None before its first epoch."""
        folder = self._arrays(project).root / "training" / f"{number:06d}"
        try:
            found = json.loads((folder / "progress.json").read_text())
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def batch_size(self, project: int) -> int:
        """How many labels make a query round of this project. Raises UnknownProject."""
        return self.settings.for_project(self.project(project).extra_params).batch_size

    def label_studio(self, project: int) -> str:
        """Label Studio's address for a browser, "" = not known: as it calls itself, else as we reach it."""
        return (self.project(project).label_studio_url or self.settings.label_studio_url).rstrip("/")

    def measured(self, project: int) -> Measured:
        """What its worker has measured."""
        return measures.read(self._arrays(project))

    # helpers

    def _arrays(self, project: int, *groups: str) -> ProjectArrays:
        """The project's arrays; where they come from an object store, these groups of them (default: the small ones) as
        they are listed there. Not within a transaction."""
        if self._objects is not None:
            self._objects.fetch(project, *(groups or SMALL))
        return ProjectArrays(self.settings.data_dir, project)

    def project(self, project: int) -> Project:
        """The project as the store keeps it. Raises UnknownProject."""
        with self.database.read() as conn:
            return projects.known(conn, project)

    def _file_once(self, conn: Connection, project: int, action: str) -> None:
        if not inbox.has_pending(conn, project, action):
            inbox.append(conn, project, action, _payload(project))

    def _file(self, project: int, action: str) -> int:
        with self.database.begin() as conn:
            projects.known(conn, project)
            event = inbox.append(conn, project, action, _payload(project))
        log.info("project %d: event %d, %s", project, event, action)
        return event

    def _head(self, project: int) -> Head | None:
        return snapshots.read_head(self._arrays(project))

    def _ranking(self, project: int, head: Head | None = None) -> dict[str, Any] | None:
        """The numbers of every unlabelled task; head: where it has been read already."""
        arrays = self._arrays(project)
        return snapshots.read_ranking(arrays, head or snapshots.read_head(arrays))

    def _file_unknown(
        self, project: Project, asked: Sequence[Mapping[str, Any]], unscored: set[int], backend_url: str
    ) -> set[int]:
        """File those of the `unscored` tasks that the store doesn't have; returns their ids."""
        if not unscored:
            return set()
        with self.database.read() as conn:
            unknown = unscored - set(tasks.task_ids(conn, project.id))
            syncing = bool(unknown) and inbox.has_pending(conn, project.id, SYNC)
        if not unknown or syncing:  # the sync reads them anyway
            return unknown
        body = {
            "action": "TASKS_CREATED",
            "tasks": [task for task in asked if task["id"] in unknown],
            **_payload(project.id),
        }
        self.accept(parse_webhook(body), backend_url)
        return unknown

    def _wait_for(self, project: int, ids: set[int], ranking: dict[str, Any] | None) -> dict[str, Any] | None:
        until = time.monotonic() + self.settings.predict_wait_seconds
        pause = FIRST_LOOK_SECONDS
        while _known(ranking, ids) != ids and (left := until - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, LONGEST_LOOK_SECONDS)
            ranking = self._ranking(project)
        return ranking

    def _status(self, conn: Connection, project: Project) -> dict[str, Any]:
        depth = inbox.depth(conn, project.id)
        received = inbox.received_through(conn, project.id)
        arrays = ProjectArrays(self.settings.data_dir, project.id)
        head = snapshots.read_head(arrays)
        return {
            "id": project.id,
            "title": project.title,
            "state": project.state,
            "detail": _neglect(depth, projects.lease_owner(conn, project.id)) or project.detail,
            "progress": {
                "done": project.progress_done,
                "total": project.progress_total,
                "eta_seconds": project.progress_eta_seconds,
            },
            "sampling": project.sampling,
            "model_version": project.model_version or NO_VERSION,
            "tasks": asdict(tasks.counts(conn, project.id)),
            "labelled": {
                "known": head.known if head else 0,
                "invalid": head.invalid if head else 0,
            },
            "unlabelled": head.unlabelled if head else 0,
            "without_label": overview.without_label(head.without_label if head else ()),
            "classes": list(head.classes) if head else [],
            "classifier": overview.classifier(arrays),
            "prefilled": overview.prefilled(prefills.kept(conn, project.id)),
            "queue": asdict(depth),
            "received_through": received,
            "applied_event": project.applied_event,
            "published_event": project.published_event,
            "caught_up": project.published_event >= received,
            "synced_at": _json(project.synced_at),
            "reconciled_at": _json(project.compared_at),
            "rounds": [_round(each) for each in rounds.all(conn, project.id)],
        }


def _predictions(
    project: Project,
    asked: Sequence[Mapping[str, Any]],
    ranking: dict[str, Any] | None,
    config: label_config.LabelConfig | None,
    fill: Callable[[Ranked], str | None],
) -> list[dict[str, Any]]:
    version = project.model_version or NO_VERSION
    answers = []
    for task in asked:
        at = _place(ranking, task["id"])
        filled: list[dict[str, Any]] = []
        priority = 0.0
        if ranking is not None and at is not None:
            scored = snapshots.row(ranking, at, at)
            priority = scored.priority
            if config is not None:
                choice = fill(scored)
                filled = result(choice if choice in config.classes else None, config, reasons(scored))
        answers.append({"result": filled, "score": score(priority, project.sampling), "model_version": version})
    return answers


def _is_news(known: Project, fields: Mapping[str, Any]) -> bool:
    """Whether a /setup of a known project asks for more than a look at what has changed."""
    if known.synced_at is None or known.state in (projects.BLOCKED, projects.DISCONNECTED):
        return True
    return any(getattr(known, name) != value for name, value in fields.items() if name != "backend_url")


def _project_of(asked: Sequence[Mapping[str, Any]]) -> int:
    for at, task in enumerate(asked):
        if task.get("project") is not None:
            return project_id(task["project"], f"tasks[{at}].project")
    raise BadRequest("neither the body nor a task names the project", "project")


def _payload(project: int) -> dict[str, Any]:
    return {"project": {"id": project}}


def _known(ranking: dict[str, Any] | None, ids: set[int]) -> set[int]:
    """Those of `ids` that have a score."""
    if ranking is None or not ids:
        return set()
    wanted = np.fromiter(ids, dtype=np.int64, count=len(ids))
    return {int(task) for task in wanted[np.isin(wanted, ranking["ids"])]}


def _neglect(depth: inbox.QueueDepth, worker: str | None) -> str:
    """What to say of events that nobody takes in."""
    if worker is None and depth.oldest_seconds > NEGLECT_SECONDS:
        return f"{depth.count} events wait for a worker: is `neat-backend worker` (or `serve`) running here?"
    return ""


def _place(ranking: dict[str, Any] | None, task: int | None) -> int | None:
    """Where the task is in the ranking's arrays; None if it has no score."""
    if ranking is None or task is None:
        return None
    ids: np.ndarray = ranking["ids"]  # [n], ascending
    at = int(np.searchsorted(ids, task))
    return at if at < len(ids) and ids[at] == task else None


def _order(ranking: dict[str, Any], head: Head | None) -> np.ndarray:
    """Places in the ranking's arrays, best first: the head as it is, then by priority and smaller id."""
    ids: np.ndarray = ranking["ids"]  # [n], ascending
    tasks = np.array([task.task for task in head.tasks] if head else [], np.int64)
    first = np.searchsorted(ids, tasks)  # a ranking that was read with its head has them all
    rest = np.ones(len(ids), bool)
    rest[first] = False
    at = np.flatnonzero(rest)
    return np.concatenate([first, at[np.lexsort((ids[at], -ranking["priority"][at]))]])


def _round(each: Round) -> dict[str, Any]:
    row: dict[str, Any] = _json(asdict(each))
    return row | {"precision": each.precision, "held_out_accuracy": each.held_out_accuracy}


def _json(value: Any) -> Any:
    """Datetimes as ISO text, records as objects; everything else as it is."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return _json(asdict(value))
    return value
