"""Notices between processes: a transaction says which project has something new, and waiting workers wake up.

PostgreSQL delivers them itself (LISTEN, NOTIFY) at the commit. Beside an SQLite file there is a folder of named pipes,
one for each listening process; after the commit, the writer writes a line into each. A notice is only a hint: its rows
are in the database, and whoever has missed it finds them at its next look.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import select
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Connection

from neat_backend.errors import StoreError

if TYPE_CHECKING:
    import psycopg

log = logging.getLogger(__name__)

EVENTS, REQUESTS, PROJECTS = "events", "requests", "projects"  # kinds: in the inbox, of a person, a connection or lease
CHANNEL = "neat_notices"
READ_BYTES = 65536  # the usual size of a pipe
FULL_BYTES = 2048  # with so much to read, some lines may not have found room: the smallest pipes have a page
PART_BYTES = getattr(select, "PIPE_BUF", 512)  # a pipe takes so much as a whole
_NOTED = "neat_notices"  # in a connection's info: the notices of its transaction


@dataclass(frozen=True)
class Notice:
    """A project has something new of this kind."""

    project: int
    kind: str


@dataclass(frozen=True)
class Heard:
    """The notices of a time. complete False: others may have been missed, so look at everything."""

    notices: frozenset[Notice] = frozenset()
    complete: bool = True


def note(conn: Connection, project: int, kind: str) -> None:
    """Tell the listening processes once this transaction is committed."""
    if conn.dialect.name == "postgresql":
        conn.execute(sa.select(sa.func.pg_notify(CHANNEL, f"{project} {kind}")))
    else:
        conn.info.setdefault(_NOTED, set()).add(f"{project} {kind}")


def forget(conn: Connection) -> None:
    """Forget the notices of an earlier transaction of this connection."""
    conn.info.pop(_NOTED, None)


def noted(conn: Connection) -> frozenset[str]:
    """The transaction's notices that are to be told after its commit; on PostgreSQL none."""
    return frozenset(conn.info.pop(_NOTED, ()))


class Listening(ABC):
    """Waits for notices, in one thread; `interrupt` may come from another."""

    def __init__(self) -> None:
        if not hasattr(select, "poll"):  # Windows
            raise StoreError("this system can't wait for notices")
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._closing = threading.Lock()  # the descriptor of a closed pipe may be another file's
        self._closed = False

    @abstractmethod
    def wait(self, seconds: float) -> Heard:
        """Wait for the next notices, at most this long. Raises StoreError where nothing can be heard any more."""

    def interrupt(self) -> None:
        """Make `wait` return, now and from now on."""
        with self._closing, contextlib.suppress(BlockingIOError):  # full of earlier bytes
            if not self._closed:
                os.write(self._wake, b".")

    def close(self) -> None:
        """For the thread that waits."""
        with self._closing:
            self._closed = True
            os.close(self._wake)
            os.close(self._woken)

    def _has_news(self, descriptor: int, seconds: float) -> bool:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        return descriptor in dict(poll.poll(seconds * 1000))


class Pipes:
    """The folder of named pipes beside an SQLite file, each read by one process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._complained = False

    def tell(self, lines: Iterable[str]) -> None:
        """Write the lines into every pipe; removes those that nobody reads. Raises nothing."""
        parts = list(_parts(sorted(lines)))
        try:
            with os.scandir(self.folder) as found:
                names = [one.path for one in found if not one.name.startswith(".")] if parts else []
        except FileNotFoundError:
            return  # nobody has listened yet
        except OSError as error:
            self._complain(error)
            return
        for name in names:
            try:
                _write(name, parts)
            except OSError as error:
                self._complain(error)

    def listen(self) -> Listening:
        """Raises StoreError where named pipes can't be made."""
        return PipeListening(self.folder)

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            log.warning("workers can't be told of new events, and find them later: %s", error)
        self._complained = True


def _parts(lines: Iterable[str]) -> Iterator[bytes]:
    """The lines in parts that a pipe takes as a whole."""
    part = b""
    for line in lines:
        more = line.encode() + b"\n"
        if part and len(part) + len(more) > PART_BYTES:
            yield part
            part = b""
        part += more
    if part:
        yield part


def _write(name: str, parts: Iterable[bytes]) -> None:
    """Write to a pipe that somebody reads. A full one takes no more: its reader then looks at everything."""
    try:
        if not stat.S_ISFIFO(os.lstat(name).st_mode):
            return
        pipe = os.open(name, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # its reader is gone
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        elif error.errno != errno.ENOENT:
            raise
        return
    try:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            for part in parts:
                os.write(pipe, part)
    finally:
        os.close(pipe)


class PipeListening(Listening):
    """Reads a named pipe of its own."""

    def __init__(self, folder: Path) -> None:
        self._name = folder / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._pipe = _make_pipe(self._name)
        super().__init__()

    def wait(self, seconds: float) -> Heard:
        if not self._has_news(self._pipe, seconds):
            if not self._name.exists():
                raise StoreError(f"{self._name} has been deleted")
            return Heard()
        data = os.read(self._pipe, READ_BYTES)
        found = {_notice(line) for line in data.decode(errors="replace").splitlines()}
        return Heard(frozenset(one for one in found if one), len(data) < FULL_BYTES and None not in found)

    def close(self) -> None:
        super().close()
        self._name.unlink(missing_ok=True)
        os.close(self._pipe)


def _make_pipe(name: Path) -> int:
    """Make a pipe and open it. Under another name first: a writer deletes pipes that nobody has open."""
    if not hasattr(os, "mkfifo"):
        raise StoreError("this system has no named pipes")
    new = name.with_name(f".{name.name}")
    try:
        name.parent.mkdir(exist_ok=True)
        os.mkfifo(new)
        try:
            pipe = os.open(new, os.O_RDWR | os.O_NONBLOCK)
            new.rename(name)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StoreError(f"{name.parent} can't have named pipes: {error.strerror}") from error
    return pipe


class PostgresListening(Listening):
    """Listens by a connection of its own."""

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        """connect: opens a connection that is in no pool. Raises StoreError."""
        import psycopg

        self._connection = connect()
        try:
            self._connection.autocommit = True
            self._connection.execute(f"LISTEN {CHANNEL}")
        except psycopg.Error as error:
            self._connection.close()
            raise StoreError(f"the database sends no notices: {' '.join(str(error).split())}") from error
        super().__init__()

    def wait(self, seconds: float) -> Heard:
        import psycopg

        try:
            if not self._has_news(self._connection.fileno(), seconds):
                return Heard()
            found = {_notice(one.payload) for one in self._connection.notifies(timeout=0)}
        except (psycopg.Error, OSError) as error:
            raise StoreError(f"the connection for notices is lost: {' '.join(str(error).split())}") from error
        return Heard(frozenset(one for one in found if one), None not in found)

    def close(self) -> None:
        super().close()
        self._connection.close()


def _notice(text: str) -> Notice | None:
    """None for a text that is no notice."""
    project, _, kind = text.partition(" ")
    return Notice(int(project), kind) if project.isdigit() and kind else None
