"""The Dockerfile, built without a Docker engine and started: `make image-test`.

buildah builds the image of the web (VARIANT=web) on a Debian made here by debootstrap, as no registry of images can
be counted on. The worker's libraries, gigabytes of them, are not installed into it a second time but mounted from
this environment, and then both web and worker run inside. A read-only root needs an engine; here it is only seen
that the user can write nowhere else.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from neat_backend.demo.backend import Backend, is_ranked, labelled
from neat_backend.demo.label_studio import Annotator
from neat_backend.demo.ports import free_port
from tests.conftest import need
from tests.e2e.loop import SETTINGS, Labelling
from tests.labelstudio.server import shared_label_studio, stop_label_studio
from tests.serving import annotation_created, setup_body
from tests.waiting import HANGS, until

ROOT = Path(__file__).parents[1]
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
USER = 10001


class Builder:
    """buildah with a storage of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._options = ["--root", str(folder / "storage"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]

    def command(self, *words: str) -> list[str]:
        return ["buildah", *self._options, *words]

    def __call__(self, *words: str, seconds: float = 600) -> str:
        done = subprocess.run(
            self.command(*words),
            cwd=ROOT,
            env={**os.environ, "BUILDAH_ISOLATION": "chroot"},
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"buildah {' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        return done.stdout.strip()


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Builder]:
    if "image" not in os.environ.get("NEAT_TEST_REQUIRE", "").split(","):
        pytest.skip("image: it takes minutes; `make image-test`, or NEAT_TEST_REQUIRE=image")
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            need("image", f"{program} is not installed")
    if os.geteuid() != 0:
        need("image", "debootstrap needs root")
    folder = tmp_path_factory.mktemp("images")
    yield Builder(folder)
    subprocess.run(["buildah", *Builder(folder)._options, "rm", "--all"], capture_output=True, check=False)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def image(builder: Builder) -> str:
    """The image of the web, from the real Dockerfile."""
    given = os.environ.get("NEAT_TEST_IMAGE_ROOT")  # a folder that debootstrap has filled before
    root = Path(given) if given else builder.folder / "debian"
    if not given:
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", "bookworm", root],
            check=True,
            capture_output=True,
            timeout=600,
        )
    base = builder("from", "scratch")
    builder("add", "--quiet", base, str(root), "/")
    if CERTIFICATES.exists():  # of a mirror, perhaps, that this machine trusts
        builder("copy", "--quiet", base, str(CERTIFICATES), str(CERTIFICATES))
    builder("config", "--env", f"SSL_CERT_FILE={CERTIFICATES}", "--env", f"PIP_CERT={CERTIFICATES}", base)
    builder("commit", "--quiet", "--rm", base, "localhost/debian-with-python")
    builder(
        "build",
        "--quiet",
        "--format",
        "docker",
        "--pull-never",
        "--build-arg",
        "BASE=localhost/debian-with-python",
        "--build-arg",
        "VARIANT=web",
        "--tag",
        "localhost/neat-backend:web",
        "--file",
        "Dockerfile",
        ".",
    )
    return "localhost/neat-backend:web"


class Container(Backend):
    """A container of the image, used as a backend."""

    def __init__(self, builder: Builder, image: str, folder: Path, settings: dict[str, str]) -> None:
        super().__init__(free_port(), folder / "container.log", settings)
        self.name, self._builder = builder("from", "--pull-never", image), builder
        self.data = folder / "data"
        self.data.mkdir()
        os.chown(self.data, USER, USER)

    def words(self, *command: str, mounts: tuple[str, ...] = (), **env: str) -> list[str]:
        settings = {**self._settings, "HOST": "127.0.0.1", "PORT": str(self.port), **env}
        given = [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
        volumes = [word for mount in (f"{self.data}:/data", *mounts) for word in ("--volume", mount)]
        return self._builder.command("run", "--isolation", "chroot", *volumes, *given, self.name, "--", *command)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Another command inside, to its end."""
        return subprocess.run(self.words(*command), capture_output=True, text=True, timeout=HANGS, check=False)

    def begin(self, *command: str, mounts: tuple[str, ...] = (), **env: str) -> None:
        with self.log_file.open("ab") as output:
            self._process = subprocess.Popen(
                self.words(*command, mounts=mounts, **env), stdout=output, stderr=output, start_new_session=True
            )

        def answers() -> bool:
            assert self.is_running, self.log_file.read_text()[-3000:]
            return self._answers()

        until(answers, lambda: self.log_file.read_text()[-3000:], every=0.2)


@pytest.fixture
def container(builder: Builder, image: str, tmp_path: Path) -> Iterator[Container]:
    made = Container(builder, image, tmp_path, {"BASIC_AUTH_USER": "neat", "BASIC_AUTH_PASS": "a secret"})
    yield made
    if made.is_running:
        made.stop()
    builder("rm", made.name)


def configured(builder: Builder, image: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(builder("inspect", "--type", "image", image))["Docker"]["config"]
    return found


def test_the_image_says_how_it_is_run(builder: Builder, image: str) -> None:
    config = configured(builder, image)
    assert config["User"] == f"{USER}:{USER}"
    assert set(config["Volumes"]) == {"/data", "/weights"}
    assert config["Cmd"] == ["neat-backend", "serve"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"][:2] == ["CMD", "python"]


def test_the_web_answers_takes_a_webhook_is_healthy_and_stops_when_told(
    builder: Builder, image: str, container: Container, record_property: Callable[[str, object], None]
) -> None:
    began = time.monotonic()
    container.begin("neat-backend", "web")
    record_property("seconds_to_health", round(time.monotonic() - began, 1))
    (about,) = json.loads(builder("images", "--json", image))
    record_property("image_size", about["size"])
    print(f"{about['size']}, /health after {time.monotonic() - began:.1f} s")
    check = configured(builder, image)["Healthcheck"]["Test"][1:]
    assert container.run(*check).returncode == 0
    assert container.ask("/setup", "POST", setup_body())["model_version"]
    assert httpx.post(container.url + "/webhook", json=annotation_created(5)).status_code == 401
    container.ask("/webhook", "POST", annotation_created(5))
    queue = container.status(7)["queue"]  # no worker is there: the reading of the project, and the annotation
    assert (queue["count"], queue["set_aside"]) == (2, 0)
    container.stop()
    assert "did not stop within" not in container.log_file.read_text()
    assert container.run(*check).returncode != 0


def test_nothing_but_its_volumes_and_tmp_can_be_written_and_nothing_can_compile(container: Container) -> None:
    found = container.run("find", "/", "-xdev", "-type", "d", "-writable", "-not", "-path", "/proc/*")
    written = {Path(line).parts[1] for line in found.stdout.splitlines() if line != "/"}
    assert written <= {"tmp", "var", "weights", "data", "run", "dev"}
    assert "/opt" not in found.stdout
    assert container.run("id", "-u").stdout.strip() == str(USER)
    for program in ("gcc", "cc", "uv"):
        assert container.run("sh", "-c", f"command -v {program}").returncode != 0
    assert container.run("python", "-c", "import torch").returncode != 0  # the web needs none of it


def test_every_module_that_the_web_loads_was_compiled_when_the_image_was_built(container: Container) -> None:
    code = (
        "import os, sys, neat_backend.web.app; cached = [getattr(m, '__cached__', None) for m in sys.modules.values()];"
        "cached = [c for c in cached if isinstance(c, str)];"
        "print(len(cached), [c for c in cached if not os.path.exists(c)])"
    )
    count, _, missing = container.run("python", "-c", code).stdout.strip().partition(" ")
    assert (int(count) > 500, missing) == (True, "[]")


def test_a_label_becomes_an_order_inside(builder: Builder, image: str, tmp_path: Path) -> None:
    server = shared_label_studio(tmp_path / "label-studio")
    annotator = Annotator(server.url, server.token)
    labelling = Labelling(annotator, tmp_path / "images", 24, "in a container")
    settings = {**SETTINGS, "LABEL_STUDIO_URL": server.url, "LABEL_STUDIO_API_KEY": server.token}
    inside = Container(builder, image, tmp_path, settings)
    try:
        heavy = sysconfig.get_paths()["purelib"]
        path = "/opt/venv/lib/python3.11/site-packages:/heavy"  # the image's own first
        inside.begin("neat-backend", "serve", mounts=(f"{heavy}:/heavy:ro",), PYTHONPATH=path)
        user, password = SETTINGS["BASIC_AUTH_USER"], SETTINGS["BASIC_AUTH_PASS"]
        annotator.connect_backend(labelling.project, inside.url, user=user, password=password)
        inside.wait_until(labelling.project, is_ranked, 300, 0.2)
        order = inside.ranking(labelling.project)
        assert len(order) == 24
        labelling.answer(order[0]["task"])
        inside.wait_until(labelling.project, lambda now: labelled(now) == 1 and bool(now["caught_up"]), 60, 0.2)
        after = inside.ranking(labelling.project)
        assert {one["task"] for one in after} == {one["task"] for one in order[1:]}
        assert inside.stop() is not None
    finally:
        if inside.is_running:
            inside.kill()
        builder("rm", inside.name)
        stop_label_studio()
