"""The long work: reading the project, embedding images, classifying new tasks, comparing."""

from __future__ import annotations

import math
import threading
import time

from neat_backend.compute import heap
from neat_backend.store import projects
from neat_backend.worker.steps.image_fetching import PoolImages
from neat_backend.worker.steps.query_rounds import Rounds
from neat_backend.worker.steps.shown_state import ShownState
from neat_backend.worker.steps.step import Step
from neat_backend.worker.steps.syncing import Syncing
from neat_backend.worker.steps.wanted import Wanted

REST_SECONDS = 0.5  # after a change in the project; requests are fulfilled at once


class Bulk(Step):
    """Does one piece of long work at a time, requested work first."""

    name = "bulk"
    in_background = True
    rest_seconds = REST_SECONDS

    def __init__(
        self,
        syncing: Syncing,
        images: PoolImages,
        rounds: Rounds,
        wanted: Wanted,
        state: ShownState,
        stopping: threading.Event,
    ) -> None:
        self.syncing = syncing
        self._images, self._rounds, self._wanted, self._state = images, rounds, wanted, state
        self._stopping = stopping
        self._computed = False  # images have been encoded or classified, which frees much memory

    def _work(self) -> bool:
        if self._wanted.read:
            self.syncing.read_project(self._images, self._stopping.is_set)
        elif self._wanted.annotations:
            self.syncing.read_annotations()
        elif self._images.embed(self._state, self._stopping.is_set) or self._rounds.fill():
            self._computed = True
        elif self.syncing.comparison_is_due():
            self.syncing.compare()
        else:
            if self._computed:
                heap.give_back()
                self._computed = False
            self._state.at(projects.READY)
            return False
        return True

    def wait_seconds(self, done: bool) -> float:
        if self._wanted.is_open():
            return 0.0
        retry_at = self._images.retry_at if self._images.is_retrying() else math.inf
        return max(0.0, min(retry_at, self.syncing.compare_at) - time.monotonic())

    def is_busy(self) -> bool:
        settled = self._state.bulk == projects.READY
        return self._wanted.read or self._wanted.compare or not settled or self._images.is_retrying()
