"""Deadlines of whole calls. A time-out alone starts again with each byte, so a slow sender could keep a call going."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

TIMEOUTS = 4  # a call may last so many time-outs, all in all

_until: ContextVar[float | None] = ContextVar("until", default=None)  # time.monotonic() when this call must be over


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Limit the time of all reads inside this context over the connections of a TimelyBackend."""
    token = _until.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _until.reset(token)


def left(timeout: float | None) -> float | None:
    """The time-out of one wait, cut to what is left of the call."""
    until = _until.get()
    if until is None:
        return timeout
    remaining = until - time.monotonic()
    if remaining <= 0:
        raise httpcore.ReadTimeout("the time for this call is over")
    return remaining if timeout is None else min(timeout, remaining)


def connect_by(transport: httpx.BaseTransport | None, backend: httpcore.NetworkBackend) -> None:
    """Let a transport make its connections by `backend`; httpx has no argument for that."""
    if isinstance(transport, httpx.HTTPTransport):
        transport._pool._network_backend = backend


def make_timely(client: httpx.Client) -> None:
    """Let all of a client's connections keep to `within`, those to proxies too."""
    for transport in (client._transport, *client._mounts.values()):
        connect_by(transport, TimelyBackend())


def get(url: str, timeout_seconds: float) -> httpx.Response:
    """GET without credentials; over after TIMEOUTS times the time-out. Raises httpx.HTTPError, httpx.InvalidURL."""
    with httpx.Client(timeout=timeout_seconds) as client, within(TIMEOUTS * timeout_seconds):
        make_timely(client)
        return client.get(url)


class TimelyBackend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        return _TimelyStream(super().connect_tcp(host, port, left(timeout), local_address, socket_options))


class _TimelyStream(httpcore.NetworkStream):
    """A connection whose every wait ends when the call must be over."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _TimelyStream(self._stream.start_tls(ssl_context, server_hostname, left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
