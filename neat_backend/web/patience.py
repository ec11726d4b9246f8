"""gunicorn's threads, with an end to waiting for callers who send or read a byte now and then.

gunicorn itself waits for as long as a connection is alive, and a few such callers would hold all its threads.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker


class PatientWorker(ThreadWorker):
    """A request must have arrived within these times, and its answer be taken without long pauses."""

    head_seconds = 10.0  # from the first byte to the end of the headers
    body_seconds = 60.0  # from there to the end of the body
    stuck_seconds = 30  # a caller that reads nothing of its answer for so long is gone
    look_seconds = 0.5

    def init_process(self) -> None:
        self._until: dict[TConn, float] = {}  # what is being received or answered → when reading from it ends
        threading.Thread(target=self._watch, name="patience", daemon=True).start()
        super().init_process()

    def handle(self, conn: TConn) -> Any:
        self._until[conn] = time.monotonic() + self.head_seconds
        with contextlib.suppress(OSError):
            conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", self.stuck_seconds, 0))
        try:
            return super().handle(conn)
        finally:
            self._until.pop(conn, None)

    def handle_request(self, req: Any, conn: TConn) -> Any:
        self._until[conn] = time.monotonic() + self.body_seconds
        return super().handle_request(req, conn)

    def _watch(self) -> None:
        while True:
            time.sleep(self.look_seconds)
            now = time.monotonic()
            for conn, until in list(self._until.items()):
                if now > until:
                    self._until.pop(conn, None)
                    # Whoever waits for more gets the end of the stream. An answer can still be sent.
                    with contextlib.suppress(OSError):
                        conn.sock.shutdown(socket.SHUT_RD)
