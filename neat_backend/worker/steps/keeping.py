"""Uploading array files to the object store, where there is one."""

from __future__ import annotations

import time

from neat_backend.store.keeper import Keeper
from neat_backend.worker.steps.step import Step

KEEP_SECONDS = 1.0  # between checks for changed files


class Keeping(Step):
    """Uploads changed files; rests as long as that took, so that a large ranking does not fill the network."""

    name = "keep"
    again_at_once = False
    in_background = True
    rests_in_full = True

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def _work(self) -> bool:
        began = time.monotonic()
        try:
            return self._keeper.keep()
        finally:
            self.rest_seconds = max(KEEP_SECONDS, time.monotonic() - began)

    def wait_seconds(self, done: bool) -> float:
        return 0.0 if done else self._keeper.tidy_seconds()

    def changes_files(self, done: bool) -> bool:
        return False
