"""Reading a whole project from Label Studio into the store.

Webhooks keep arriving meanwhile. Whatever an event said after the reading began is newer than what was
read: every write carries the number of the inbox's last event at that moment (`seen`), and the store
lets no earlier word undo a later one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.labelstudio.publisher import UNCERTAINTY
from neat_backend.records import Label
from neat_backend.settings import Settings
from neat_backend.store import inbox, projects, tasks
from neat_backend.store.database import Database

if TYPE_CHECKING:
    from neat_backend.labelstudio.client import LabelStudioClient, ProjectInfo

log = logging.getLogger(__name__)

TAB_TITLE = "NEAT: next batch"


@dataclass(frozen=True)
class Synced:
    """What a synchronisation found."""

    info: ProjectInfo
    config: LabelConfig
    seen: int  # the inbox's last event when the reading began
    tasks: int
    annotations: int
    deleted_tasks: int


def read_project(
    project: int,
    settings: Settings,
    client: LabelStudioClient,
    database: Database,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Synced:
    """Make the store equal to Label Studio's current data.

    settings: the project's own. Raises BadLabelConfig when the label config can't be used (it is stored
    all the same), LabelStudioError when Label Studio can't be read: what was read so far stays, and
    nothing is taken for deleted.
    """
    with database.read() as conn:
        seen = inbox.received_through(conn, project)
    info = client.project(project)
    with database.begin() as conn:
        projects.update(
            conn, project, title=info.title, label_config=info.label_config, sampling=info.sampling
        )  # fmt: skip
    config = label_config.parse(info.label_config, settings.invalid_choices, settings.control)

    present: list[int] = []
    for page in client.tasks(project, config.image_key):
        with database.begin() as conn:
            tasks.upsert_tasks(conn, project, page, seen)
        present.extend(task.id for task in page)
        on_progress(len(present), max(info.task_count, len(present)))
    annotations: list[int] = []
    for answers in client.annotations(project):
        with database.begin() as conn:
            tasks.upsert_annotations(conn, project, answers, seen, authoritative=True)
        annotations.extend(answer.id for answer in answers)
    with database.begin() as conn:
        deleted = tasks.delete_missing_tasks(conn, project, np.array(present, np.int64), seen)
        tasks.delete_missing_annotations(conn, project, np.array(annotations, np.int64), seen)
    log.info(
        "project %d: read %d tasks and %d annotations, %d tasks are gone",
        project, len(present), len(annotations), len(deleted),
    )  # fmt: skip
    return Synced(info, config, seen, len(present), len(annotations), len(deleted))


def read_annotations(project: int, of_tasks: Sequence[int], client: LabelStudioClient, database: Database) -> None:
    """Read the annotations of a few tasks: those imported together with their annotations."""
    with database.read() as conn:
        seen = inbox.received_through(conn, project)
    for answers in client.annotations(project, of_tasks):
        with database.begin() as conn:
            tasks.upsert_annotations(conn, project, answers, seen, authoritative=True)


def ensure_webhook(project: int, settings: Settings, client: LabelStudioClient, database: Database) -> None:
    """See to it that Label Studio's webhook for this project exists and carries our credentials.

    Label Studio makes it itself when the backend is connected, but without any header.
    """
    with database.read() as conn:
        known = projects.get(conn, project)
    if known is not None and known.backend_url:
        url = known.backend_url.rstrip("/") + "/webhook"
        result = client.ensure_webhook(project, url, webhook_headers(settings))
        if result != "present":
            log.info("project %d: webhook %s", project, result)


def configure(project: int, client: LabelStudioClient, database: Database) -> None:
    """Make Label Studio serve our order: uncertainty sampling, and a tab that shows what comes next.

    Once, when the project connects; whoever changes it afterwards is followed, not fought.
    """
    client.set_sampling(project, UNCERTAINTY)
    with database.begin() as conn:
        projects.update(conn, project, sampling=UNCERTAINTY)
    show_order(project, UNCERTAINTY, client)
    log.info("project %d: sampling is %r, tab %r is there", project, UNCERTAINTY, TAB_TITLE)


def show_order(project: int, sampling: str, client: LabelStudioClient) -> None:
    """Make the tab that shows what comes next, best on top; turn it round when the scores' direction has changed."""
    client.ensure_tab(project, TAB_TITLE, [("" if sampling == UNCERTAINTY else "-") + "tasks:predictions_score"])


def webhook_headers(settings: Settings) -> dict[str, str]:
    """The headers that Label Studio must send with its webhooks: ours, if basic auth is on."""
    if not settings.basic_auth_user:
        return {}
    import base64

    secret = f"{settings.basic_auth_user}:{settings.basic_auth_pass.get_secret_value()}"
    return {"Authorization": "Basic " + base64.b64encode(secret.encode()).decode()}


def resolve_labels(
    database: Database, project: int, config: LabelConfig, of_tasks: Iterable[int] | None = None
) -> list[Label]:
    """The labels of tasks (default: all), as their stored annotations make them."""
    wanted = None if of_tasks is None else list(of_tasks)
    with database.read() as conn:
        answers = tasks.annotations_of(conn, project, wanted)
        if wanted is None:
            wanted = tasks.task_ids(conn, project).tolist()
    return [label_config.resolve(task, answers.get(task, []), config) for task in wanted]
