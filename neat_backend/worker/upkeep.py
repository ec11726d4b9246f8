"""Upkeep of projects that are not live.

Unloaded projects are compared with Label Studio and loaded again when something has changed. Disconnected and unknown
projects are connected once Label Studio lists a connection to this backend; until then their events are dropped, since
a project is read as a whole when it is connected.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

from neat_backend import connection
from neat_backend.errors import Disconnected, LabelStudioUnavailable, LeaseLost, NeatError, Replaced
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.records import SYNC, Project
from neat_backend.settings import Settings
from neat_backend.store import inbox, projects
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.objects import Objects
from neat_backend.store.owned import OwnedDatabase
from neat_backend.worker.steps.backoff import Backoff
from neat_backend.worker.steps.comparing import Basis, Comparing
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.reading import Changed

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 5.0, 600.0
MOST_INQUIRIES = 10_000  # remembered inquiries about unconnected projects


@dataclass
class Resting:
    """A project that this process has unloaded."""

    basis: Basis
    found: list[Changed] = field(default_factory=list)  # changes that comparisons have found since
    compare_at: float = 0.0  # time.monotonic()
    backoff: Backoff = field(default_factory=lambda: Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS))


@dataclass(frozen=True)
class _Served:
    """The revision that was switched on when the project was unloaded."""

    version: str

    def is_ours(self, model_version: str) -> bool:
        return model_version == self.version


@dataclass
class _Inquiry:
    """Inquiries in Label Studio whether a project is connected to this backend."""

    backoff: Backoff
    again_at: float = 0.0  # time.monotonic()
    refused: bool = False  # Label Studio answered, and lists no connection


class Upkeep:
    """Upkeep by one worker. `step` runs in a thread of its own; the main loop calls the rest."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        owner: Callable[[], str],
        lease_seconds: float,
        connect: Callable[[Project], LabelStudioClient],
        objects: Objects | None,
        on_wanted: Callable[[], None] = lambda: None,
    ) -> None:
        """on_wanted: called when a project is to be loaded again."""
        self._settings, self._database, self._objects = settings, database, objects
        self._owner, self._lease_seconds, self._connect = owner, lease_seconds, connect
        self._lock = threading.Lock()
        self._resting: dict[int, Resting] = {}
        self._wanted: set[int] = set()
        self._held: int | None = None  # the project being compared
        self._inquiries: dict[int, _Inquiry] = {}
        self._asked: set[int] = set()  # projects that the last step inquired about, or will
        self._on_wanted = on_wanted

    # called by the main loop

    @property
    def held(self) -> set[int]:
        """Projects whose lease a comparison needs."""
        held = self._held
        return set() if held is None else {held}

    @property
    def wanted(self) -> set[int]:
        """Unloaded projects to load again because something has changed."""
        with self._lock:
            return set(self._wanted)

    def put_away(self, number: int, basis: Basis) -> None:
        """Record that a project has been unloaded."""
        with self._lock:
            self._resting[number] = Resting(basis)

    def take_up(self, number: int) -> tuple[bool, Resting | None]:
        """Whether the project may be loaded now, and its state when it was unloaded."""
        with self._lock:
            if number == self._held:
                return False, None
            self._wanted.discard(number)
            return True, self._resting.pop(number, None)

    # called by its own thread

    def step(self) -> None:
        """Check for connections, then compare the project that has waited longest, if it is due."""
        with self._database.read() as conn:
            waiting = inbox.projects_with_work(conn)
            known = {project.id: project for project in projects.all(conn)}
        unconnected = {n for n, project in known.items() if project.state == projects.DISCONNECTED}
        self._asked = unconnected | (set(waiting) - known.keys())
        for number in sorted(self._asked):
            backoff = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
            inquiry = self._inquiries.setdefault(number, _Inquiry(backoff))
            if number in waiting or time.monotonic() >= inquiry.again_at:
                self._inquire(number, known.get(number), inquiry)
        if len(self._inquiries) > MOST_INQUIRIES:
            self._inquiries.clear()
        due = self._due({n: project for n, project in known.items() if n not in unconnected})
        if due is not None:
            self._compare(due)

    def due_seconds(self) -> float:
        """Time until the next inquiry or comparison is due; math.inf if there is none."""
        moments = [inquiry.again_at for number, inquiry in self._inquiries.items() if number in self._asked]
        if self._settings.reconcile_seconds:
            with self._lock:
                resting = [at for number, at in self._resting.items() if number not in self._wanted]
            moments += [at.compare_at for at in resting if at.basis.since is not None]
        return max(0.0, min(moments, default=math.inf) - time.monotonic())

    # connections

    def _inquire(self, number: int, project: Project | None, inquiry: _Inquiry) -> None:
        """Connect the project if Label Studio lists a connection to this backend, else drop its events."""
        with self._database.read() as conn:
            through = inbox.received_through(conn, number)
            waiting = inbox.pending(conn, number, 1)
        url = str(waiting[0].payload.get("backend_url") or "") if waiting else ""
        project = project or Project(number, state=projects.DISCONNECTED)
        project = replace(project, backend_url=url or project.backend_url, created_at=None)
        if time.monotonic() >= inquiry.again_at or (waiting and waiting[0].action == SYNC):  # requested by a person
            try:
                self._connect_again(project)
                del self._inquiries[number]
                return
            except NeatError as error:
                inquiry.refused = not isinstance(error, LabelStudioUnavailable)
                inquiry.again_at = time.monotonic() + inquiry.backoff.failed()
                log.info("project %d: not taken up: %s", number, error)
        if waiting and inquiry.refused:
            self._drop(number, through)

    def _connect_again(self, project: Project) -> None:
        info, backend = connection.look(self._connect(project), project)
        log.info("project %d: Label Studio lists a connection to %s; reading it", project.id, backend.url)
        with self._database.begin() as conn:
            projects.save_connection(
                conn,
                project.id,
                title=info.title,
                label_config=info.label_config,
                backend_url=project.backend_url,
                extra_params=dict(backend.extra_params),
                state=projects.CONNECTING,
                detail="",
            )

    def _drop(self, number: int, through: int) -> None:
        with self._database.begin() as conn:
            project = projects.get(conn, number)
            if project is not None and project.state != projects.DISCONNECTED:
                return  # connected by /setup meanwhile
            dropped = inbox.drop(conn, number, through)
        log.info("project %d: %d events dropped, it is not connected", number, dropped)

    # comparisons

    def _due(self, known: Mapping[int, Project]) -> Project | None:
        """The unloaded project with the oldest comparison, if that is due again."""
        seconds = self._settings.reconcile_seconds
        if not seconds:
            return None
        with self._lock:
            resting = {
                number
                for number, at in self._resting.items()
                if number not in self._wanted and at.basis.since is not None and time.monotonic() >= at.compare_at
            }
        now, never = datetime.now(timezone.utc), datetime.min.replace(tzinfo=timezone.utc)
        ages = {number: now - (known[number].compared_at or never) for number in resting & known.keys()}
        # A time in the future: the clock of this host or of another worker's host has been set.
        late = {number: age for number, age in ages.items() if not timedelta(0) <= age < timedelta(seconds=seconds)}
        return known[max(late, key=lambda number: late[number])] if late else None

    def _compare(self, project: Project) -> None:
        """Compare a project as its owner, unless another worker owns it or it has just been loaded."""
        number = project.id
        with self._lock:
            resting = self._resting.get(number)
            if resting is None:
                return
            self._held = number
        resting.compare_at = time.monotonic() + self._settings.reconcile_seconds
        try:
            with self._database.begin() as conn:
                mine = projects.acquire_lease(conn, number, self._owner(), self._lease_seconds)
            if mine:
                self._compare_owned(project, resting)
                with self._database.begin() as conn:
                    projects.release_lease(conn, number, self._owner())
        finally:
            self._held = None

    def _compare_owned(self, project: Project, resting: Resting) -> None:
        owned = OwnedDatabase(self._database, project.id, self._owner())
        try:
            if self._has_changed(project, resting, owned):
                self._want(project.id)
        except (Disconnected, Replaced) as error:
            with self._lock:
                del self._resting[project.id]
            leave(error, project.id, self._settings.data_dir, owned, self._objects)
        except LeaseLost:
            log.info("project %d: another worker has taken it over", project.id)
        except NeatError as error:
            wait = resting.backoff.failed()
            resting.compare_at = time.monotonic() + wait
            log.warning("project %d: it could not be compared: %s; trying again in %.0f s", project.id, error, wait)
        else:
            resting.backoff.worked()

    def _has_changed(self, project: Project, resting: Resting, owned: Database) -> bool:
        """Compare and store the changes found; returns whether the engine needs them."""
        client = self._connect(project)
        settings = self._settings.for_project(project.extra_params)
        config = label_config.read(project.label_config, settings)
        info, backend = connection.look(client, project)
        otherwise = backend.key != project.connection or backend.extra_params != project.extra_params
        arrays = ProjectArrays(settings.data_dir, project.id)
        comparing = Comparing(
            Context(project.id, settings, owned, arrays, client),
            _Served(project.model_version),
            resting.found.append,
            lambda: self._want(project.id),
            resting.basis,
        )
        compared = comparing.compare(config.image_key, project.label_config, info)
        if compared.read_again:
            resting.basis.since = None
        if compared.equal:
            with owned.begin() as conn:
                projects.update(conn, project.id, compared_at=datetime.now(timezone.utc))
        resampled = compared.info is not None and compared.info.sampling != project.sampling
        return otherwise or compared.read_again or resampled or any(resting.found)

    def _want(self, number: int) -> None:
        with self._lock:
            self._wanted.add(number)
        self._on_wanted()


def leave(
    why: Disconnected | Replaced, number: int, data_dir: Path, database: Database, objects: Objects | None
) -> None:
    """Disconnect or replace a project that Label Studio no longer has, or no longer connects. database: its owner's."""
    if isinstance(why, Disconnected):
        log.warning("project %d: disconnected: %s", number, why)
        with database.begin() as conn:
            projects.update(
                conn,
                number,
                state=projects.DISCONNECTED,
                detail=str(why),
                connection="",
                progress_done=0,
                progress_total=0,
                progress_eta_seconds=None,
            )
        return
    log.warning("%s; beginning anew with it", why)
    with database.read() as conn:
        project = projects.get(conn, number)
    if project is not None:
        kept = ("extra_params", "label_studio_url", "access_token", "backend_url")
        fields = {name: getattr(project, name) for name in kept}
        connection.forget(database, data_dir, objects, number, **fields, state=projects.CONNECTING, detail=str(why))
