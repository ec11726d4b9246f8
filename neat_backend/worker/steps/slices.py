"""Slices of a large project, which are in the order while the rest is read.

A slice's tasks are from all over the project, since a pool that is sorted by class should give several classes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.client import ProjectInfo
from neat_backend.worker.steps import reading
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.image_fetching import PoolImages

log = logging.getLogger(__name__)

PAGE = 16  # tasks
FIRST_PLACES, FIRST_PART = 8, 4  # encoding so many takes a second or two; of a project at least so many times as large
NEXT_PLACES, NEXT_PART = 64, 16  # twice as many in each further slice
FEW_TASKS = 512  # unlabelled ones in the order: read another slice. A team of ten labels so many in 150 s


class Slices:
    """The slices of one reading of a project."""

    def __init__(self, context: Context, images: PoolImages, stopped: Callable[[], bool]) -> None:
        self._context, self._images, self._stopped = context, images, stopped
        self._image_key, self._total, self._places = "", 0, NEXT_PLACES
        self._over = False

    def add_first(self, info: ProjectInfo) -> None:
        """Read and encode the slice of the first order. Raises as `reading.read_project`."""
        self._context.update(title=info.title, label_config=info.label_config)
        self._image_key = label_config.read(info.label_config, self._context.settings).image_key
        self._total = info.task_count
        if self._total >= FIRST_PART * PAGE * FIRST_PLACES:
            self._add(FIRST_PLACES)

    @contextmanager
    def adding(self) -> Iterator[Callable[[], None]]:
        """While the rest is read: gives a function to call after each page. It adds a slice where few tasks are left.

        That is done by a thread of its own, so the reading does not wait. Without `add_first`, no slice is added.
        """
        running: list[Future[None]] = []

        def look() -> None:
            busy = running and not running[-1].done()
            if busy or self._total < NEXT_PART * PAGE * self._places or self._images.unlabelled() >= FEW_TASKS:
                return
            running[:] = [pool.submit(self._try_to_add, self._places)]
            self._places *= 2

        with ThreadPoolExecutor(1, "slice") as pool:
            try:
                yield look
            finally:
                self._over = True

    def _try_to_add(self, places: int) -> None:
        try:
            self._add(places)
        except Exception:  # also a bug, which nobody else would see; the reading goes on and brings these tasks
            log.warning("project %d: a slice can't be added", self._context.project, exc_info=True)

    def _add(self, places: int) -> None:
        found = reading.read_slice(self._context, self._image_key, PAGE, places)
        self._images.embed_some(found, lambda: self._over or self._stopped())
