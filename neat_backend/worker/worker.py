"""The worker process: owns projects, one owner per project at a time, and keeps them live.

All work is jobs of one rota: a step of each owned project (running_project.py), and here the look for projects with
work, which unloads the least recently used ones for them, the renewal of the leases, and the upkeep. Notices of other
processes wake them (listener.py). Who misses one is found at the next look.
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
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from neat_backend import connection, logs
from neat_backend.compute import Compute, heap, open_compute
from neat_backend.compute.inference_process import InferenceProcess
from neat_backend.errors import LeaseLost, NeatError, SettingsError, StoreError, UnknownProject
from neat_backend.labelstudio import inspection
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.labelstudio.image_hosts import shown
from neat_backend.models.backends import backend_of, with_backend
from neat_backend.records import Project
from neat_backend.settings import Settings
from neat_backend.stopping import Stopping
from neat_backend.store import inbox, notices, objects, projects, requests, restoring, tasks, webhook_secret
from neat_backend.store.database import Database
from neat_backend.store.notices import Heard
from neat_backend.store.objects import Objects
from neat_backend.worker.listener import Listener
from neat_backend.worker.live import LiveProject, Resources
from neat_backend.worker.owned_project import OwnedProject
from neat_backend.worker.rota import Job, Pause, Rota
from neat_backend.worker.running_project import RunningProject
from neat_backend.worker.steps.backoff import Backoff
from neat_backend.worker.steps.reading import Changed
from neat_backend.worker.upkeep import Upkeep, leave

if TYPE_CHECKING:
    from neat_backend.models.encoders import Encoder

log = logging.getLogger(__name__)

LEASE_SECONDS = 6.0  # time until another worker takes over from a lost one
HEARTBEATS = 4  # renewals of a lease in that time
LOOK_SECONDS = 0.5  # between looks for work, where no notices come or a project can't be taken up yet
REST_LOOK_SECONDS = 5.0  # between them else, in case a notice was missed
LOOK_AGAIN_SECONDS = 0.2  # between them at least: notices also come of projects that other workers own
STUCK_SECONDS = 60.0  # a project with a problem for this long may be unloaded for another
REST_SECONDS = 10.0  # a project stays loaded this long after use; no other project waits longer for its slot
JOIN_SECONDS = 5.0  # longest wait for a project's jobs
STOPPING_SECONDS = 60.0  # of the main thread, which has nothing to do but to wait for a signal
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 60.0  # between complaints about the database
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
        warming = threading.Thread(target=worker.warm_up, name="encoder", daemon=True)
        warming.start()
        try:
            worker.run(stopping)
        finally:
            worker.stop()
            warming.join(JOIN_SECONDS)
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


class Worker:
    """Owns projects and runs their jobs. `run` returns when it is stopped."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings, self.database = settings, database
        self.owner = f"{_host()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self.running: dict[int, RunningProject] = {}
        self._rota = Rota()
        self._listener = Listener(database, self._hear)
        self._looking = Job("look", _Trying(self._look, self._look_pause))
        self._keeping_up = Job("upkeep", _Trying(self._upkeep_step, self._upkeep_pause))
        self._others_wait = False  # a project with work could not be taken up at the last look
        self._visited: set[int] = set()  # projects read at least once since the start
        self._pruned_at = -math.inf  # time.monotonic()
        self._waits: dict[int, float] = {}  # projects that wait for a slot, since when
        self._inference = InferenceProcess(
            settings.encoder,
            settings.encoder_weights,
            settings.device,
            settings.data_dir / "encoders",
            settings.log_format,
        )
        self._encoder: Encoder | None = None  # only with Ray, which takes its network
        self._encoder_lock = threading.Lock()
        self._objects = Objects(settings.arrays_url, settings.data_dir, database) if settings.arrays_url else None
        self._upkeep = Upkeep(
            settings,
            database,
            lambda: self.owner,
            LEASE_SECONDS,
            lambda project: self._connect(project),
            self._objects,
            lambda: self._rota.wake(self._looking),
        )

    def run(self, stopping: Stopping) -> None:
        log.info("worker %s started", self.owner)
        jobs = (
            Job("leases", _Trying(self._renew, lambda: LEASE_SECONDS / HEARTBEATS)),
            self._looking,
            self._keeping_up,
        )
        for job in jobs:
            self._rota.add(job)
        self._listener.start()
        while not stopping.wait(STOPPING_SECONDS):
            pass
        self._listener.stop()
        for job in jobs:
            self._rota.remove(job)
        self._rota.join(self._looking)
        self._rota.join(self._keeping_up, JOIN_SECONDS)

    def warm_up(self) -> None:
        """Build the encoder before the first project is connected, which then need not wait for it.

        Where projects have been read, they build it, each with the back end that made its features.
        """
        try:
            with self.database.read() as conn:
                if any(project.synced_at is not None for project in projects.all(conn)):
                    return
            settings = self.settings
            encoder, backend = self._shared_encoder(), backend_of(settings.encoder_backend, settings.compute)
            if isinstance(encoder, InferenceProcess):
                encoder.warm_up(backend)
            else:
                with_backend(encoder, backend, stored="")
        except (DBAPIError, NeatError) as error:  # a project that needs the encoder says so to people
            log.info("the encoder is not ready yet: %s", error)

    def stop(self) -> None:
        """Unload all projects and release their leases."""
        for running in self.running.values():  # all at once: each may need seconds to end
            running.stop()
        for number in list(self.running):
            self._put_away(number)
        self._inference.stop()
        log.info("worker %s stopped", self.owner)

    def _hear(self, heard: Heard) -> None:
        """Wake the jobs that notices concern."""
        for notice in heard.notices:
            running = self.running.get(notice.project)
            if running is not None:
                running.wake(notice.kind)
            if running is None or notice.kind == notices.PROJECTS:
                self._rota.wake(self._looking, self._keeping_up)
        if not heard.complete:
            self._rota.wake(self._looking)

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
            with_events, with_requests = inbox.projects_with_work(conn), requests.projects_with_requests(conn)
            known, owners = projects.all(conn), projects.lease_owners(conn)
        waiting = {*with_events, *self._upkeep.wanted}
        connections = {project.id: _connection(project) for project in known}
        self._others_wait = False
        if self._put_away_lost(connections):
            self._others_wait = True
            return  # the rows read above are outdated: try again soon
        self._wake(with_events, notices.EVENTS)
        self._wake(with_requests, notices.REQUESTS)
        for project in sorted(known, key=lambda p: p.id not in waiting):
            if project.state == projects.DISCONNECTED:
                continue  # see upkeep.py
            if project.id in self.running or (project.id in self._visited and project.id not in waiting):
                continue
            if _is_held_by_another(owners.get(project.id), self.owner):
                self._others_wait |= project.id in waiting
                continue
            waited = time.monotonic() - self._waits.setdefault(project.id, time.monotonic())
            if len(self.running) >= self.settings.max_live_projects and not self._free_slot(waited):
                self._others_wait = True
                return
            self._waits.pop(project.id)
            requested_at = time.monotonic()
            if self._lease(project.id):
                self._start(project, requested_at + LEASE_SECONDS)
            self._others_wait |= project.id not in self.running

    def _wake(self, numbers: Iterable[int], kind: str) -> None:
        """Wake projects whose notice of this kind may have been missed."""
        for number in numbers:
            if number in self.running:
                self.running[number].wake(kind)

    def _look_pause(self) -> float:
        return REST_LOOK_SECONDS if self._listener.is_listening and not self._others_wait else LOOK_SECONDS

    def _upkeep_pause(self) -> float:
        longest = REST_LOOK_SECONDS if self._listener.is_listening else LOOK_SECONDS
        return max(min(self._upkeep.due_seconds(), longest), LOOK_SECONDS)

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
                each.stopping.set()
                self._rota.wake(self._looking)  # which unloads it

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

    # their jobs

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
        running = RunningProject(owned, _connection(project), self._rota, lambda: self._rota.wake(self._looking))
        self.running[project.id] = running
        running.load(lambda: self._load(owned, resting.found if resting else ()))

    def _load(self, owned: OwnedProject, found: Iterable[Changed]) -> LiveProject:
        """The project, loaded; found: changes that comparisons have found since it was unloaded."""
        shared = Resources(self._shared_encoder, self._connect, self._shared_compute, self._inference.classify)
        live = LiveProject.load(owned, shared)
        for changed in found:
            live.count_found(changed)
        return live

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
        self._rota.wake(self._keeping_up)

    def _shared_encoder(self) -> Encoder | InferenceProcess:
        """The encoder of all projects: in a process of its own, or for Ray here, built at first use."""
        if self.settings.compute != "ray":
            return self._inference
        from neat_backend.models.encoders import build_encoder

        with self._encoder_lock:
            if self._encoder is None:
                settings = self.settings
                self._encoder = build_encoder(settings.encoder, settings.encoder_weights, settings.device)
            return self._encoder

    def _shared_compute(self) -> Compute:
        """This machine or a Ray cluster, for all projects."""
        s = self.settings
        with self._encoder_lock:
            return open_compute(s.compute, s.ray_address, s.shards, s.device)

    def _connect(self, project: Project) -> LabelStudioClient:
        return connection.connect(self.settings, project)


class _Trying:
    """A job of the worker. Failures of the database are logged, less and less often, and it is tried again."""

    def __init__(self, do: Callable[[], None], pause_seconds: Callable[[], float]) -> None:
        self._do, self._pause_seconds = do, pause_seconds
        self._backoff, self._say_at = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS), -math.inf

    def __call__(self) -> Pause:
        logs.about()
        try:
            self._do()
        except (DBAPIError, StoreError) as error:
            if time.monotonic() >= self._say_at:
                log.error("the database can't be used, trying again: %s", error)
                self._say_at = time.monotonic() + self._backoff.failed()
            return Pause(LOOK_SECONDS, LOOK_SECONDS)
        self._backoff.worked()
        seconds = self._pause_seconds()
        return Pause(seconds, min(seconds, LOOK_AGAIN_SECONDS))


def _connection(project: Project) -> tuple[object, ...]:
    """The fields that can't change while a project is live."""
    return dict(project.extra_params), project.label_studio_url, project.access_token


def _host() -> str:
    """The scope in which process ids are unique: this boot of a machine, and on Linux the PID namespace.

    Machines made from one image share a name, and their first namespaces share a number.
    """
    try:
        return f"{socket.gethostname()}/{BOOT_ID.read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():x}"


def _is_held_by_another(holder: str | None, owner: str) -> bool:
    """Whether another worker, which may be alive, has this lease."""
    return holder not in (None, owner) and not _is_dead(holder or "")


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
