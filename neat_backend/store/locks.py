"""File locks between processes, with a time limit; the kernel queues them and releases those of dead processes.

`flock` has no time limit, and a stopped process (a suspended machine, a debugger, SIGSTOP) keeps its locks. So a
thread waits in the kernel's queue for a caller that finds a lock taken. A caller that gives up leaves this thread to
the next caller, which then waits only for a moment: there are never more such threads than callers waited at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from neat_backend.errors import StoreError

try:
    import fcntl
except ImportError:  # Windows: one process at a time
    fcntl = None  # type: ignore[assignment]

AGAIN_SECONDS = 1.0  # wait for a lock that an earlier caller did not get in time

_guard = threading.Lock()
_left: dict[tuple[int, str, bool], list[_Place]] = {}  # by process id: a fork has none of these threads


@contextmanager
def held(path: str | Path, seconds: float, exclusive: bool = True) -> Iterator[None]:
    """Hold a file's lock; an exclusive lock creates the file.

    Raises OSError for a file that can't be opened, StoreError after `seconds`.
    """
    file: IO[Any] = open(path, "ab" if exclusive else "rb")  # noqa: SIM115 - closed below
    if fcntl is not None and not _lock(file, exclusive, wait=False):
        file = _wait(file, str(path), exclusive, seconds)
    with file:
        try:
            yield
        finally:
            _unlock(file)


@contextmanager
def alone(path: Path, otherwise: Exception) -> Iterator[None]:
    """Lock a folder, or a new file, for this process. Raises `otherwise` at once where another process has it."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
    try:
        if fcntl is not None and not _lock(descriptor, exclusive=True, wait=False):
            raise otherwise
        yield
    finally:
        os.close(descriptor)


class _Place:
    """A thread that waits for a lock, for any caller."""

    def __init__(self, file: IO[Any], exclusive: bool, left: list[_Place]) -> None:
        self.file, self.wanted, self.ready = file, True, threading.Event()
        self._exclusive, self._left = exclusive, left
        threading.Thread(target=self._stand, name="lock", daemon=True).start()

    def _stand(self) -> None:
        _lock(self.file, self._exclusive, wait=True)
        with _guard:
            if self.wanted:
                self.ready.set()
                return
            self._left.remove(self)
        with self.file:
            _unlock(self.file)


def _wait(file: IO[Any], path: str, exclusive: bool, seconds: float) -> IO[Any]:
    """Wait for the lock. Returns the locked file: this one, or another of the same path."""
    with _guard:
        left = _left.setdefault((os.getpid(), path, exclusive), [])
        if left:
            file.close()
            place, seconds = left.pop(), min(seconds, AGAIN_SECONDS)
            place.wanted = True
        else:
            place = _Place(file, exclusive, left)
    place.ready.wait(seconds)
    with _guard:
        if place.ready.is_set():
            return place.file
        place.wanted = False
        left.append(place)
    raise StoreError(f"{path} has been locked by another process for {seconds:g} s: is one stopped?")


def _lock(file: IO[Any] | int, exclusive: bool, wait: bool) -> bool:
    try:
        fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _unlock(file: IO[Any]) -> None:
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)  # also if a fork holds the file open meanwhile
