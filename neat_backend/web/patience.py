"""A gunicorn worker that gives a thread only to complete request heads; silent and slow connections wait without one.

gunicorn itself gives each new connection a thread for seconds, waits as long as a connection is alive, and closes
connections in its main loop, waiting for the other end: a few silent callers would hold all its threads. `/health` has
a thread of its own: Label Studio waits one second for it, however busy the others are.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn import http
from gunicorn.workers.gthread import TConn, ThreadWorker

from neat_backend.stopping import end_with

END_OF_HEAD = b"\r\n\r\n"
MOST_HEAD_BYTES = 65536  # gunicorn refuses a longer head
HEALTH = b"GET /health HTTP/1."
WITH_BODY = (b"\ncontent-length:", b"\ntransfer-encoding:")


class PatientWorker(ThreadWorker):
    """A thread worker with time limits for receiving a request and for reading its answer."""

    head_seconds = 10.0  # from the connection, or the end of its last request, to the end of the headers
    body_seconds = 60.0  # from there to the end of the body
    stuck_seconds = 30  # a caller that reads nothing of its answer for this long is dropped
    linger_seconds = 2.0  # for the other end to close, after the last answer; else it may lose the end of it
    look_seconds = 0.5

    def init_process(self) -> None:
        end_with(self.ppid)()  # else it would keep the port for seconds after its supervisor is killed
        self._until: dict[TConn, float] = {}  # connections being received or answered → when reading from them ends
        self._waiting: dict[TConn, float] = {}  # connections without a thread → when they are closed; oldest first
        self._lingering: dict[TConn, float] = {}
        self._health = ThreadPoolExecutor(1, "health")
        threading.Thread(target=self._watch, name="patience", daemon=True).start()
        super().init_process()

    # waiting, in the main loop

    def accept(self, listener: socket.socket) -> None:
        if self.nr_conns >= self.worker_connections - 1:
            self._free_connection()
        try:
            super().accept(listener)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._free_connection()

    def enqueue_req(self, conn: TConn) -> None:
        """Called for a new connection or new data: give it a thread once its head is complete."""
        if conn.parser is None:
            conn.parser = http.get_parser(conn.cfg, conn.sock, conn.client)
        if _has_head(conn):
            self._begin(conn)
        elif not _receive(conn):
            self._close(conn)
        elif _has_head(conn):
            self._begin(conn)
        else:
            self._wait_for(conn, self._waiting, self.head_seconds, self._read_head)

    def _read_head(self, conn: TConn, _: socket.socket) -> None:
        if not _receive(conn):
            self._close(conn)
        elif _has_head(conn):
            self._forget(conn)
            self._begin(conn)

    def _wait_for(
        self, conn: TConn, among: dict[TConn, float], seconds: float, then: Callable[[TConn, socket.socket], None]
    ) -> None:
        conn.sock.setblocking(False)
        among[conn] = time.monotonic() + seconds
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(then, conn))

    def murder_pending(self) -> None:
        """Close connections that have waited too long; when stopping, also those that have sent nothing."""
        now = time.monotonic()
        for waiting in (self._waiting, self._lingering):
            while waiting and next(iter(waiting.values())) <= now:
                self._close(next(iter(waiting)))
        if not self.alive:
            for conn in [one for one in self._waiting if not _received(one)]:
                self._close(conn)

    def _free_connection(self) -> None:
        """Close the idle connection that has waited longest."""
        for waiting in (self._lingering, self._waiting, self.keepalived_conns):
            if waiting:
                self._close(next(iter(waiting)))
                return

    def _forget(self, conn: TConn) -> None:
        self._waiting.pop(conn, None)
        self._lingering.pop(conn, None)
        with contextlib.suppress(ValueError):
            self.keepalived_conns.remove(conn)
        with contextlib.suppress(OSError, KeyError, ValueError):
            self.poller.unregister(conn.sock)

    def _close(self, conn: TConn) -> None:
        self._forget(conn)
        self.nr_conns -= 1
        conn.close()

    # with a thread

    def _begin(self, conn: TConn) -> None:
        conn.data_ready = True
        pool = self._health if _is_health(_received(conn)) else self.tpool
        done = pool.submit(self.handle, conn)
        done.add_done_callback(lambda done: self.method_queue.defer(self.finish_request, conn, done))

    def finish_request(self, conn: TConn, done: Future[Any]) -> None:
        """As gunicorn's, without waiting for the other end to close."""
        if not done.cancelled() and done.exception() is None and done.result():
            super().finish_request(conn, done)
            return
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            self._wait_for(conn, self._lingering, self.linger_seconds, self._drain)
        except (OSError, ValueError):
            self._close(conn)

    def _drain(self, conn: TConn, sock: socket.socket) -> None:
        """Read and discard data after the last answer, so that the other end can read that answer."""
        try:
            more = sock.recv(MOST_HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        if not more:
            self._close(conn)

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
                    # A reader gets the end of the stream. An answer can still be sent.
                    with contextlib.suppress(OSError):
                        conn.sock.shutdown(socket.SHUT_RD)


def _receive(conn: TConn) -> bool:
    """Receive available data of a request; False: the other end has closed."""
    conn.sock.setblocking(False)
    try:
        part = conn.sock.recv(MOST_HEAD_BYTES)
    except BlockingIOError:
        return True
    except OSError:
        return False
    buffer = conn.parser.unreader.buf
    buffer.seek(0, os.SEEK_END)
    buffer.write(part)
    return bool(part)


def _received(conn: TConn) -> bytes:
    return bytes(conn.parser.unreader.buf.getvalue())


def _has_head(conn: TConn) -> bool:
    """Whether the head is complete."""
    received = _received(conn).lstrip(b"\r\n")
    return END_OF_HEAD in received or len(received) > MOST_HEAD_BYTES


def _is_health(received: bytes) -> bool:
    """Whether the data is one request for /health, without a body or another request."""
    head = received.lower()
    return received.startswith(HEALTH) and head.endswith(END_OF_HEAD) and not any(sign in head for sign in WITH_BODY)
