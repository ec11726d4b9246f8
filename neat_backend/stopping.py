"""How processes end: SIGTERM and SIGINT as something to wait for, and children that end with their parent.

A signal handler runs in the main thread between two of its steps, perhaps while that thread holds the very lock that
`threading.Event.set` takes: then both wait for ever. `queue.SimpleQueue.put` may be called from anywhere, also from
within itself.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Set once, by a signal or by anybody, and never cleared. Many threads may wait for it."""

    def __init__(self) -> None:
        self._set = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within: SIGTERM and SIGINT set it. For the main thread."""
        before = {number: signal.signal(number, lambda *_: self.set()) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def set(self) -> None:
        self._set = True
        self._wake.put(None)

    def is_set(self) -> bool:
        return self._set

    def wait(self, seconds: float) -> bool:
        """Wait for at most so long; whether it is set."""
        try:
            self._wake.get(timeout=seconds)
        except queue.Empty:
            return self._set
        self._wake.put(None)  # for the others
        return True


def end_with(parent: int) -> Callable[[], None]:
    """For a child to call first: the kernel kills it when `parent`, in truth the thread that forked it, ends.

    On Linux alone. Killed, not asked to stop: an orphan that is hung would never end, and nothing is lost by it.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform.startswith("linux") else None

    def ask_kernel() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # it died before we asked
                os._exit(1)

    return ask_kernel
