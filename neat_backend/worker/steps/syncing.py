"""Reading from Label Studio: the whole project, a few tasks' annotations, or changes that no webhook reported."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import datetime, timezone

from neat_backend.store import projects
from neat_backend.worker.steps import reading
from neat_backend.worker.steps.comparing import Comparing
from neat_backend.worker.steps.connection_watch import Connecting
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.followed import Followed
from neat_backend.worker.steps.image_fetching import PoolImages
from neat_backend.worker.steps.intake import Intake
from neat_backend.worker.steps.label_schema import Schema
from neat_backend.worker.steps.shown_state import ShownState
from neat_backend.worker.steps.slices import Slices
from neat_backend.worker.steps.wanted import Wanted

TASKS_PER_SECOND = 2000.0  # that Label Studio usually gives: the time left, until the first page has been timed


class Syncing:
    """Fulfils the requests of `Wanted`; from one thread. A request that raises LabelStudioError remains."""

    def __init__(
        self,
        context: Context,
        intake: Intake,
        schema: Schema,
        followed: Followed,
        connecting: Connecting,
        comparing: Comparing,
        wanted: Wanted,
        state: ShownState,
    ) -> None:
        self._context, self._intake, self._schema, self._followed = context, intake, schema, followed
        self._connecting, self._comparing, self._wanted, self._state = connecting, comparing, wanted, state
        self._missed = True  # changes made while no worker ran are not read yet
        self.compare_at = time.monotonic() + (context.settings.reconcile_seconds or math.inf)

    def read_project(self, images: PoolImages, stopped: Callable[[], bool]) -> None:
        """Read the whole project; at the first time, slices of a large one are read and encoded before and meanwhile.

        stopped: whether to encode no more images.
        """
        try:
            self._read_project(Slices(self._context, images, stopped))
        except BaseException:  # whatever failed, the request remains
            self._wanted.read = True
            raise

    def _read_project(self, slices: Slices) -> None:
        self._state.at(projects.SYNCING)
        project, backend, info = self._connecting.hold(tabs=False)
        if project.synced_at is None:
            self._state.progress(0, info.task_count, info.task_count / TASKS_PER_SECOND)
            slices.add_first(info)
        self._connecting.make_tabs()
        self._connecting.ensure_webhook(backend)
        if self._missed and project.compared_at is not None:
            image_key = self._schema.config.image_key
            self._comparing.read_missed(project.compared_at, image_key, self._followed.label_config)
        self._missed = False
        self._wanted.read = False
        began, started = self._context.client.now(), time.monotonic()

        def progress(done: int, total: int) -> None:
            self._state.progress(done, total, (time.monotonic() - started) / max(done, 1) * (total - done))
            add_slice()

        with slices.adding() as add_slice:
            found = reading.read_project(self._context, progress)
        self._intake.apply_reading(found, began)
        self._comparing.read_at(began)
        now = datetime.now(timezone.utc)
        self._context.update(synced_at=now, compared_at=now)
        # Label Studio makes its own webhook after the answer to /setup: check again now.
        self._connecting.ensure_webhook(backend)

    def read_annotations(self) -> None:
        """Read the annotations of tasks that were imported with some."""
        tasks, self._wanted.annotations = self._wanted.annotations, set()
        try:
            reading.read_annotations(self._context, sorted(tasks))
            self._intake.relabel(tasks)
        except BaseException:
            self._wanted.annotations |= tasks
            raise

    def comparison_is_due(self) -> bool:
        return time.monotonic() >= self.compare_at or self._wanted.compare

    def compare(self) -> None:
        """Find changes that no webhook reported."""
        called = self._wanted.compare  # by /setup: Label Studio may have made a webhook since
        self._wanted.compare = False
        try:
            project, backend, info = self._connecting.hold()
            if called or backend.key != project.connection:
                self._connecting.ensure_webhook(backend)
            compared = self._comparing.compare(self._schema.config.image_key, self._followed.label_config, info)
        except BaseException:
            self._wanted.compare = True  # try again as soon as Label Studio answers
            raise
        if compared.read_again:
            self._wanted.read = True
        if compared.info is not None and compared.info.sampling != self._followed.sampling:
            self._followed.sampling = compared.info.sampling
            self._context.update(sampling=compared.info.sampling)
        self.compare_at = time.monotonic() + (self._context.settings.reconcile_seconds or math.inf)
        if compared.equal:
            self._context.update(compared_at=datetime.now(timezone.utc))
