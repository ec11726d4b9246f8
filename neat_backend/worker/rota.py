"""Jobs that are repeated by a few shared threads: each when it is due, and by one thread at a time.

A job that is due never waits for another one: if no thread is free, one is started, and threads without work end. So a
worker at rest has a few threads, and one in which Label Studio answers slowly has as many as it needs.
"""

from __future__ import annotations

import heapq
import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)

IDLE_SECONDS = 10.0  # a thread without work for this long ends
AFTER_BUG_SECONDS = 5.0


@dataclass(frozen=True)
class Pause:
    """A job's pause until it is due again. math.inf: until it is woken."""

    seconds: float
    firm_seconds: float = 0.0  # waking it shortens the pause to no less than this


class Job:
    """Work that is repeated; the rota alone changes the fields."""

    def __init__(self, name: str, do: Callable[[], Pause]) -> None:
        """do: does a piece of the work, and returns the pause after it."""
        self.name, self.do = name, do
        self.due_at = math.inf  # time.monotonic(), as all times here
        self.woken_at = math.inf  # while it runs: when it is due again because somebody woke it
        self.not_before = -math.inf
        self.runs = False
        self.removed = False


class _Seat:
    """A thread without work."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.called = threading.Event()


class Rota:
    """Runs jobs. Its threads end by themselves once there are no jobs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)  # for the thread that waits for the next job to be due
        self._ended = threading.Condition(self._lock)  # a job has ended
        self._due: list[tuple[float, int, Job]] = []  # a heap; an entry whose time isn't its job's is void
        self._entries = 0
        self._jobs: set[Job] = set()
        self._seats: list[_Seat] = []
        self._is_waiting = False  # whether that thread exists

    def add(self, job: Job, within_seconds: float = 0.0) -> None:
        """Run a new job, and again after each of its pauses, until it is removed."""
        with self._lock:
            self._jobs.add(job)
            if not self._is_waiting:
                self._is_waiting = True
                threading.Thread(target=self._wait, name="rota", daemon=True).start()
            self._schedule(job, time.monotonic() + within_seconds)

    def wake(self, *jobs: Job, within_seconds: float = 0.0) -> None:
        """Run these jobs within this time. A job that runs is run once more after it."""
        with self._lock:
            at = time.monotonic() + within_seconds
            for job in self._jobs.intersection(jobs):
                if job.runs:
                    job.woken_at = min(job.woken_at, at)
                elif at < job.due_at:
                    self._schedule(job, max(at, job.not_before))

    def remove(self, job: Job) -> None:
        """Run this job no more; `join` waits for its end."""
        with self._lock:
            job.removed = True
            self._jobs.discard(job)
            self._news.notify()

    def join(self, job: Job, seconds: float | None = None) -> bool:
        """Wait until a removed job has ended, at most this long; whether it has."""
        with self._lock:
            return self._ended.wait_for(lambda: not job.runs, seconds)

    def _schedule(self, job: Job, at: float) -> None:
        if job.removed or (job.due_at == at and not math.isinf(at)):
            return
        job.due_at = at
        if at <= time.monotonic():
            self._begin(job)
        elif not math.isinf(at):
            self._entries += 1
            heapq.heappush(self._due, (at, self._entries, job))
            if self._due[0][2] is job:
                self._news.notify()

    def _begin(self, job: Job) -> None:
        """Have a thread run the job."""
        job.runs, job.due_at = True, math.inf
        if self._seats:
            seat = self._seats.pop()  # the one that has worked last, so that others end
            seat.job = job
            seat.called.set()
        else:
            threading.Thread(target=self._work, args=(job,), name=job.name, daemon=True).start()

    def _wait(self) -> None:
        """Begin each job when it is due."""
        with self._lock:
            while self._jobs:
                while self._due and (self._due[0][2].due_at != self._due[0][0] or self._due[0][2].removed):
                    heapq.heappop(self._due)
                now = time.monotonic()
                if self._due and self._due[0][0] <= now:
                    self._begin(heapq.heappop(self._due)[2])
                else:
                    self._news.wait(self._due[0][0] - now if self._due else None)
            self._is_waiting = False

    def _work(self, job: Job | None) -> None:
        """Run this job, then others."""
        while job is not None:
            thread = threading.current_thread()
            thread.name = job.name
            pause = _run(job)
            thread.name = "idle"
            job = self._next(job, pause)

    def _next(self, job: Job, pause: Pause) -> Job | None:
        """The next job for the thread that has just run this one; None: it ends."""
        with self._lock:
            now = time.monotonic()
            at = max(min(now + pause.seconds, job.woken_at), now + pause.firm_seconds)
            job.not_before, job.woken_at = now + pause.firm_seconds, math.inf
            if at <= now and not job.removed:
                return job
            job.runs = False
            self._schedule(job, at)
            if job.removed:
                self._ended.notify_all()
            seat = _Seat()
            self._seats.append(seat)
        if not seat.called.wait(IDLE_SECONDS):
            with self._lock:
                if seat in self._seats:
                    self._seats.remove(seat)
                    return None
        return seat.job


def _run(job: Job) -> Pause:
    try:
        return job.do()
    except Exception:  # a bug must not end the job
        log.exception("%s failed", job.name)
        return Pause(AFTER_BUG_SECONDS, AFTER_BUG_SECONDS)
