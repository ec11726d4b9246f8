"""This backend's addresses: the one that Label Studio should use, and the dashboard's."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from neat_backend.settings import Settings


def for_label_studio(settings: Settings, port: int | None = None) -> str:
    """NEAT_URL, else an address of this machine that Label Studio should reach. port: default PORT."""
    return settings.url or _url(_host(settings), settings.port if port is None else port)


def dashboard(settings: Settings, port: int) -> str:
    """The dashboard's address for a browser on this machine."""
    host = settings.host.strip("[]")
    return _url("localhost" if _is_loopback(host) or _is_any(host) else host, port) + "/"


def _host(settings: Settings) -> str:
    host = settings.host.strip("[]")
    if _is_loopback(host):
        return "localhost"
    if not _is_any(host):
        return host
    label_studio = urlsplit(settings.label_studio_url).hostname or "localhost"
    return "localhost" if _is_loopback(label_studio) else _address_towards(label_studio)


def _address_towards(host: str) -> str:
    """This machine's address on the way to `host`; "localhost" where there is none. Sends nothing."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, 80, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as unconnected:
            unconnected.connect(address)
            return str(unconnected.getsockname()[0])
    except OSError:
        return "localhost"


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "127.0.0.1", "::1")


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
