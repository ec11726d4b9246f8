"""Which hosts images may come from, and a transport that connects to nothing else.

Anyone who may edit the project writes a task's data, and the hosts that it names may redirect. So the check is made at
the connection: a name is resolved once, all its addresses are checked, and the connection goes to one of them. A
different result of a later look-up has no effect.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterable, Sequence
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import httpcore
import httpx

from neat_backend.errors import ImageError
from neat_backend.labelstudio.deadlines import TimelyBackend, connect_by

_SETTING = "NEAT_IMAGE_HOSTS"
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
# A cloud's inner services under an address that looks public.
_NEVER_PUBLIC = frozenset({ipaddress.ip_address("168.63.129.16")})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# All that is given out on the internet at large; what lies elsewhere (an IPv4 address written as ::a.b.c.d, a network's
# own NAT64 prefix, fec0::/10) has a meaning inside some network alone.
_GIVEN_OUT = ipaddress.ip_network("2000::/3")
_DOCUMENTATION = ipaddress.ip_network("3fff::/20")
# Where Label Studio has files; the key's user may do a lot more, and a task's data can name any address.
_FILES = re.compile(r"/(data|static|storage-data|samples)/|/(tasks|projects)/[0-9]+/(resolve|presign)/")


def is_file(url: str, label_studio_url: str) -> bool:
    """Whether a URL below Label Studio's is that of a file, so that it may be requested with the API key."""
    path, last = urlsplit(url).path, ""
    while path != last:  # a server, or two in a row, may decode it again
        path, last = unquote(path), path
    path = path.replace("\\", "/")
    prefix = urlsplit(label_studio_url).path.rstrip("/")
    return path.startswith(prefix) and ".." not in path.split("/") and _FILES.match(path[len(prefix) :]) is not None


def shown(address: str) -> str:
    """An image's address for a message: shortened, without a user name and password."""
    return re.sub(r"(?<=//)[^/?#]*@", "***@", address)[:200]


class ImageHosts:
    """Allowed hosts: Label Studio's own, the named ones, and public addresses for `*` or if none is named."""

    def __init__(self, label_studio_url: str, allowed: Iterable[str] = ()) -> None:
        """allowed: as in NEAT_IMAGE_HOSTS; `*.example.com` is any host below example.com."""
        own = httpx.URL(label_studio_url)
        self._own = own.raw_host.decode("ascii"), own.port or _default_port(own.scheme)
        self._named = tuple(name.lower().strip("[]") for name in allowed)

    def addresses(self, host: str, port: int) -> list[str]:
        """The addresses that may be connected to for a host, all that it has. Raises ImageError, OSError."""
        host = host.lower().strip("[]")
        named = (host, port) == self._own or self._names(host)
        if not named and self._named and "*" not in self._named:
            raise ImageError(
                f"images may not come from {host}: it is not in {_SETTING} ({', '.join(self._named)}); "
                "add it there if they should"
            )
        found = list(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)))
        if not named and not all(is_public(address) for address in found):
            raise ImageError(
                f"images may not come from {host}: its address is private, that of a machine inside some network; "
                f"name the host in {_SETTING} if they should"
            )
        return found

    def _names(self, host: str) -> bool:
        bare = host.rstrip(".")
        return any(
            bare == name or (name.startswith("*.") and bare.endswith(name[1:])) for name in self._named if name != "*"
        )


def is_public(address: str) -> bool:
    """Whether an address is on the public internet; of IPv4 inside IPv6, the inner one counts."""
    return all(_is_public(each) for each in _meanings(address))


def _is_public(address: _Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        given_out = address in _NAT64 or (address in _GIVEN_OUT and address not in _DOCUMENTATION)
        return given_out and address.is_global
    return address.is_global and not address.is_multicast and address not in _NEVER_PUBLIC


def _meanings(address: str) -> list[_Address]:
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return [found]
    if found.ipv4_mapped:
        return [found.ipv4_mapped]
    inner = found.sixtofour or (found.teredo or (None, None))[1]
    if found in _NAT64:
        inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return [found, inner] if inner else [found]


class ImageTransport(httpx.HTTPTransport):
    """HTTP to the hosts that are allowed. TLS names and the Host header stay those of the URL.

    If the environment names a proxy, the proxy connects: then a name is checked as it resolves here, if it does; the
    proxy may resolve it differently.
    """

    def __init__(self, hosts: ImageHosts, certificates: ssl.SSLContext) -> None:
        super().__init__(verify=certificates, trust_env=False)
        self._hosts = hosts
        connect_by(self, _Backend(hosts))
        given = getproxies()
        self._proxies = {
            scheme: httpx.HTTPTransport(verify=certificates, trust_env=False, proxy=_with_scheme(proxy))
            for scheme in ("http", "https")
            if (proxy := given.get(scheme) or given.get("all"))
        }
        for each in self._proxies.values():
            connect_by(each, TimelyBackend())

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        proxy = self._proxies.get(request.url.scheme)
        if proxy is None or proxy_bypass(request.url.host):
            return super().handle_request(request)
        with contextlib.suppress(OSError):  # a name that only the proxy knows
            self._hosts.addresses(
                request.url.raw_host.decode("ascii"), request.url.port or _default_port(request.url.scheme)
            )
        return proxy.handle_request(request)

    def close(self) -> None:
        for proxy in self._proxies.values():
            proxy.close()
        super().close()


class _Backend(TimelyBackend):
    """Connects to a checked address of a host instead of leaving its name to be resolved again."""

    def __init__(self, hosts: ImageHosts) -> None:
        self._hosts = hosts

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            found: Sequence[str] = self._hosts.addresses(host, port)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from None
        failed: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in found:
            try:
                return super().connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed


def _default_port(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _with_scheme(proxy: str) -> str:
    return proxy if "://" in proxy else f"http://{proxy}"
