"""From a folder of pictures to a project labelled in order: .env, serve, new, connect, beside a real Label Studio."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from neat_backend.demo.backend import is_ranked
from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from neat_backend.demo.ports import free_port
from neat_backend.settings import Settings
from tests.labelstudio.server import CONFIG
from tests.waiting import HANGS, until

COLOURS = ("red", "blue", "green")
COUNT = 12


def paint(folder: Path, count: int = COUNT) -> Path:
    """Pictures of one colour each, a part of them in a folder below, with a name that Label Studio would not keep."""
    for at in range(count):
        place = folder / "more ünd more" if at % 3 == 0 else folder
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), COLOURS[at % len(COLOURS)]).save(place / f"{at}.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


class User:
    """Somebody at a terminal, in a folder with a file .env; the backend runs in another terminal."""

    def __init__(self, folder: Path, label_studio: LabelStudioServer) -> None:
        self.folder = folder
        self.port = free_port()
        self.env = {name: value for name, value in os.environ.items() if name not in Settings.variables()}
        (folder / ".env").write_text(
            f"LABEL_STUDIO_URL={label_studio.url}\nLABEL_STUDIO_API_KEY={label_studio.token}\nPORT={self.port}\n"
            "NEAT_ENCODER=efficientnet_lite0\nNEAT_PUBLISH_INTERVAL=0.2\n"
        )
        self.log = folder / "serve.log"
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "neat_backend.cli", "serve"]
            self.serving = subprocess.Popen(command, cwd=folder, env=self.env, stdout=log, stderr=log)
        until(lambda: self.serving.poll() is not None or "worker started" in self.log.read_text(), self.log.read_text)
        until(lambda: httpx.get(f"http://localhost:{self.port}/health", timeout=HANGS).status_code == 200)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "neat_backend.cli", *words]
        return subprocess.run(
            command, cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=HANGS, check=False
        )

    def output(self, *words: str) -> Any:
        """What a command prints as JSON."""
        done = self.run(*words, "--json")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.log.read_text()}"
        return json.loads(done.stdout)

    def status(self, project: int) -> dict[str, Any]:
        answer = httpx.get(f"http://localhost:{self.port}/api/projects/{project}", timeout=HANGS)
        return dict(answer.json()) if answer.status_code == 200 else {}

    def ranked_first(self, project: int) -> int:
        answer = httpx.get(f"http://localhost:{self.port}/api/projects/{project}/ranking?limit=1", timeout=HANGS)
        return int(answer.json()["ranking"][0]["task"])

    def wait_until_ranked(self, project: int, tasks: int) -> None:
        def ranked() -> bool:
            status = self.status(project)
            return bool(status) and status["tasks"]["ready"] == tasks and is_ranked(status)

        until(ranked, lambda: f"{self.status(project)}\n{self.log.read_text()}", progress=lambda: self.status(project))

    def close(self) -> None:
        self.serving.terminate()
        self.serving.wait(HANGS)


@pytest.fixture(scope="module")
def user(label_studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    made = User(tmp_path_factory.mktemp("user"), label_studio)
    yield made
    made.close()


def test_serve_says_where_to_go_next(user: User, label_studio: LabelStudioServer) -> None:
    said = user.log.read_text()
    assert f"listening on http://127.0.0.1:{user.port}, for Label Studio at {label_studio.url};" in said
    assert f"dashboard: http://localhost:{user.port}/\n" in said
    assert f"address for Label Studio (project → Settings → Model): http://localhost:{user.port}\n" in said
    assert "no project is connected yet" in said


def test_a_folder_of_pictures_becomes_a_project_once(user: User, annotator: Annotator) -> None:
    paint(user.folder / "pictures")
    words = ("new", "pictures", "--classes", "red,blue", "--invalid", "Another colour")
    made = user.output(*words)
    project = made["connected"]["project"]
    assert (made["is_new"], made["added"], made["connected"]["tasks"]) == (True, COUNT, COUNT)
    listed = annotator.call("GET", f"/api/ml?project={project}")
    assert [one["url"] for one in listed] == [f"http://localhost:{user.port}"]

    user.wait_until_ranked(project, COUNT)
    there = annotator.call("GET", f"/api/projects/{project}/")
    assert (there["title"], there["sampling"]) == ("pictures", "Uncertainty sampling")
    assert "NEAT: next batch" in [tab["data"]["title"] for tab in annotator.tabs(project)]
    assert annotator.next_task(project) == user.ranked_first(project)

    # again, and again with one picture more
    again = user.output(*words)
    assert (again["connected"]["project"], again["is_new"], again["added"]) == (project, False, 0)
    Image.new("RGB", (32, 32), "yellow").save(user.folder / "pictures" / "new.png")
    more = user.output(*words)
    assert (more["connected"]["project"], more["added"], more["connected"]["tasks"]) == (project, 1, COUNT + 1)
    user.wait_until_ranked(project, COUNT + 1)

    # the same folder with other classes is another project, whose title is to be another
    other = user.run("new", "pictures", "--classes", "red,green")
    assert other.returncode == 1
    assert re.match(rf"error: --title pictures: .*project {project} .*neat-backend connect {project}", other.stderr)


def test_label_studio_reads_the_folder_itself(
    user: User, label_studio: LabelStudioServer, annotator: Annotator
) -> None:
    folder = paint(label_studio.document_root / "colours")
    words = ("new", str(folder), "--classes", "red,blue", "--title", "Colours where they lie", "--storage", "local")
    made = user.output(*words)
    project = made["connected"]["project"]
    assert (made["added"], made["connected"]["tasks"]) == (COUNT, COUNT)
    user.wait_until_ranked(project, COUNT)
    assert user.status(project)["tasks"]["failed"] == 0
    assert annotator.next_task(project) == user.ranked_first(project)
    assert user.output(*words)["added"] == 0

    copies = user.run(*words[:-1], "uploads")
    assert (copies.returncode, copies.stdout) == (1, "")
    assert f"project {project} has pictures of {folder} by --storage local already" in copies.stderr


def test_a_folder_that_label_studio_may_not_read_is_named_with_the_remedy(user: User) -> None:
    folder = paint(user.folder / "elsewhere", 1)
    done = user.run("new", str(folder), "--classes", "red", "--storage", "local")
    assert done.returncode == 1
    assert f"Label Studio does not take {folder}: the folder is not below its document root" in done.stderr
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={user.folder}, or use --storage uploads" in done.stderr


def test_a_project_made_by_hand_is_connected_once(user: User, annotator: Annotator) -> None:
    project = annotator.create_project("Made by hand", CONFIG)
    folder = paint(user.folder / "by-hand")
    annotator.upload_images(project, sorted(folder.rglob("*.png")))
    made = user.output("connect", "made by hand")
    assert (made["project"], made["is_new"], made["sampling"]) == (project, True, "Uncertainty sampling")
    user.wait_until_ranked(project, COUNT)
    assert annotator.next_task(project) == user.ranked_first(project)
    again = user.run("connect", str(project))
    assert again.stdout.startswith(f"project {project} “Made by hand” was connected already, to ")
    assert len(annotator.call("GET", f"/api/ml?project={project}")) == 1


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"LABEL_STUDIO_API_KEY": "no-such-token"}, r"Label Studio refused us \(401.*check LABEL_STUDIO_API_KEY"),
        ({"LABEL_STUDIO_URL": "http://localhost:{backend}"}, "something else than Label Studio answers at"),
        ({"LABEL_STUDIO_URL": "http://localhost:{free}"}, "does not answer"),
        ({"PORT": "{free}"}, r"no backend answers at http://localhost:\d+; start it with `neat-backend serve`"),
    ],
)
def test_what_is_wrong_is_said_with_its_remedy(
    user: User, annotator: Annotator, variables: dict[str, str], said: str
) -> None:
    project = annotator.create_project("Never connected", CONFIG)
    ports = {"backend": str(user.port), "free": str(free_port())}
    env = user.env | {name: value.format(**ports) for name, value in variables.items()}
    done = subprocess.run(
        [sys.executable, "-m", "neat_backend.cli", "connect", str(project)],
        cwd=user.folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(said, done.stderr), done.stderr
    assert annotator.call("GET", f"/api/ml?project={project}") == []
