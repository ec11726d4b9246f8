"""Array files → the object store, where there is one."""

from __future__ import annotations

import time

from neat_backend.store.keeper import Keeper
from neat_backend.worker.steps.step import Step

KEEP_SECONDS = 1.0  # between two looks for files that are to go there


class Keeping(Step):
    """Puts files that have changed; rests as long as that took, as a large ranking must not fill the network."""

    name = "keep"
    again_at_once = False

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def step(self) -> bool:
        began = time.monotonic()
        try:
            return self._keeper.keep()
        finally:
            self.rest_seconds = max(KEEP_SECONDS, time.monotonic() - began)
