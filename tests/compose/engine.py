"""A Docker engine for this test alone, on a machine that has none: Debian 12, root, 25 GB on the folder's disk.

The engine and compose are Debian 13's (their programs run here; its runc does not), unpacked into the folder, and the
images that the compose file and the Dockerfile begin with are made here by debootstrap, as no registry of images can be
counted on. The engine changes the machine's packet filter; `stop` puts back what was there.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.compose.running import follow
from tests.waiting import until

ROOT = Path(__file__).parents[2]
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
OF_DEBIAN_13 = ("docker.io", "docker-cli", "docker-compose", "docker-buildx", "containerd")
OF_DEBIAN_12 = ("runc", "tini")
PROGRAMS = (
    "sbin/dockerd",
    "sbin/docker-proxy",
    "sbin/runc",
    "bin/docker",
    "bin/containerd",
    "bin/containerd-shim-runc-v2",
)
PLUGINS = ("docker-compose", "docker-buildx")
PYTHON = re.compile(r"^ARG BASE=(\S+)$", re.MULTILINE)
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
TABLES = ("filter", "nat")
LEAST_FREE_BYTES = 25 * 10**9


class Engine:
    """dockerd with socket, data and programs in `folder`."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self.folder, self._say = folder.absolute(), say
        self.env = {
            "DOCKER_HOST": f"unix://{self.folder}/docker.sock",
            "DOCKER_CONFIG": str(self.folder / "config"),
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
        }

    def start(self) -> None:
        """Installed, running, with the base images; what is there already is used again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "bin/dockerd").exists():
            self._install()
        if not self._answers():
            free = shutil.disk_usage(self.folder).free
            assert free > LEAST_FREE_BYTES, f"{self.folder} has {free / 1e9:.0f} GB free, 25 are needed"
            self._run()
        self._make_bases()

    def stop(self) -> None:
        """The engine ended, its data deleted, the machine's packet filter as it was."""
        pid = self.folder / "dockerd.pid"
        if pid.exists():
            os.kill(int(pid.read_text()), signal.SIGTERM)
            until(lambda: not pid.exists(), "dockerd does not end", every=0.2)
        self._quiet("ip", "link", "delete", "docker0")
        self._quiet("umount", str(self.folder / "exec/netns/default"))
        for table in TABLES:
            saved = self.folder / f"{table}.iptables"
            if saved.exists():
                subprocess.run(["iptables-restore", str(saved)], check=True, timeout=60)
                saved.unlink()
        saved = self.folder / "ip_forward"
        if saved.exists():
            FORWARDING.write_text(saved.read_text())
            saved.unlink()
        for name in ("data", "exec"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def _install(self) -> None:
        self._say("packages: the engine, compose, debootstrap")
        self._follow("apt-get", "update")
        self._follow("apt-get", "install", "--yes", "--no-install-recommends", "debootstrap", "iptables")
        apt, packages = self._debian_13(), self.folder / "packages"
        packages.mkdir(exist_ok=True)
        self._follow("apt-get", *apt, "update")
        self._follow("apt-get", *apt, "download", *OF_DEBIAN_13, folder=packages)
        self._follow("apt-get", "download", *OF_DEBIAN_12, folder=packages)
        for package in packages.glob("*.deb"):  # unpacked, not installed: nothing is started
            self._follow("dpkg", "--extract", str(package), str(self.folder / "unpacked"))
        usr, plugins = self.folder / "unpacked/usr", self.folder / "config/cli-plugins"
        plugins.mkdir(parents=True, exist_ok=True)
        for name in PLUGINS:
            _link(plugins / name, usr / "libexec/docker/cli-plugins" / name)
        (self.folder / "bin").mkdir(exist_ok=True)
        _link(self.folder / "bin/docker-init", usr / "bin/tini-static")
        for name in reversed(PROGRAMS):  # dockerd last: it says that all is there
            _link(self.folder / "bin" / Path(name).name, usr / name)

    def _debian_13(self) -> list[str]:
        """apt's options for packages of Debian 13, beside this machine's own."""
        place = self.folder / "apt"
        for name in ("lists/partial", "cache/archives/partial"):
            (place / name).mkdir(parents=True, exist_ok=True)
        (place / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror()} trixie main\n")
        values = {
            "Dir::Etc::sourcelist": place / "sources.list",
            "Dir::Etc::sourceparts": "/nonexistent",
            "Dir::State::lists": place / "lists",
            "Dir::Cache": place / "cache",
            "APT::Get::List-Cleanup": "0",
        }
        return [word for name, value in values.items() for word in ("-o", f"{name}={value}")]

    def _run(self) -> None:
        for table in TABLES:
            with (self.folder / f"{table}.iptables").open("wb") as saved:
                subprocess.run(["iptables-save", "--table", table], stdout=saved, check=True, timeout=60)
        (self.folder / "ip_forward").write_text(FORWARDING.read_text())
        words = [
            "nice",
            "--adjustment",
            "10",
            "dockerd",
            "--host",
            self.env["DOCKER_HOST"],
            "--data-root",
            str(self.folder / "data"),
            "--exec-root",
            str(self.folder / "exec"),
            "--pidfile",
            str(self.folder / "dockerd.pid"),
            "--storage-driver",
            "overlay2",
        ]
        with (self.folder / "dockerd.log").open("ab") as log:
            process = subprocess.Popen(
                words,
                env=os.environ | self.env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        until(
            lambda: process.poll() is not None or self._answers(),
            f"the engine does not answer; see {self.folder}/dockerd.log",
            every=0.5,
        )
        assert process.poll() is None, (self.folder / "dockerd.log").read_text()[-3000:]

    def _make_bases(self) -> None:
        """What the Dockerfile and the compose file begin with, under their names."""
        compose = (ROOT / "docker-compose.yml").read_text()
        base = PYTHON.findall((ROOT / "Dockerfile").read_text())[0]
        if not self._has("local/debian"):
            self._import_debian("local/debian")
        self._docker("tag", "local/debian", base)
        for name in ("postgres", "label-studio"):
            (image,) = re.findall(rf"^    image: (\S*\b{name}:\S+)$", compose, re.MULTILINE)
            if not self._has(image):
                self._say(f"base image {image}")
                place = self.folder / "bases" / name
                shutil.copytree(ROOT / "tests/compose/bases" / name, place, dirs_exist_ok=True)
                shutil.copy(ROOT / "label-studio.lock", place)
                self._docker("build", "--tag", image, str(place))

    def _import_debian(self, image: str) -> None:
        """Debian 12 with its Python, trusting the certificates that this machine trusts."""
        self._say("base image: Debian, by debootstrap")
        root = self.folder / "debian"
        if not root.exists():
            self._debootstrap(root)
        changes = [f"ENV SSL_CERT_FILE={CERTIFICATES}", f"ENV PIP_CERT={CERTIFICATES}", 'CMD ["python3"]']
        options = " ".join(f"--change '{change}'" for change in changes)
        self._follow("sh", "-ec", f"tar -C '{root}' --one-file-system -c . | docker import {options} - {image}")

    def _debootstrap(self, root: Path) -> None:
        making = root.with_name("debian.part")
        shutil.rmtree(making, ignore_errors=True)
        packages = "--include=ca-certificates,python3,python3-venv,netbase,tzdata"
        self._follow("debootstrap", "--variant=minbase", packages, "bookworm", str(making), mirror())
        shutil.copy(CERTIFICATES, making / CERTIFICATES.relative_to("/"))
        for name in ("python", "python3"):
            _link(making / "usr/local/bin" / name, Path("/usr/bin/python3"))
        making.rename(root)

    def _answers(self) -> bool:
        return self._quiet("docker", "version").returncode == 0

    def _has(self, image: str) -> bool:
        return self._quiet("docker", "image", "inspect", image).returncode == 0

    def _docker(self, *words: str) -> None:
        self._follow("docker", *words)

    def _quiet(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(words, env=os.environ | self.env, capture_output=True, timeout=60, check=False)

    def _follow(self, *words: str, folder: Path | None = None) -> None:
        follow(words, self.folder / "engine.log", env=os.environ | self.env, folder=folder)


def mirror(sources: Sequence[Path] | None = None) -> str:
    """Where this machine's apt has Debian from."""
    if sources is None:
        sources = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(path.read_text() for path in sources if path.is_file())
    found = re.findall(r"^(?:URIs:|deb(?: \[.*?\])?) *(\S+/debian/?)(?: |$)", text, re.MULTILINE)
    if not found:
        raise SystemExit("apt's sources (/etc/apt/sources.list, sources.list.d) name no address that ends in /debian")
    return str(found[0])


def _link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)
