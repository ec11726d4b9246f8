"""Hosts as network namespaces of this machine: each with an address of its own, and a cable that can be pulled out."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tests.conftest import need

ROUTER = "10.213.{net}.1"


@dataclass
class Host:
    """A namespace. run: how a command is started in it."""

    name: str
    address: str
    cable: str  # this machine's end
    bridge: str

    def run(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def pull_out(self) -> None:
        """Cut the connection; neither side notices."""
        _ip("link", "set", self.cable, "nomaster")

    def plug_in(self) -> None:
        _ip("link", "set", self.cable, "master", self.bridge)


@contextlib.contextmanager
def hosts(n: int) -> Iterator[tuple[str, list[Host]]]:
    """This machine's address and n hosts that reach it and each other. Needs root and iproute2, or the test skips."""
    if shutil.which("ip") is None:
        need("namespaces", "iproute2 is not installed")
    if os.geteuid() != 0:
        need("namespaces", "only root can make network namespaces")
    made: list[Host] = []
    mark, net = secrets.token_hex(2), 1 + secrets.randbelow(250)
    bridge, router = f"nt{mark}", ROUTER.format(net=net)
    try:
        try:
            _ip("link", "add", bridge, "type", "bridge")
            _ip("addr", "add", f"{router}/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            for number in range(n):
                host = Host(f"neat-{mark}-{number}", f"10.213.{net}.{10 + number}", f"nt{mark}v{number}", bridge)
                _ip("netns", "add", host.name)
                made.append(host)
                _ip("link", "add", host.cable, "type", "veth", "peer", "name", "eth0", "netns", host.name)
                _ip("link", "set", host.cable, "master", bridge, "up")
                for command in ("addr add {}/24 dev eth0", "link set eth0 up", "link set lo up"):
                    _ip("-n", host.name, *command.format(host.address).split())
        except subprocess.CalledProcessError as error:
            need("namespaces", f"they can't be made here: {error.stderr.strip()}")
        yield router, made
    finally:
        for host in made:
            subprocess.run(["ip", "netns", "del", host.name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
