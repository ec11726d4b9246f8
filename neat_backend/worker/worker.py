"""The worker process: owns projects, one owner per project at a time, and keeps them live.

Every project that this worker owns gets threads that repeat the steps of `LiveProject`. The main loop
here renews leases, takes up projects that need somebody, and puts the least recently used ones away.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from neat_backend import connection, logs
from neat_backend.compute import Compute, open_compute
from neat_backend.errors import (
    Disconnected,
    LabelStudioUnavailable,
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
from neat_backend.worker import heap
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps.backoff import Backoff
from neat_backend.worker.upkeep import Upkeep, leave

log = logging.getLogger(__name__)

LEASE_SECONDS = 6.0  # so soon another worker takes over from one that is gone without a word
HEARTBEATS = 4  # renewals in that time
KEEP_SECONDS = 1.0  # between two looks for array files that are to go to the object store
POLL_SECONDS = 0.05  # how soon an event is seen
LOOK_SECONDS = 0.5  # how soon a project is taken up
STUCK_SECONDS = 60.0  # a project that can't go on for so long may be put away to make room
REST_SECONDS = 10.0  # a project stays so long after it was needed, and the next one waits no longer for its room
JOIN_SECONDS = 5.0  # longest wait for a project's threads, with the other projects' leases running
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 60.0
PRUNE_EVERY_SECONDS = 3600.0
KEEP_EVENTS_SECONDS = 7 * 24 * 3600.0
KEEP_TOMBSTONES_SECONDS = 24 * 3600.0  # far longer than a webhook is late, or a reading lasts
PRUNE_AT_ONCE = 5_000
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # another one at every start of a Linux


def run(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT; then stop cleanly."""
    heap.share_one_arena()
    stopping = Stopping()
    with stopping.on_signals():
        database = Database(settings.sqlalchemy_url)
        database.migrate()
        restoring.tidy(database, settings.data_dir)
        if settings.arrays_url:
            objects.check(settings.arrays_url)
            webhook_secret.share(database, settings.data_dir)
        threading.Thread(target=_greet, args=(settings,), name="greeting", daemon=True).start()
        worker = Worker(settings, database)
        try:
            worker.run(stopping)
        finally:
            worker.stop()
            database.dispose()


def _greet(settings: Settings) -> None:
    """Say in the log whether Label Studio is where LABEL_STUDIO_URL says, and takes the key."""
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
    """Owns projects and runs their threads. `run` returns when told to stop."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self.settings, self.database = settings, database
        self.owner = f"{_host()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
        self._live: dict[int, tuple[LiveProject, list[threading.Thread]]] = {}
        self._connections: dict[int, tuple[object, ...]] = {}  # what each of them was started with
        self._visited: set[int] = set()  # projects read at least once since the start
        self._pruned_at = -math.inf  # time.monotonic()
        self._waits: dict[int, float] = {}  # projects that nobody has made room for, since when
        self._encoder: Encoder | None = None
        self._encoder_lock = threading.Lock()
        self._objects = Objects(settings.arrays_url, settings.data_dir, database) if settings.arrays_url else None
        self._upkeep = Upkeep(
            settings, database, lambda: self.owner, LEASE_SECONDS, lambda project: self._connect(project), self._objects
        )

    def run(self, stopping: Stopping) -> None:
        log.info("worker %s started", self.owner)
        # Threads of their own: to take a project up and to put it away may last longer than a lease, and Label Studio
        # may be slow to answer.
        leases = threading.Thread(
            target=_insist, args=(stopping, self._renew, LEASE_SECONDS / HEARTBEATS), name="leases", daemon=True
        )
        upkeep = threading.Thread(
            target=_insist, args=(stopping, self._keep_up, LOOK_SECONDS), name="upkeep", daemon=True
        )
        leases.start()
        upkeep.start()
        _insist(stopping, self._look, LOOK_SECONDS)
        upkeep.join(JOIN_SECONDS)

    def stop(self) -> None:
        """Put all projects away and give their leases back."""
        for live, _ in self._live.values():  # all at once: each may need seconds to come to an end
            live.stop()
        for number in list(self._live):
            self._put_away(number)
        log.info("worker %s stopped", self.owner)

    # which projects

    def _look(self) -> None:
        self._take_up()
        if time.monotonic() - self._pruned_at > PRUNE_EVERY_SECONDS:
            self._prune()
            self._pruned_at = time.monotonic()

    def _take_up(self) -> None:
        """Make those projects live that have events waiting or have not been read yet."""
        with self.database.read() as conn:
            waiting = set(inbox.projects_with_work(conn)) | self._upkeep.wanted
            known = projects.all(conn)
        connections = {project.id: _connection(project) for project in known}
        if self._put_away_lost(connections):
            return  # what was read above is not so any more: in a moment
        for project in sorted(known, key=lambda p: p.id not in waiting):
            if project.state == projects.DISCONNECTED:
                continue  # see upkeep.py
            if project.id in self._live or (project.id in self._visited and project.id not in waiting):
                continue
            waited = time.monotonic() - self._waits.setdefault(project.id, time.monotonic())
            if len(self._live) >= self.settings.max_live_projects and not self._make_room(waited):
                return
            self._waits.pop(project.id)
            asked_at = time.monotonic()
            if self._lease(project.id):
                self._start(project, asked_at + LEASE_SECONDS)

    def _put_away_lost(self, connections: Mapping[int, tuple[object, ...]]) -> bool:
        """Put away those that lost their lease, or have been connected anew or disconnected; True if there were any."""
        lost = False
        for number, (live, _) in list(self._live.items()):
            anew = self._connections[number] != connections.get(number)
            if live.stopping.is_set() or anew:
                self._put_away(number, anew)
                self._visited.discard(number)
                lost = True
        return lost

    def _make_room(self, waited_seconds: float) -> bool:
        """Put away the project that nobody has needed for longest, if one is at rest.

        One that was needed just now is likely to be needed again: it stays for REST_SECONDS. Nobody waits longer.
        """
        needed_before = time.monotonic() - (0 if waited_seconds >= REST_SECONDS else REST_SECONDS)
        resting = [live for live, _ in self._live.values() if not live.is_busy() and live.last_used <= needed_before]
        if not resting:
            resting = [live for live, _ in self._live.values() if live.stuck_seconds() > STUCK_SECONDS]
            self._visited -= {live.id for live in resting}  # they get another turn
        if not resting:
            return False
        oldest = min(resting, key=lambda live: live.last_used)
        log.info("project %d: put away to make room", oldest.id)
        self._put_away(oldest.id)
        return True

    def _lease(self, number: int) -> bool:
        with self.database.begin() as conn:
            if projects.acquire_lease(conn, number, self.owner, LEASE_SECONDS):
                return True
            holder = projects.lease_owner(conn, number)
            if holder is None or not _is_dead(holder):
                return False
            log.info("project %d: its worker %s is dead, taking over", number, holder)
            projects.release_lease(conn, number, holder)
            return projects.acquire_lease(conn, number, self.owner, LEASE_SECONDS)

    def _renew(self) -> None:
        live = {number: live for number, (live, _) in list(self._live.items()) if not live.stopping.is_set()}
        held = {*live, *self._upkeep.held}
        if not held:
            return
        asked_at = time.monotonic()
        with self.database.begin() as conn:
            kept = projects.keep_leases(conn, held, self.owner, LEASE_SECONDS)
        for number, each in live.items():
            if number in kept:
                each.leased_until = asked_at + LEASE_SECONDS
            elif not each.stopping.is_set():
                log.warning("project %d: another worker has taken it over", number)
                each.stopping.set()  # the main loop puts it away

    def _keep_up(self) -> None:
        """See to the projects that are not live."""
        try:
            self._upkeep.step()
        except (DBAPIError, StoreError):
            raise
        except Exception:  # a fault of ours must not end the thread
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
                with suppress(UnknownProject), self.database.begin() as conn:  # forgotten meanwhile
                    more = tasks.prune(conn, number, event, PRUNE_AT_ONCE) == PRUNE_AT_ONCE

    # their threads

    def _start(self, project: Project, leased_until: float) -> None:
        may, resting = self._upkeep.take_up(project.id)
        if not may:
            return  # it is being compared: in a moment
        if project.synced_at is None:
            resting = None  # forgotten and connected anew meanwhile: nothing of it has been read
        try:
            settings = self.settings.for_project(project.extra_params)
        except SettingsError as error:  # checked when they were sent, so they come from another version
            log.error("project %d: going on without its extra params: %s", project.id, error)
            settings = self.settings
        live = LiveProject(
            project,
            self.owner,
            settings,
            self.database,
            self._shared_encoder,
            self._connect,
            self._shared_compute,
            self._objects,
            resting.basis if resting else None,
        )
        for found in resting.found if resting else ():
            live.count_found(found)
        live.leased_until = leased_until
        self._visited.add(project.id)
        steps: list[tuple[str, Callable[[], bool], Callable[[], None]]] = [
            ("apply", live.apply_step, lambda: _pause(live, POLL_SECONDS)),
            ("bulk", live.bulk_step, lambda: live.wait_for_bulk(LOOK_SECONDS)),
            ("learn", live.learn_step, lambda: _pause(live, POLL_SECONDS)),
            ("plan", live.plan_step, lambda: _pause(live, POLL_SECONDS)),
            ("rounds", live.rounds_step, lambda: _pause(live, 0.2)),
            # Never at once again: what is left for it to do has to wait for its time.
            ("publish", lambda: live.publish_step() and False, lambda: _pause(live, POLL_SECONDS)),
            ("tidy", live.tidy_step, lambda: _pause(live, 1.0)),
            ("insight", lambda: live.insight_step() and False, lambda: _pause(live, 0.5)),
            # As long a rest as it took: a large ranking must not fill the network.
            ("keep", lambda: live.keep_step() and False, lambda: _pause(live, max(KEEP_SECONDS, live.keep_seconds))),
        ]
        threads = [
            threading.Thread(target=_repeat, args=(live, name, step, idle), name=f"{name}-{project.id}", daemon=True)
            for name, step, idle in steps
        ]
        loader = threading.Thread(target=_load, args=(live,), name=f"load-{project.id}", daemon=True)
        self._live[project.id] = (live, [loader, *threads])
        self._connections[project.id] = _connection(project)
        for thread in (loader, *threads):
            thread.start()

    def _put_away(self, number: int, anew: bool = False) -> None:
        """anew: what was read counts for nothing."""
        live, threads = self._live.pop(number)
        del self._connections[number]
        live.stop()
        deadline = time.monotonic() + JOIN_SECONDS
        for thread in threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))
        live.stop()  # again, for a training that was begun just then
        if live.left is None and not anew:
            self._upkeep.put_away(number, live.basis)
        try:
            if live.left is not None:
                leave(live.left, number, self.settings.data_dir, live.database, self._objects)
            with self.database.begin() as conn:
                projects.release_lease(conn, number, self.owner)
        except (DBAPIError, LeaseLost, StoreError) as error:
            log.warning("project %d: its lease runs out by itself: %s", number, error)

    def _shared_encoder(self) -> Encoder:
        """One encoder for all projects, built when the first needs it."""
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


def _insist(stopping: Stopping, do: Callable[[], None], every_seconds: float) -> None:
    """Do it again and again until told to stop. That the database fails is said, the longer the rarer."""
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
    """What a live project can't change while it is live."""
    return dict(project.extra_params), project.label_studio_url, project.access_token


def _pause(live: LiveProject, seconds: float) -> None:
    live.stopping.wait(seconds)


def _load(live: LiveProject) -> None:
    """Build the project's state, however often it takes."""

    def load() -> bool:
        live.load()
        return False

    _repeat(live, "load", load, lambda: None, once=True)


def _repeat(
    live: LiveProject, name: str, step: Callable[[], bool], idle: Callable[[], None], once: bool = False
) -> None:
    """Repeat a step until the project is put away; errors are shown, waited out and tried again."""
    logs.about(project=live.id)
    backoff = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
    if not once:
        while not live.loaded.wait(0.2):
            if live.stopping.is_set():
                return
    while not live.stopping.is_set():
        retry_after: float | None = None
        try:
            more = step()
        except (LeaseLost, ShardsLost) as error:  # it is taken up again and built from the store, by whoever can
            log.warning("%s", error)
            live.stop()
            return
        except (Disconnected, Replaced) as error:
            live.left = error
            live.stop()
            return
        except LabelStudioUnavailable as error:
            problem, retry_after = (projects.AWAY, str(error)), error.retry_after_seconds
        except NotFoundInLabelStudio as error:
            live.look_again()  # the project itself may be gone
            problem = (projects.BLOCKED, f"{error} (deleted, or not visible to the API key's user)")
        except NeatError as error:
            problem = (projects.BLOCKED, str(error))
        except DBAPIError as error:
            log.error("project %d: %s: the database failed, trying again: %s", live.id, name, error.orig)
            live.stopping.wait(backoff.failed())
            continue
        except Exception as error:  # a fault of ours must not end the thread that others wait for
            log.exception("project %d: %s failed", live.id, name)
            problem = (projects.BLOCKED, f"internal error in {name}: {error}; see the log")
        else:
            backoff.worked()
            _show(live, lambda: live.solved(name))
            if once:
                return
            if not more:
                idle()
            continue
        wait = max(backoff.failed(), retry_after or 0)
        log.warning("project %d: %s: %s; trying again in %.0f s", live.id, name, problem[1], wait)
        _show(live, lambda problem=problem: live.problem(name, *problem))  # type: ignore[misc]
        live.stopping.wait(wait)


def _show(live: LiveProject, change: Callable[[], None]) -> None:
    """Tell people about a problem or its end; that the database fails is no reason to stop trying."""
    try:
        change()
    except (DBAPIError, NeatError) as error:
        log.warning("project %d: its state can't be shown: %s", live.id, error)


def _host() -> str:
    """What process numbers can be compared within: a machine since its start, and on Linux its namespace of processes.

    Machines made from one image have one name, and their first namespace the same number.
    """
    try:
        return f"{socket.gethostname()}/{BOOT_ID.read_text().strip()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return f"{socket.gethostname()}/{uuid.getnode():x}"


def _is_dead(owner: str) -> bool:
    """Is the worker of this lease a process of this host that no longer exists?"""
    host, _, rest = owner.partition(":")
    number = rest.partition(":")[0]
    if host != _host() or not number.isdigit():
        return False
    if int(number) == os.getpid():
        return True  # an earlier process that had our number
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
