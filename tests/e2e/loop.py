"""What the end-to-end tests share: a backend beside the session's Label Studio, digits to label, a rebuild."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from benchmarks.rebuild import differences, rebuilt
from neat_backend.demo.backend import Backend, is_ranked, trained
from neat_backend.demo.label_studio import Annotator, LabelStudioServer
from neat_backend.demo.ports import free_port
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.settings import Settings
from tests.cable import Cable

KNOWN = ("zero", "one", "two")
INVALID = "something else"
CONFIG = (
    '<View><Image name="image" value="$image" maxWidth="420px"/>'
    '<Choices name="class" toName="image" choice="single" showInLine="true">'
    + "".join(f'<Choice value="{name}"/>' for name in KNOWN)
    + f'<Choice value="{INVALID}" invalid="true"/></Choices></View>'
)
SETTINGS = {
    "NEAT_ENCODER": "efficientnet_lite0",
    "NEAT_BATCH_SIZE": "10",
    "NEAT_K": "5",
    "NEAT_CLASSIFIER_WEIGHTS": "scratch",
    "NEAT_EPOCHS": "2",
    "NEAT_IMAGE_SIZE": "32",
    "NEAT_PUBLISH_INTERVAL": "0.2",
    "BASIC_AUTH_USER": "neat",
    "BASIC_AUTH_PASS": "a secret: with ünïcode",
}


def make_backend(server: LabelStudioServer, folder: Path, **settings: str) -> Backend:
    place = {
        "LABEL_STUDIO_URL": server.url,
        "LABEL_STUDIO_API_KEY": server.token,
        "NEAT_DATA_DIR": str(folder / "data"),
    }
    return Backend(free_port(), folder / "backend.log", {**SETTINGS, **place, **settings})


def write_digits(folder: Path, count: int, first: int = 0) -> list[tuple[Path, str]]:
    """Digits as files, 64 pixels wide, with the right choice for each."""
    digits = load_digits()
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for at in range(first, first + count):
        pixels = (digits.images[at] * 255 / 16).astype(np.uint8)
        path = folder / f"{at:04d}.png"
        Image.fromarray(pixels).resize((64, 64)).save(path)
        target = int(digits.target[at])
        files.append((path, KNOWN[target] if target < len(KNOWN) else INVALID))
    return files


class Labelling:
    """A project of digits in Label Studio and the person who labels it."""

    def __init__(self, annotator: Annotator, folder: Path, count: int, title: str) -> None:
        self.annotator, self.folder = annotator, folder
        self.project = annotator.create_project(title, CONFIG)
        self.truth: dict[int, str] = {}
        self._next = 0
        self.add(count)

    def add(self, count: int) -> list[int]:
        """Upload more images; their tasks."""
        files = write_digits(self.folder, count, self._next)
        self._next += count
        paths = [path for path, _ in files]
        tasks = []
        for start in range(0, len(paths), 100):  # Label Studio takes no more files in one upload
            tasks += self.annotator.upload_images(self.project, paths[start : start + 100])
        # An upload makes tasks in the order of the files' names in storage: ask which is which.
        wanted = {path.stem: choice for path, choice in files}
        listed = self.annotator.call("GET", f"/api/tasks?project={self.project}&page_size=1000&fields=task_only")
        names = {task["id"]: Path(task["data"]["image"]).stem for task in listed["tasks"]}
        self.truth |= {task: wanted[names[task].rpartition("-")[2]] for task in tasks}
        return tasks

    def of_each_class(self) -> list[int]:
        """A task of each class."""
        return [next(task for task, choice in self.truth.items() if choice == name) for name in KNOWN]

    def answer(self, task: int) -> int:
        """Label a task by the truth; the annotation's id."""
        return self.annotator.annotate(task, self.truth[task])


class Standing:
    """A running service, and the cable by which it reaches Label Studio. Nobody needs to log in."""

    def __init__(self, server: LabelStudioServer, folder: Path) -> None:
        self.cable = Cable("127.0.0.1", server.port)
        self.folder = folder
        self.settings = {
            **SETTINGS,
            "LABEL_STUDIO_URL": f"http://127.0.0.1:{self.cable.port}",
            "NEAT_RECONCILE_SECONDS": "3",
            "BASIC_AUTH_USER": "",
            "BASIC_AUTH_PASS": "",
        }
        self.backend = make_backend(server, folder, **self.settings)

    def close(self) -> None:
        self.cable.cut.clear()
        self.cable.unplugged.clear()
        try:
            self.backend.stop()
        finally:
            self.cable.close()


def labelled_and_trained(standing: Standing, annotator: Annotator, folder: Path) -> Labelling:
    """30 digits, 10 of them labelled in the order that is served, a classifier, and the columns of the Data Manager."""
    made = Labelling(annotator, folder, 30, "Digits: zero, one or two?")
    annotator.connect_backend(made.project, standing.backend.url, extra_params={"task_columns": True})
    standing.backend.wait_until(made.project, is_ranked)
    for task in made.of_each_class():
        made.answer(task)
    for _ in range(10 - len(KNOWN)):
        task = annotator.next_task(made.project)
        assert task is not None
        made.answer(task)
    standing.backend.wait_until(made.project, lambda now: trained(now) >= 1 and is_ranked(now))
    return made


def assert_equals_rebuild(server: LabelStudioServer, backend: Backend, data: Path, project: int) -> None:
    """The order that is served is the one that follows from what Label Studio holds now."""
    client = LabelStudioClient(server.url, server.token)
    assert differences(backend, project, rebuilt(client, data, project, Settings.from_env(SETTINGS))) == []
