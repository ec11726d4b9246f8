"""The services of docker-compose.yml, started and stopped as their user does, under a project name of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neat_backend.demo.backend import Backend
from neat_backend.demo.label_studio import Annotator
from neat_backend.demo.ports import free_port
from tests.compose.running import follow
from tests.waiting import until

ROOT = Path(__file__).parents[2]
NAME = "neat-compose-test"
IMAGE = f"{NAME}:latest"
PACKAGES = "/opt/venv/lib/python3.11/site-packages"  # in the image


class Stack:
    """What `docker compose up` makes of the file, with its own defaults: no .env, no variable of this shell's."""

    def __init__(self, env: Mapping[str, str], folder: Path, overlay: Path | None = None) -> None:
        """env: where the engine is. overlay: a second file, for what a light image lacks."""
        self.folder = folder
        self._files = [str(ROOT / "docker-compose.yml"), *([str(overlay)] if overlay else [])]
        # The demo's own ports may be taken.
        self.ports = {"LABEL_STUDIO_PORT": str(free_port()), "NEAT_PORT": str(free_port())}
        self.env = {name: value for name, value in env.items() if name not in self._variables()} | self.ports
        services = json.loads(self.output_of("config", "--format", "json"))["services"]
        self.settings = {str(name): str(value) for name, value in services["neat-backend"]["environment"].items()}
        self.token = str(services["label-studio"]["environment"]["LABEL_STUDIO_USER_TOKEN"])

    @staticmethod
    def _variables() -> set[str]:
        return set(re.findall(r"\$\{(\w+)", (ROOT / "docker-compose.yml").read_text()))

    @property
    def label_studio(self) -> Annotator:
        return Annotator(f"http://127.0.0.1:{self.ports['LABEL_STUDIO_PORT']}", self.token)

    @property
    def backend(self) -> Backend:
        """To ask, not to start."""
        return Backend(int(self.ports["NEAT_PORT"]), self.folder / "compose.log", self.settings)

    def run(self, *words: str) -> None:
        """`docker compose …`, for as long as it takes."""
        follow(self._command(*words), self.folder / "compose.log", env=self.env, folder=ROOT)

    def output_of(self, *words: str) -> str:
        """The output of `docker compose …`."""
        return self._output(*self._command(*words))

    def docker(self, *words: str) -> str:
        return self._output("docker", *words)

    def _output(self, *words: str) -> str:
        done = subprocess.run(words, env=self.env, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout.strip()

    def _command(self, *words: str) -> list[str]:
        files = [word for file in self._files for word in ("--file", file)]
        return [
            "docker",
            "compose",
            "--project-name",
            NAME,
            "--env-file",
            os.devnull,
            "--progress",
            "plain",
            *files,
            *words,
        ]

    def health(self) -> dict[str, str]:
        """By container: healthy, starting, unhealthy; or its state where it does not run."""
        rows = [json.loads(line) for line in self.output_of("ps", "--all", "--format", "json").splitlines()]
        return {row["Name"]: row["Health"] if row["State"] == "running" else row["State"] for row in rows}

    def wait_until_healthy(self, count: int) -> None:
        until(
            lambda: sorted(self.health().values()) == ["healthy"] * count,
            lambda: f"not all healthy: {self.health()}",
            progress=lambda: (self.health(), len(self.output_of("logs"))),
            every=2,
        )

    def containers(self, service: str) -> list[str]:
        """Their ids, of twelve digits: their host names."""
        return [line[:12] for line in self.output_of("ps", "--quiet", service).splitlines()]

    def restarts(self, container: str) -> int:
        return int(self.docker("inspect", "--format", "{{.RestartCount}}", container))

    def owner(self, project: int) -> str:
        """The worker that has the project's lease."""
        query = f"SELECT coalesce(lease_owner, '') FROM projects WHERE id = {project}"
        words = ("psql", "--username", "neat", "--tuples-only", "--no-align", "--command", query)
        return self.output_of("exec", "-T", "postgres", *words)

    def kill_inside(self, container: str) -> None:
        """SIGKILL for what the container's init has started, as the kernel does when memory is short."""
        self.docker("exec", container, "sh", "-c", "kill -KILL $(cat /proc/1/task/1/children)")


def light(folder: Path, libraries: Path) -> Path:
    """A compose file that gives the workers libraries of this machine, which the image of the web lacks."""
    path = folder / "light.yml"
    worker: dict[str, Any] = {
        "volumes": [f"{libraries}:/heavy:ro"],
        "environment": {"PYTHONPATH": f"{PACKAGES}:/heavy"},  # the image's own first
    }
    path.write_text(json.dumps({"services": {"neat-worker": worker}}))
    return path
