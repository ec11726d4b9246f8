"""How tests wait: for an event, never for time. A limit is for what hangs, so no verdict depends on the machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

HANGS = 300.0  # seconds; a busy machine needs a part of it
# A training gives way to everything else: beside twenty busy processes it gets a hundredth of a core.
TRAINING_HANGS = 1800.0


def until(
    true: Callable[[], object],
    what: str | Callable[[], str] = "it does not come",
    *,
    progress: Callable[[], object] = lambda: None,
    every: float = 0.02,
    limit: float = HANGS,
) -> None:
    """Wait until `true` is so. As long as what `progress` gives changes, the limit starts anew."""
    last, deadline = progress(), time.monotonic() + limit
    while not true():
        now = progress()
        if now != last:
            last, deadline = now, time.monotonic() + limit
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(every)


class Gate:
    """Holds somebody up until it is opened; knows whether anybody has come to it."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(HANGS)
