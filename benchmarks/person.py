"""A simulated person who works in a Label Studio project for hours: labels, changes, deletes, imports."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from neat_backend.demo.label_studio import Annotator, choices_result
from neat_backend.errors import LabelStudioError

KNOWN = ("zero", "one", "two", "three")
INVALID = "Not one of these"
LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="class" toName="image" choice="single">'
    + "".join(f'<Choice value="{name}"/>' for name in KNOWN)
    + f'<Choice value="{INVALID}" invalid="true"/></Choices></View>'
)
WEIGHTS = {
    "label": 50,
    "change": 10,
    "take_back": 8,
    "skip": 3,
    "import": 8,
    "import_labelled": 3,
    "delete_tasks": 8,
    "take_back_many": 3,
    "other_image": 3,
    "train": 1,
}
MOST_LABELLED = 0.6  # of the pool, so that there is always something left to label
SIDE = 64  # pixels
AWAY_LOOKS, AWAY_SECONDS = 60, 5.0  # at a Label Studio that does not answer, and between them
URL = "/data/local-files/?d="


class Pictures:
    """Digits as files below Label Studio's document root, as many different ones as needed."""

    def __init__(self, folder: Path) -> None:
        from sklearn.datasets import load_digits

        self.folder = folder
        self._digits = load_digits()
        self._next = 0
        folder.mkdir(parents=True, exist_ok=True)

    def another(self) -> str:
        """The reference of a new picture, as a task names it."""
        from PIL import Image

        number, self._next = self._next, self._next + 1
        again, at = divmod(number, len(self._digits.images))
        pixels = (self._digits.images[at] * (255 / 16)).astype(np.uint8)
        pixels[0, :] = again  # after the last digit, the same ones with another edge
        Image.fromarray(pixels).resize((SIDE, SIDE)).convert("RGB").save(self.folder / f"{number:06d}.png")
        return f"{URL}{self.folder.name}/{number:06d}.png"

    def choice(self, reference: str) -> str:
        """The right answer."""
        digit = int(self._digits.target[int(Path(reference).stem) % len(self._digits.target)])
        return KNOWN[digit] if digit < len(KNOWN) else INVALID


class Person:
    """Performs random actions in one project, and remembers every task's label."""

    def __init__(
        self, annotator: Annotator, pictures: Pictures, tasks: int, rng: np.random.Generator, title: str = "soak"
    ) -> None:
        self.annotator, self.pictures, self.size, self.rng = annotator, pictures, tasks, rng
        self.images: dict[int, str] = {}  # task → reference of its picture
        self.labels: dict[int, str] = {}  # task → choice, of what is labelled
        self.done: Counter[str] = Counter()
        self.refused = 0  # actions that Label Studio answered with an error
        self.backend = 0  # its id in Label Studio, once connected
        self._annotations: dict[int, int] = {}  # task → annotation; skips too
        self.project = annotator.create_project(title, LABEL_CONFIG)
        annotator.add_local_files(self.project, pictures.folder)
        self._import(tasks)

    def act(self) -> str:
        """Perform one action; returns its name. An error of Label Studio is counted, and the project read again."""
        name = self._choose()
        actions: dict[str, Callable[[], None]] = {
            "label": self._label,
            "change": self._change,
            "take_back": self._take_back,
            "skip": self._skip,
            "import": lambda: self._import(int(self.rng.integers(1, 7))),
            "import_labelled": self._import_labelled,
            "delete_tasks": self._delete_tasks,
            "take_back_many": self._take_back_many,
            "other_image": self._other_image,
            "train": lambda: self.annotator.start_training(self.backend),
        }
        try:
            actions[name]()
        except (LabelStudioError, httpx.HTTPError):
            self.refused += 1
            self._look_again()
        else:
            self.done[name] += 1
        return name

    def _choose(self) -> str:
        name = str(self.rng.choice(list(WEIGHTS), p=np.array(list(WEIGHTS.values())) / sum(WEIGHTS.values())))
        if len(self.images) > 1.1 * self.size and name.startswith("import"):
            return "delete_tasks"
        if len(self.images) < 0.9 * self.size and name == "delete_tasks":
            return "import"
        if name == "label" and len(self.labels) > MOST_LABELLED * len(self.images):
            return "take_back_many"
        needs_labels = name in ("change", "take_back", "take_back_many", "train")
        return "label" if needs_labels and len(self.labels) < 10 else name

    def _some(self, of: Sequence[int], most: int) -> list[int]:
        count = min(int(self.rng.integers(1, most + 1)), len(of))
        return [int(task) for task in self.rng.choice(np.array(of), count, replace=False)]

    def _served(self) -> int | None:
        """The served task, if it has no answer yet.

        An unknown task is from an import whose answer was lost, created after the last reading.
        """
        task = self.annotator.next_task(self.project)
        if task is not None and task not in self.images:
            self._look_again()
        return None if task in self._annotations else task

    def _label(self) -> None:
        task = self._served()
        if task is None:
            return self._import(5)
        choice = self.pictures.choice(self.images[task])
        if self.rng.random() < 0.03:
            choice = str(self.rng.choice([*KNOWN, INVALID]))  # people make mistakes
        self._annotations[task] = self.annotator.annotate(task, choice)
        self.labels[task] = choice

    def _skip(self) -> None:
        task = self._served()
        if task is not None:
            self._annotations[task] = self.annotator.skip(task)

    def _change(self) -> None:
        (task,) = self._some(list(self.labels), 1)
        choice = str(self.rng.choice([*KNOWN, INVALID]))
        self.annotator.update_annotation(self._annotations[task], choice)
        self.labels[task] = choice

    def _take_back(self) -> None:
        (task,) = self._some(list(self.labels), 1)
        self.annotator.delete_annotation(self._annotations[task])
        self._forget_answer(task)

    def _take_back_many(self) -> None:
        tasks = self._some(list(self.labels), 8)
        self.annotator.delete_annotations_of(self.project, tasks)
        for task in tasks:
            self._forget_answer(task)

    def _forget_answer(self, task: int) -> None:
        self._annotations.pop(task, None)
        self.labels.pop(task, None)

    def _import(self, count: int) -> None:
        references = [self.pictures.another() for _ in range(count)]
        ids = self.annotator.import_tasks(self.project, [{"data": {"image": one}} for one in references])
        self.images.update(zip(ids, references, strict=True))

    def _import_labelled(self) -> None:
        """Import labelled tasks: the webhook has no annotations, so the backend must read them."""
        references = [self.pictures.another() for _ in range(2)]
        choices = [self.pictures.choice(one) for one in references]
        items = [
            {"data": {"image": one}, "annotations": [{"result": choices_result(choice)}]}
            for one, choice in zip(references, choices, strict=True)
        ]
        for task, one, choice in zip(
            self.annotator.import_tasks(self.project, items), references, choices, strict=True
        ):
            answer = self._answer_of(task)
            self.images[task], self.labels[task], self._annotations[task] = one, choice, answer

    def _answer_of(self, task: int) -> int:
        """The annotation that the task was imported with. Raises LabelStudioError when none appears."""
        for _ in range(20):
            answers = self.annotator.call("GET", f"/api/tasks/{task}/annotations/")
            if answers:
                return int(answers[0]["id"])
            time.sleep(0.25)
        raise LabelStudioError(f"task {task} was imported with an annotation, and has none")

    def _delete_tasks(self) -> None:
        tasks = self._some(list(self.images), 6)
        self.annotator.delete_tasks(self.project, tasks)
        for task in tasks:
            self.images.pop(task, None)
            self._forget_answer(task)

    def _other_image(self) -> None:
        """Change an image: no webhook reports it, only a comparison finds it."""
        (task,) = self._some(list(self.images), 1)
        reference = self.pictures.another()
        self.annotator.call("PATCH", f"/api/tasks/{task}/", {"data": {"image": reference}})
        self.images[task] = reference

    def _look_again(self) -> None:
        """Read the present state from Label Studio, as soon as it answers."""
        path = f"/api/tasks?project={self.project}&page_size=10000&fields=all&resolve_uri=false"
        for left in reversed(range(AWAY_LOOKS)):
            try:
                found: list[dict[str, Any]] = self.annotator.call("GET", path)["tasks"]
                break
            except (LabelStudioError, httpx.HTTPError):
                if not left:
                    raise
                time.sleep(AWAY_SECONDS)
        self.images = {int(task["id"]): task["data"]["image"] for task in found}
        answers = {int(task["id"]): task["annotations"][-1] for task in found if task["annotations"]}
        self._annotations = {task: int(answer["id"]) for task, answer in answers.items()}
        self.labels = {
            task: answer["result"][0]["value"]["choices"][0]
            for task, answer in answers.items()
            if answer["result"] and not answer["was_cancelled"]
        }
