"""Locks on files, between processes: in the kernel's queue, given back by dying, and not waited for without end.

`flock` itself knows no limit, and a process that is stopped (a suspended machine, a debugger, SIGSTOP) keeps its locks.
So a thread stands in the queue for a caller that finds a lock taken. A caller that has waited long enough leaves that
place to the next one, which then waits for a moment only: there are never more such threads than waited at once.
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

AGAIN_SECONDS = 1.0  # for a lock that somebody has waited for in vain

_guard = threading.Lock()
_left: dict[tuple[int, str, bool], list[_Place]] = {}  # by process: a fork has none of these threads


@contextmanager
def held(path: str | Path, seconds: float, exclusive: bool = True) -> Iterator[None]:
    """Hold the lock of a file, which is made for an exclusive one.

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
    """Keep a folder, or a file that is made, for this process. Raises `otherwise` at once where another has it."""
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT)
    try:
        if fcntl is not None and not _lock(descriptor, exclusive=True, wait=False):
            raise otherwise
        yield
    finally:
        os.close(descriptor)


class _Place:
    """A place in the queue for a lock, for any caller that wants it."""

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
    """The file once it is locked, or another one of the same path."""
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
