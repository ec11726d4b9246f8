"""Access without credentials: for callers on this machine, and for others only if a setting allows it."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Callable, Iterable

from neat_backend.errors import SettingsError
from neat_backend.settings import Settings

REMEDY = (
    "set BASIC_AUTH_USER and BASIC_AUTH_PASS (and give the same in Label Studio's connection form),"
    " or HOST=127.0.0.1 to serve this machine alone,"
    " or NEAT_ALLOW_ANONYMOUS=1 where the network keeps strangers out"
)
# The host's names inside a container; no public domain is below .internal.
_LOCAL_NAMES = ("localhost", "host.docker.internal")
_FORWARDED = re.compile(r"for=[\"\[]*([^\]\";,\s]*)", re.IGNORECASE)  # RFC 7239


def is_guarded(settings: Settings) -> bool:
    """Whether all routes but /health require credentials."""
    return bool(settings.basic_auth_user)


def serves_anyone(settings: Settings) -> bool:
    """Whether a setting allows callers from other machines without credentials."""
    return settings.allow_anonymous and not is_guarded(settings)


def check(settings: Settings, addresses: Iterable[str]) -> None:
    """Raise SettingsError if other machines could reach these addresses without credentials."""
    if is_guarded(settings) or settings.allow_anonymous:
        return
    open_to_others = [address for address in addresses if not is_loopback(address)]
    if open_to_others:
        raise SettingsError(
            f"other machines could reach {', '.join(open_to_others)} without credentials, and change or read"
            f" everything: {REMEDY}"
        )


def addresses_of(host: str) -> list[str]:
    """The addresses of a host to listen on; none if it can't be resolved, then listening fails."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return []
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def listened_at() -> list[str]:
    """The addresses that this process listens at already (Linux): a web server opens them before it loads the app."""
    found: list[str] = []
    try:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        return found
    for number in numbers:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(number)) as one:
            if one.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                found.append(str(one.getsockname()[0]))
    return list(dict.fromkeys(found))


def is_of_this_machine(caller: str | None, host: str, forwarded_for: Iterable[str] = ()) -> bool:
    """Whether a request without credentials may be one of this machine's own.

    caller: the peer's address, None or "" at a Unix socket. host: the Host header: with DNS rebinding, another site's
    page comes from this machine too, but names that site; so may a name without a dot, where the network completes it.
    forwarded_for: the addresses for which a proxy on this machine forwards.
    """
    if not all(is_loopback(each) for each in ([caller] if caller else []) + list(forwarded_for)):
        return False
    name = _name(host)
    return is_loopback(name) or name in (*_LOCAL_NAMES, socket.gethostname().lower()) or name.endswith(".localhost")


def forwarded_for(header: Callable[[str, str], str]) -> list[str]:
    """The addresses for which a proxy forwards. header: returns a request's header by name, or a default."""
    listed = ",".join(header(name, "") for name in ("X-Forwarded-For", "X-Real-IP"))
    named = [part.strip() for part in listed.split(",") if part.strip()]
    return named + _FORWARDED.findall(header("Forwarded", ""))


def is_loopback(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (inner or found).is_loopback


def _name(host: str) -> str:
    """The name or address of a Host header, without port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".").lower()
