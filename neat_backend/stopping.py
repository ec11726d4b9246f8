"""Ending processes: waiting for SIGTERM and SIGINT, and children that end with their parent.

A signal handler runs in the main thread, which may hold the lock that `threading.Event.set` takes: then both would
deadlock. `queue.SimpleQueue.put` is reentrant.
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
    """A flag that is set once, by a signal or a caller, and never cleared. Many threads may wait for it."""

    def __init__(self) -> None:
        self._set = False
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """A context in which SIGTERM and SIGINT set the flag. For the main thread."""
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
        """Wait at most this long; returns whether the flag is set."""
        try:
            self._wake.get(timeout=seconds)
        except queue.Empty:
            return self._set
        self._wake.put(None)  # for the others
        return True


def end_with(parent: int) -> Callable[[], None]:
    """A function for a child to call first: the kernel then kills it when `parent` (the forking thread) ends.

    Linux only. It is killed without SIGTERM: a hung orphan would never end, and no data is lost.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform.startswith("linux") else None

    def ask_kernel() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:  # the parent died before the call
                os._exit(1)

    return ask_kernel
