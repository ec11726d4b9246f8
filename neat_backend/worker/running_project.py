"""A project that this worker owns, with its jobs: one that loads it, then one for each step.

A step runs when something in the project has changed (`stir`), when a notice names it (`wake`), when its own time has
come (`Step.wait_seconds`), and in any case every SAFETY_SECONDS.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable

from neat_backend import logs
from neat_backend.store import notices
from neat_backend.worker.attempts import Attempts
from neat_backend.worker.live import LiveProject
from neat_backend.worker.owned_project import OwnedProject
from neat_backend.worker.rota import Job, Pause, Rota
from neat_backend.worker.steps.keeping import KEEP_SECONDS
from neat_backend.worker.steps.step import Step

SAFETY_SECONDS = 60.0  # no step waits longer, so a missed change costs no more than that
FOREVER = Pause(math.inf)


class RunningProject:
    """A project with its jobs on a rota."""

    def __init__(
        self, owned: OwnedProject, connection: tuple[object, ...], rota: Rota, on_end: Callable[[], None] = lambda: None
    ) -> None:
        """connection: the project's fields that can't change while it runs. on_end: called once it is to be unloaded
        because of what a step found."""
        self.owned, self.connection = owned, connection
        self.live: LiveProject | None = None  # None = not loaded yet
        self.jobs: list[Job] = []
        self._rota, self._on_end = rota, on_end
        self._lock = threading.Lock()  # jobs are added, or the project is stopped
        self._steps: dict[str, Job] = {}
        self._pulse: tuple[object, ...] = ()

    def load(self, load: Callable[[], LiveProject]) -> None:
        """Load the project, repeatedly until that works, then start its steps."""
        attempts = Attempts(self.owned, "load")

        def once() -> bool:
            self.live = load()
            return True

        def do() -> Pause:
            logs.about(project=self.owned.id)
            loaded = attempts.once(once)
            if loaded is None:
                return self._after_failure(attempts)
            self._start_steps()
            return FOREVER

        self._add(Job(f"load-{self.owned.id}", do))

    def is_busy(self) -> bool:
        return self.live is None or self.live.is_busy()

    @property
    def last_used(self) -> float:
        return -math.inf if self.live is None else self.live.last_used

    def wake(self, kind: str) -> None:
        """Run the steps that a notice of this kind concerns."""
        name = {notices.EVENTS: "apply", notices.REQUESTS: "answer"}.get(kind)
        job = self._steps.get(name or "")
        if job is not None:
            self._rota.wake(job)

    def stir(self) -> None:
        """Run all steps, as something in the project has changed: those of the order at once, the others soon."""
        live = self.live
        for step in () if live is None else live.steps:
            job = self._steps.get(step.name)
            if job is not None:
                self._rota.wake(job, within_seconds=step.rest_seconds if step.in_background else 0.0)

    def stop(self) -> None:
        """Tell all jobs to end; `join` waits for them."""
        self.owned.stopping.set()
        if self.live is not None:
            self.live.stop()
        with self._lock:
            for job in self.jobs:
                self._rota.remove(job)

    def join(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for job in list(self.jobs):
            self._rota.join(job, max(0.0, deadline - time.monotonic()))

    def _add(self, job: Job) -> None:
        with self._lock:
            if not self.owned.stopping.is_set():
                self.jobs.append(job)
                self._rota.add(job)

    def _start_steps(self) -> None:
        live = self.live
        assert live is not None
        self._steps = {step.name: Job(f"{step.name}-{self.owned.id}", self._repeat(live, step)) for step in live.steps}
        for job in self._steps.values():
            self._add(job)
        live.on_change(self.stir, lambda: self._rota.wake(self._steps["bulk"]))
        self.stir()  # for changes before

    def _repeat(self, live: LiveProject, step: Step) -> Callable[[], Pause]:
        attempts = Attempts(self.owned, step.name, on_missing=live.wanted.compare_now)

        def do() -> Pause:
            logs.about(project=self.owned.id)
            if self.owned.stopping.is_set():
                return FOREVER
            done = attempts.once(step.step)
            self._look_for_changes(live)
            if done is None:
                return self._after_failure(attempts)
            if step.changes_files(done) and "keep" in self._steps:
                self._rota.wake(self._steps["keep"], within_seconds=KEEP_SECONDS)
            return _pause(step, done)

        return do

    def _after_failure(self, attempts: Attempts) -> Pause:
        if self.owned.stopping.is_set():
            self._on_end()
            return FOREVER
        return Pause(attempts.wait_seconds, attempts.wait_seconds)

    def _look_for_changes(self, live: LiveProject) -> None:
        """Stir the steps if anything has changed but the engine, which says so itself."""
        pulse = live.pulse()
        if pulse != self._pulse:
            self._pulse = pulse
            self.stir()


def _pause(step: Step, done: bool) -> Pause:
    if done and step.again_at_once:
        return Pause(0.0)
    longest = SAFETY_SECONDS * random.uniform(0.8, 1.0)  # not all steps at once
    seconds = min(max(step.rest_seconds, step.wait_seconds(done)), longest)
    return Pause(seconds, step.rest_seconds if step.rests_in_full else 0.0)
