"""The supervisor's TCP port, also when processes of a killed supervisor still hold it."""

from __future__ import annotations

import contextlib
import logging
import socket
import time

from neat_backend.errors import SettingsError

log = logging.getLogger(__name__)

ORPHAN_SECONDS = 30.0  # longest wait for processes of a killed supervisor
LOOK_SECONDS = 0.05


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises SettingsError naming HOST and PORT."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise SettingsError(f"HOST={host!r}, PORT={port}: can't listen there: {error.strerror or error}") from error
    return listener


class Place:
    """A port with a listening socket, and marks that identify its owner.

    The marks are names in Linux's abstract socket namespace; like a port, a name belongs to the process that has its
    socket open. One belongs to the supervisor, one to the processes that inherit the listening socket.
    """

    def __init__(self, host: str, port: int) -> None:
        """Port 0 takes a free one. If processes of a killed supervisor still have the port, waits for them.

        Raises SettingsError naming HOST and PORT; at once for a port of another program or another supervisor.
        """
        began, waited = time.monotonic(), False
        while True:
            self._marks = {name: _mark(f"{host} {port} {name}") for name in ("supervisor", "web") if port}
            late = time.monotonic() - began > ORPHAN_SECONDS
            orphaned = bool(self._marks.get("supervisor")) and not self._marks["web"] and not late
            try:
                if not orphaned:
                    self.listener = listen(host, port)
                    return
            except SettingsError:
                self._close_marks()
                if late or not waited:
                    raise
            if not waited:
                log.warning("port %d: waiting for the web of a supervisor that was killed to end", port)
            waited = True
            self._close_marks()
            time.sleep(LOOK_SECONDS)

    @property
    def for_web(self) -> list[int]:
        """File descriptors that the web processes inherit."""
        mark = self._marks.get("web")
        return [self.listener.fileno(), *([mark.fileno()] if mark else [])]

    def close(self) -> None:
        self.listener.close()
        self._close_marks()

    def _close_marks(self) -> None:
        for mark in self._marks.values():
            if mark is not None:
                mark.close()


def _mark(name: str) -> socket.socket | None:
    """Take a mark; None where another process has it, or the system has no such names."""
    with contextlib.ExitStack() as stack:
        try:
            mark = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            mark.bind(f"\0neat-backend {name}")
        except (AttributeError, OSError):
            return None
        stack.pop_all()
        return mark
