"""The operations that the web, the command line and model.py share.

Imports neither torch nor Label Studio's SDK: answers come from the store, and long work is filed in the inbox for
the worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from sqlalchemy import Connection

from neat_backend import connection
from neat_backend.errors import BadLabelConfig, BadRequest, SettingsError, StoreError
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.events import PredictRequest, Setup, Webhook, parse_webhook, pieces
from neat_backend.ranking.prefill import filled_in
from neat_backend.records import COMPARE, RETRY_IMAGES, SYNC, TRAIN, Project
from neat_backend.service import explanation, overview, predictions, status
from neat_backend.service.status import NO_VERSION
from neat_backend.settings import Settings
from neat_backend.store import inbox, kinds, measures, prequential, projects, rounds, snapshots, tasks
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.group_commit import GroupCommit
from neat_backend.store.measures import Measured
from neat_backend.store.objects import SMALL, Objects
from neat_backend.store.snapshots import Head

log = logging.getLogger(__name__)

WAITING = "waiting to be read from Label Studio"
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.05, 0.5  # between two reads while a task is being scored


class Service:
    """The backend's operations on one database and data folder."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings = settings
        self.database = database
        self._inbox_writer = GroupCommit(database)
        self._objects = Objects(settings.arrays_url, settings.data_dir, database) if settings.arrays_url else None

    # requests of Label Studio

    def connect(self, setup: Setup, backend_url: str) -> str:
        """Store a connection (/setup); returns the model version that is switched on.

        The worker reads the project; this method only files the event for it. A label config that can't be used is
        kept and the project blocked, so that the repaired config (PROJECT_UPDATED) unblocks it.
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
        new = known is None or _is_new(known, fields)
        with self.database.begin() as conn:
            if known is None or known.state in (projects.BLOCKED, projects.DISCONNECTED):
                fields |= {"state": projects.CONNECTING, "detail": WAITING}
            project = projects.save_connection(conn, setup.project, **fields)
            # Label Studio also calls /setup when a user opens the Data Manager or the settings page.
            self._file_once(conn, setup.project, SYNC if new else COMPARE)
        if new:
            log.info("project %d connected from %s", setup.project, setup.hostname or "Label Studio")
        return project.model_version or NO_VERSION

    def accept(self, webhook: Webhook, backend_url: str = "") -> int:
        """File a webhook; returns its event's id once it is durable, 0 for an action of no use here.

        backend_url: the address it was sent to; by it the worker finds out whether an unknown project is connected
        to this backend.
        """
        if not webhook.known:
            log.debug("webhook %s ignored", webhook.action)
            return 0
        payloads = [{**piece, "backend_url": backend_url} for piece in pieces(webhook.payload)]
        event = self._inbox_writer.file(webhook.project, webhook.action, *payloads)
        log.debug("project %d: event %d, %s", webhook.project, event, webhook.action)
        return event

    def predict(self, request: PredictRequest, backend_url: str = "") -> list[dict[str, Any]]:
        """One prediction per task, in order, from the stored scores.

        Unknown tasks are filed as new. If the project is ready, their scores are awaited for at most
        `predict_wait_seconds` in all. A task without a score then gets one that puts it last.
        """
        if not request.tasks:
            return []
        number = request.project or predictions.project_of(request.tasks)
        with self.database.read() as conn:
            project = projects.get(conn, number) or Project(number)
        ids = {task["id"] for task in request.tasks if task["id"] is not None}
        ranking = self._ranking(number)
        filed = self._file_unknown(project, request.tasks, ids - predictions.scored(ranking, ids), backend_url)
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
        tested = prequential.read(self._local(number)).leader_counts if settings.prefill == "agree" else (0, 0)
        return predictions.predictions(
            project, request.tasks, ranking, config, lambda task: filled_in(task, settings.prefill, tested, settings.k)
        )

    def versions(self, project: int | None) -> list[str]:
        """The switched-on model version of `project`, or those of all projects."""
        with self.database.read() as conn:
            found = projects.all(conn) if project is None else [projects.known(conn, project)]
        return sorted({each.model_version or NO_VERSION for each in found})

    # requests to the worker

    def train(self, project: int) -> int:
        """Request a training round; returns the event's id. Raises UnknownProject."""
        return self._file(project, TRAIN)

    def sync(self, project: int) -> int:
        """Request a new read of the whole project; returns the event's id. Raises UnknownProject."""
        return self._file(project, SYNC)

    def retry_images(self, project: int) -> int:
        """Request another attempt at the failed images; returns the event's id. Raises UnknownProject."""
        return self._file(project, RETRY_IMAGES)

    def retry_events(self, project: int) -> int:
        """Put the events that were set aside back into the queue; returns their number. Raises UnknownProject."""
        with self.database.begin() as conn:
            projects.known(conn, project)
            aside = inbox.set_aside_events(conn, project)
            for event, _ in aside:
                inbox.requeue(conn, event.id)
        return len(aside)

    def forget(self, project: int) -> None:
        """Delete all data of a project here; nothing changes in Label Studio. Raises UnknownProject."""
        self.project(project)
        connection.forget(self.database, self.settings.data_dir, self._objects, project)
        log.info("project %d forgotten", project)

    # queries

    def projects(self) -> list[dict[str, Any]]:
        """The status of every connected project, by id."""
        with self.database.read() as conn:
            found = sorted(projects.all(conn), key=lambda each: each.id)
        for project in found:
            self._arrays(project.id)
        with self.database.read() as conn:
            return [status.describe(conn, project, self._local(project.id)) for project in found]

    def status(self, project: int) -> dict[str, Any]:
        """The status of a project, JSON-ready. Raises UnknownProject.

        `caught_up`: the published order reflects every event received so far.
        """
        arrays = self._arrays(project)
        with self.database.read() as conn:
            return status.describe(conn, projects.known(conn, project), arrays)

    def rounds(self, project: int) -> list[dict[str, Any]]:
        """The project's query rounds, first to last, JSON-ready. Raises UnknownProject."""
        with self.database.read() as conn:
            projects.known(conn, project)
            return [status.round_row(each) for each in rounds.all(conn, project)]

    def ranking(self, project: int, limit: int = 100, offset: int = 0) -> list[dict[str, Any]]:
        """Unlabelled tasks with their scores, best first, ties by smaller id. Raises UnknownProject.

        The order begins with the published head.
        """
        self.project(project)
        head = snapshots.read_head(self._arrays(project))
        if head is not None and offset + limit <= len(head.tasks):
            return [asdict(task) for task in head.tasks[offset : offset + limit]]
        ranking = self._ranking(project, head)
        if ranking is None:
            return []
        order = predictions.order(ranking, head)[offset : offset + limit]
        return [asdict(snapshots.row(ranking, int(at), offset + number)) for number, at in enumerate(order)]

    def explain(self, project: int, task: int) -> dict[str, Any]:
        """The reasons for a task's place in the order, JSON-ready; see explanation.py.

        Raises UnknownProject, UnknownTask, BadLabelConfig while the label config can't be used, or StoreError while
        the features are being downloaded.
        """
        self.arrays_with_features(project)
        with self.database.read() as conn:
            found = projects.known(conn, project)
            return explanation.explain(conn, self.settings.for_project(found.extra_params), found, task)

    def arrays_with_features(self, project: int) -> ProjectArrays:
        """The project's arrays. Raises StoreError while the features are being downloaded."""
        arrays = self._arrays(project, *SMALL, kinds.FEATURES, kinds.PROBABILITIES)
        if self._objects is not None and not self._objects.is_fetched(project, kinds.FEATURES, kinds.PROBABILITIES):
            raise StoreError(f"The features of project {project} are being downloaded: try again in a minute")
        return arrays

    def insight(self, project: int) -> dict[str, Any]:
        """The project's estimates, JSON-ready; see overview.py. Raises UnknownProject."""
        with self.database.read() as conn:
            target = projects.known(conn, project).target
            done = rounds.all(conn, project)
        return overview.describe(self._arrays(project), done, overview.TARGET if target is None else target)

    def map_tags(self, project: int) -> dict[str, str]:
        """Texts that change with the results of `map_places` and `map_marks`; "" = no map yet."""
        arrays = self._arrays(project)
        return {"places": overview.places_tag(arrays), "marks": overview.marks_tag(arrays)}

    def map_places(self, project: int) -> bytes | None:
        """The map of the pool, as overview.places gives it. Raises UnknownProject."""
        self.project(project)
        return overview.places(self._arrays(project))

    def map_marks(self, project: int) -> bytes | None:
        """The labels of the map's tasks, as overview.marks gives them. Raises UnknownProject."""
        return overview.marks(self._arrays(project), self.batch_size(project))

    def failed_images(self, project: int, limit: int | None = None, offset: int = 0) -> list[dict[str, Any]]:
        """Tasks whose image can't be read, by ascending id, with the reason. Raises UnknownProject."""
        with self.database.read() as conn:
            projects.known(conn, project)
            return [status.as_json(each) for each in tasks.failed_images(conn, project, limit, offset)]

    def thumbnail(self, project: int, task: int) -> tuple[int, np.ndarray] | None:
        """A task's thumbnail, uint8 [side, side, 3], and the key of its image; None while there is none.

        Raises UnknownProject.
        """
        self.project(project)
        arrays = self._arrays(project, kinds.IMAGES)
        return arrays.one(kinds.thumbnails_kind(self.settings.image_size), task) if 0 < task < 2**63 else None

    def training(self, project: int, number: int) -> dict[str, Any] | None:
        """Progress of a round's training: phase, epoch, epochs, eta_seconds; None before its first epoch."""
        return status.training(self._arrays(project), number)

    def batch_size(self, project: int) -> int:
        """Labels per query round of this project. Raises UnknownProject."""
        return self.settings.for_project(self.project(project).extra_params).batch_size

    def label_studio(self, project: int) -> str:
        """Label Studio's address for a browser: the one it names itself, else the one set here; "" = not known."""
        return (self.project(project).label_studio_url or self.settings.label_studio_url).rstrip("/")

    def measured(self, project: int) -> Measured:
        """Measurements of the project's worker."""
        return measures.read(self._arrays(project))

    # helpers

    def _arrays(self, project: int, *groups: str) -> ProjectArrays:
        """The project's arrays. With an object store, first downloads the listed files of these groups (default: the
        small ones), so don't call it within a transaction."""
        if self._objects is not None:
            self._objects.fetch(project, *(groups or SMALL))
        return self._local(project)

    def _local(self, project: int) -> ProjectArrays:
        return ProjectArrays(self.settings.data_dir, project)

    def project(self, project: int) -> Project:
        """The project's record. Raises UnknownProject."""
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

    def _ranking(self, project: int, head: Head | None = None) -> dict[str, Any] | None:
        """The stored ranking of all unlabelled tasks; head: the head if it was already read."""
        arrays = self._arrays(project)
        return snapshots.read_ranking(arrays, head or snapshots.read_head(arrays))

    def _file_unknown(
        self, project: Project, requested: Sequence[Mapping[str, Any]], unscored: set[int], backend_url: str
    ) -> set[int]:
        """File those of the `unscored` tasks that are not in the store; returns their ids."""
        if not unscored:
            return set()
        with self.database.read() as conn:
            unknown = unscored - set(tasks.task_ids(conn, project.id))
            syncing = bool(unknown) and inbox.has_pending(conn, project.id, SYNC)
        if not unknown or syncing:  # the sync reads them anyway
            return unknown
        body = {
            "action": "TASKS_CREATED",
            "tasks": [task for task in requested if task["id"] in unknown],
            **_payload(project.id),
        }
        self.accept(parse_webhook(body), backend_url)
        return unknown

    def _wait_for(self, project: int, ids: set[int], ranking: dict[str, Any] | None) -> dict[str, Any] | None:
        until = time.monotonic() + self.settings.predict_wait_seconds
        pause = FIRST_PAUSE_SECONDS
        while predictions.scored(ranking, ids) != ids and (left := until - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
            ranking = self._ranking(project)
        return ranking


def _is_new(known: Project, fields: Mapping[str, Any]) -> bool:
    """Whether a /setup of a known project requires reading all of it again, not just its changes."""
    if known.synced_at is None or known.state in (projects.BLOCKED, projects.DISCONNECTED):
        return True
    return any(getattr(known, name) != value for name, value in fields.items() if name != "backend_url")


def _payload(project: int) -> dict[str, Any]:
    return {"project": {"id": project}}
