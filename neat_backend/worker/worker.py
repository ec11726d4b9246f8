"""The worker process: owns projects, one owner per project at a time, and keeps them live.

Each owned project has threads that repeat the steps of `LiveProject`. The main loop loads projects with work and
unloads the least recently used ones; another thread renews the leases.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from neat_backend import connection, logs
from neat_backend.compute import Compute, heap, open_compute
from neat_backend.errors import (
    Disconnected,
    LabelStudioUnavailable,
    LeaseLate,
    LeaseLost,
    NeatError,
    NotFoundInLabelStudio,
    Replaced,
    SettingsError,
    ShardsLost,
    StoreError,
    UnknownProject,
)
from neat_backend.labelstudio import inspection
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.labelstudio.image_hosts import shown
from neat_backend.models.encoders import Encoder, build_encoder
from neat_backend.records import Project
from neat_backend.settings import Settings
from neat_backend.stopping import Stopping
from neat_backend.store import inbox, objects, projects, restoring, tasks, webhook_secret
from neat_backend.store.database import Database
from neat_backend.store.objects import Objects
from neat_backend.worker.live import LiveProject, Resources
from neat_backend.worker.owned_project import OwnedProject
from neat_backend.worker.steps.backoff import Backoff
from neat_backend.worker.steps.reading import Changed
from neat_backend.worker.steps.step import Step
from neat_backend.worker.upkeep import Upkeep, leave

log = logging.getLogger(__name__)

LEASE_SECONDS = 6.0  # time until another worker takes over from a lost one
HEARTBEATS = 4  # renewals of a lease in that time
LOOK_SECONDS = 0.5  # between checks for projects with work
STUCK_SECONDS = 60.0  # a project with a problem for this long may be unloaded for another
REST_SECONDS = 10.0  # a project stays loaded this long after use; no other project waits longer for its slot
JOIN_SECONDS = 5.0  # longest wait for a project's threads
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 60.0
PRUNE_EVERY_SECONDS = 3600.0
KEEP_EVENTS_SECONDS = 7 * 24 * 3600.0
KEEP_TOMBSTONES_SECONDS = 24 * 3600.0  # far longer than the delay of a webhook or a reading
PRUNE_AT_ONCE = 5_000
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # changes at each boot of Linux


def run(settings: Settings) -> None:
    """Run a worker until SIGTERM or SIGINT; then stop cleanly."""
    heap.share_one_arena()
    stopping = Stopping()
    with stopping.on_signals():
        database = Database(settings.sqlalchemy_url)
        database.migrate()
        restoring.tidy(database, settings.data_dir)
        if settings.arrays_url:
            objects.check(settings.arrays_url)
            webhook_secret.share(database, settings.data_dir)
        threading.Thread(target=_log_label_studio, args=(settings,), name="greeting", daemon=True).start()
        worker = Worker(settings, database)
        try:
            worker.run(stopping)
        finally:
            worker.stop()
            database.dispose()


def _log_label_studio(settings: Settings) -> None:
    """Log whether Label Studio answers at LABEL_STUDIO_URL and accepts the key."""
    url, key = settings.label_studio_url, settings.label_studio_api_key.get_secret_value()
    for missing, name in ((url, "LABEL_STUDIO_URL"), (key, "LABEL_STUDIO_API_KEY")):
        if not missing:
            log.warning("%s is not set: what Label Studio sends when it connects has to do", name)
    if not url or not key:
        return
    try:
        found = inspection.who_answers(url, key, settings.request_timeout_seconds)
        log.info("Label Studio at %s: %s", shown(url), found)
    except NeatError as error:
        log.warning("Label Studio at %s can't be used yet: %s", shown(url), error)


class Running:
    """A project that this worker owns, with its threads: one that loads it, then one for each step."""

    def __init__(self, owned: OwnedProject, connection: tuple[object, ...]) -> None:
        """connection: the project's connection (`_connection`) when it was started."""
        self.owned, self.connection = owned, connection
        self.live: LiveProject | None = None  # None = not loaded yet
        self.threads: list[threading.Thread] = []

    def run(self, name: str, target: Callable[..., None], *args: object) -> None:
        """Run `target` in a thread of its own."""
        thread = threading.Thread(target=target, args=args, name=f"{name}-{self.owned.id}", daemon=True)
        thread.start()
        self.threads.append(thread)

    def is_busy(self) -> bool:
        return self.live is None or self.live.is_busy()

    @property
    def last_used(self) -> float:
        return -math.inf if self.live is None else self.live.last_used

    def stop(self) -> None:
        """Tell all threads to end; `join` waits for them."""
        self.owned.stopping.set()
        if self.live is not None:
            self.live.stop()

    def join(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for thread in self.threads:  # the first thread may start the others meanwhile
            thread.join(timeout=max(0.0, deadline - time.monotonic()))


class Worker:
    """Owns projects and runs their threads. `run` returns when it is stopped."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings, self.database = settings, database
        self.owner = f"{_host()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.running: dict[int, Running] = {}
        self._visited: set[int] = set()  # projects read at least once since the start
        self._pruned_at = -math.inf  # time.monotonic()
        self._waits: dict[int, float] = {}  # projects that wait for a slot, since when
        self._encoder: Encoder | None = None
        self._encoder_lock = threading.Lock()
        self._objects = Objects(settings.arrays_url, settings.data_dir, database) if settings.arrays_url else None
        self._upkeep = Upkeep(
            settings, database, lambda: self.owner, LEASE_SECONDS, lambda project: self._connect(project), self._objects
        )

    def run(self, stopping: Stopping) -> None:
        log.info("worker %s started", self.owner)
        # Threads of their own: loading or unloading a project may last longer than a lease, and Label Studio may be
        # slow.
        leases = threading.Thread(
            target=_retry, args=(stopping, self._renew, LEASE_SECONDS / HEARTBEATS), name="leases", daemon=True
        )
        upkeep = threading.Thread(
            target=_retry, args=(stopping, self._upkeep_step, LOOK_SECONDS), name="upkeep", daemon=True
        )
        leases.start()
        upkeep.start()
        _retry(stopping, self._look, LOOK_SECONDS)
        upkeep.join(JOIN_SECONDS)

    def stop(self) -> None:
        """Unload all projects and release their leases."""
        for running in self.running.values():  # all at once: each may need seconds to end
            running.stop()
        for number in list(self.running):
            self._put_away(number)
        log.info("worker %s stopped", self.owner)

    # which projects

    def _look(self) -> None:
        self._take_up()
        if time.monotonic() - self._pruned_at > PRUNE_EVERY_SECONDS:
            self._prune()
            self._prune_tombstones()
            self._pruned_at = time.monotonic()

    def _take_up(self) -> None:
        """Load the projects that have waiting events or have not been read yet."""
        with self.database.read() as conn:
            waiting = set(inbox.projects_with_work(conn)) | self._upkeep.wanted
            known = projects.all(conn)
        connections = {project.id: _connection(project) for project in known}
        if self._put_away_lost(connections):
            return  # the rows read above are outdated: try again soon
        for project in sorted(known, key=lambda p: p.id not in waiting):
            if project.state == projects.DISCONNECTED:
                continue  # see upkeep.py
            if project.id in self.running or (project.id in self._visited and project.id not in waiting):
                continue
            waited = time.monotonic() - self._waits.setdefault(project.id, time.monotonic())
            if len(self.running) >= self.settings.max_live_projects and not self._free_slot(waited):
                return
            self._waits.pop(project.id)
            requested_at = time.monotonic()
            if self._lease(project.id):
                self._start(project, requested_at + LEASE_SECONDS)

    def _put_away_lost(self, connections: Mapping[int, tuple[object, ...]]) -> bool:
        """Unload projects that lost their lease, were reconnected or disconnected; True if there were any."""
        lost = False
        for number, running in list(self.running.items()):
            anew = running.connection != connections.get(number)
            if running.owned.stopping.is_set() or anew:
                self._put_away(number, anew)
                self._visited.discard(number)
                lost = True
        return lost

    def _free_slot(self, waited_seconds: float) -> bool:
        """Unload the least recently used project, if one is idle; True if so.

        A project stays for REST_SECONDS after its last use, as it is likely to be used again; no other waits longer.
        """
        needed_before = time.monotonic() - (0 if waited_seconds >= REST_SECONDS else REST_SECONDS)
        every = self.running.values()
        resting = [running for running in every if not running.is_busy() and running.last_used <= needed_before]
        if not resting:
            resting = [running for running in every if running.owned.state.stuck_seconds() > STUCK_SECONDS]
            self._visited -= {running.owned.id for running in resting}  # they get another turn
        if not resting:
            return False
        oldest = min(resting, key=lambda running: running.last_used).owned.id
        log.info("project %d: put away, as others need the memory", oldest)
        self._put_away(oldest)
        return True

    def _lease(self, number: int) -> bool:
        with self.database.begin() as conn:
            if projects.acquire_lease(conn, number, self.owner, LEASE_SECONDS):
                return True
            holder = projects.lease_owner(conn, number)
            if holder in (None, self.owner) or not _is_dead(holder):
                return False  # this worker's own lease: the row is locked at the moment
            log.info("project %d: its worker %s is dead, taking over", number, holder)
            projects.release_lease(conn, number, holder)
            return projects.acquire_lease(conn, number, self.owner, LEASE_SECONDS)

    def _renew(self) -> None:
        owned = {number: running.owned for number, running in list(self.running.items())}
        owned = {number: each for number, each in owned.items() if not each.stopping.is_set()}
        held = {*owned, *self._upkeep.held}
        if not held:
            return
        requested_at = time.monotonic()
        with self.database.begin() as conn:
            kept = projects.keep_leases(conn, held, self.owner, LEASE_SECONDS)
        for number, each in owned.items():
            if number in kept:
                each.leased_until = requested_at + LEASE_SECONDS
            elif not each.stopping.is_set():
                log.warning("project %d: another worker has taken it over", number)
                each.stopping.set()  # the main loop unloads it

    def _upkeep_step(self) -> None:
        """Run one step of the upkeep of projects that are not live."""
        try:
            self._upkeep.step()
        except (DBAPIError, StoreError):
            raise
        except Exception:  # a bug must not end the thread
            log.exception("projects that are not live can't be kept up")

    def _prune(self) -> None:
        before = datetime.now(timezone.utc) - timedelta(seconds=KEEP_EVENTS_SECONDS)
        more = True
        while more:
            with self.database.begin() as conn:
                more = inbox.prune(conn, before, PRUNE_AT_ONCE) == PRUNE_AT_ONCE

    def _prune_tombstones(self) -> None:
        before = datetime.now(timezone.utc) - timedelta(seconds=KEEP_TOMBSTONES_SECONDS)
        with self.database.read() as conn:
            through = {one.id: inbox.settled_through(conn, one.id, before) for one in projects.all(conn)}
        for number, event in through.items():
            more = True
            while more:
                more = False
                with suppress(UnknownProject), self.database.begin() as conn:  # deleted meanwhile
                    more = tasks.prune(conn, number, event, PRUNE_AT_ONCE) == PRUNE_AT_ONCE

    # their threads

    def _start(self, project: Project, leased_until: float) -> None:
        may, resting = self._upkeep.take_up(project.id)
        if not may:
            return  # it is being compared: try again soon
        if project.synced_at is None:
            resting = None  # deleted and connected again meanwhile: nothing of it has been read
        try:
            settings = self.settings.for_project(project.extra_params)
        except SettingsError as error:  # checked when they were sent: from another version of the backend
            log.error("project %d: going on without its extra params: %s", project.id, error)
            settings = self.settings
        basis = resting.basis if resting else None
        owned = OwnedProject(project, self.owner, settings, self.database, self._objects, basis)
        owned.leased_until = leased_until
        self._visited.add(project.id)
        running = self.running[project.id] = Running(owned, _connection(project))
        running.run("load", self._load, running, resting.found if resting else ())

    def _load(self, running: Running, found: Iterable[Changed]) -> None:
        """Load the project, repeatedly until that works, then start its steps."""
        owned = running.owned
        shared = Resources(self._shared_encoder, self._connect, self._shared_compute)

        def load() -> bool:
            running.live = LiveProject.load(owned, shared)
            return False

        _repeat(owned, "load", load, lambda: None, once=True)
        live = running.live
        if live is None:
            return  # it is being unloaded
        for changed in found:
            live.count_found(changed)
        for step in live.steps:
            if not owned.stopping.is_set():
                running.run(step.name, _run, live, step)

    def _put_away(self, number: int, anew: bool = False) -> None:
        """Unload a project. anew: forget how far it was read."""
        running = self.running.pop(number)
        owned = running.owned
        running.stop()
        running.join(JOIN_SECONDS)
        running.stop()  # again, for a training that began meanwhile
        if owned.left is None and not anew:
            self._upkeep.put_away(number, owned.basis if running.live is None else running.live.basis)
        try:
            if owned.left is not None:
                leave(owned.left, number, self.settings.data_dir, owned.database, self._objects)
            with self.database.begin() as conn:
                projects.release_lease(conn, number, self.owner)
        except (DBAPIError, LeaseLost, StoreError) as error:
            log.warning("project %d: its lease runs out by itself: %s", number, error)

    def _shared_encoder(self) -> Encoder:
        """One encoder for all projects, built at first use."""
        with self._encoder_lock:
            if self._encoder is None:
                started = time.monotonic()
                settings = self.settings
                self._encoder = build_encoder(settings.encoder, settings.encoder_weights, settings.device)
                log.info("encoder %s ready in %.1f s", self._encoder.key, time.monotonic() - started)
            return self._encoder

    def _shared_compute(self) -> Compute:
        """This machine or a Ray cluster, for all projects."""
        s = self.settings
        with self._encoder_lock:
            return open_compute(s.compute, s.ray_address, s.shards, s.device)

    def _connect(self, project: Project) -> LabelStudioClient:
        return connection.connect(self.settings, project)


def _retry(stopping: Stopping, do: Callable[[], None], every_seconds: float) -> None:
    """Call `do` repeatedly until stopped. Failures of the database are logged, less and less often."""
    backoff, say_at = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS), -math.inf
    while not stopping.is_set():
        try:
            do()
        except (DBAPIError, StoreError) as error:
            if time.monotonic() >= say_at:
                log.error("the database can't be used, trying again: %s", error)
                say_at = time.monotonic() + backoff.failed()
        else:
            backoff.worked()
        stopping.wait(every_seconds)


def _connection(project: Project) -> tuple[object, ...]:
    """The fields that can't change while a project is live."""
    return dict(project.extra_params), project.label_studio_url, project.access_token


def _run(live: LiveProject, step: Step) -> None:
    """Repeat the step until the project is unloaded."""

    def once() -> bool:
        return step.step() and step.again_at_once

    def rest() -> None:
        step.rest(live.owned.stopping)

    _repeat(live.owned, step.name, once, rest, on_missing=live.wanted.compare_now)


def _repeat(
    owned: OwnedProject,
    name: str,
    step: Callable[[], bool],
    idle: Callable[[], None],
    *,
    once: bool = False,
    on_missing: Callable[[], None] = lambda: None,
) -> None:
    """Repeat a step until the project is unloaded; after an error, show it, wait and try again.

    once: stop after the first success. on_missing: called when something is missing in Label Studio.
    """
    logs.about(project=owned.id)
    backoff = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
    while not owned.stopping.is_set():
        retry_after: float | None = None
        try:
            more = step()
        except (LeaseLost, ShardsLost) as error:  # some worker will load it again from the store
            log.warning("%s", error)
            owned.stopping.set()
            return
        except (Disconnected, Replaced) as error:
            owned.left = error
            owned.stopping.set()
            return
        except LabelStudioUnavailable as error:
            problem, retry_after = (projects.AWAY, str(error)), error.retry_after_seconds
        except NotFoundInLabelStudio as error:
            on_missing()  # the project itself may have been deleted
            problem = (projects.BLOCKED, f"{error} (deleted, or not visible to the API key's user)")
        except LeaseLate as error:  # a busy machine: nothing for a person to do
            log.warning("project %d: %s: %s", owned.id, name, error)
            owned.stopping.wait(backoff.failed())
            continue
        except NeatError as error:
            problem = (projects.BLOCKED, str(error))
        except DBAPIError as error:
            log.error("project %d: %s: the database failed, trying again: %s", owned.id, name, error.orig)
            owned.stopping.wait(backoff.failed())
            continue
        except Exception as error:  # a bug must not end a thread that others wait for
            log.exception("project %d: %s failed", owned.id, name)
            problem = (projects.BLOCKED, f"internal error in {name}: {error}; see the log")
        else:
            backoff.worked()
            _show(owned, lambda: owned.state.solved(name))
            if once:
                return
            if not more:
                idle()
            continue
        wait = max(backoff.failed(), retry_after or 0)
        log.warning("project %d: %s: %s; trying again in %.0f s", owned.id, name, problem[1], wait)
        _show(owned, lambda problem=problem: owned.state.problem(name, *problem))  # type: ignore[misc]
        owned.stopping.wait(wait)


def _show(owned: OwnedProject, change: Callable[[], None]) -> None:
    """Show a problem or its end; ignores failures of the database."""
    try:
        change()
    except (DBAPIError, NeatError) as error:
        log.warning("project %d: its state can't be shown: %s", owned.id, error)


def _host() -> str:
    """The scope in which process ids are unique: this boot of a machine, and on Linux the PID namespace.

    Machines made from one image share a name, and their first namespaces share a number.
    """
    try:
        return f"{socket.gethostname()}/{BOOT_ID.read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():x}"


def _is_dead(owner: str) -> bool:
    """Whether the lease's worker is a process of this host that no longer exists."""
    host, _, rest = owner.partition(":")
    number = rest.partition(":")[0]
    if host != _host() or not number.isdigit():
        return False
    if int(number) == os.getpid():
        return True  # an earlier process with this process's id
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
