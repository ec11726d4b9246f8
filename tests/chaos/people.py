"""What people do in Label Studio, at random; and what becomes of the webhooks that tell of it."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

from tests.chaos.label_studio import LabelStudioHttp
from tests.fake_label_studio import label_config

Json = dict[str, Any]
BASE = ("dog", "cat", "bird")
EXTRA = ("owl", "fox", "eel")
ANNOTATORS = 4
FATES = {"in time": 60, "dropped": 10, "duplicated": 10, "delayed": 10, "reordered": 10}
TIMEOUT_SECONDS = 1.0  # as Label Studio's


class People:
    """One step is one event, as Label Studio counts them; `rng` decides what."""

    def __init__(
        self, studio: LabelStudioHttp, project: int, rng: random.Random, most_tasks: int, trainings: bool = True
    ) -> None:
        """trainings: whether anything is done that begins one."""
        self.studio, self.project, self.rng, self.most_tasks = studio, project, rng, most_tasks
        self.done: Counter[str] = Counter()
        self._actions: dict[str, tuple[float, Callable[[], Json | None]]] = {
            "ANNOTATION_CREATED": (42, self._annotate),
            "ANNOTATION_CREATED (skip)": (6, self._skip),
            "ANNOTATION_UPDATED": (14, self._change),
            "ANNOTATIONS_CREATED": (4, self._annotate_many),
            "ANNOTATIONS_DELETED": (9, self._unlabel),
            "ANNOTATIONS_DELETED (many)": (2, self._unlabel_many),
            "TASKS_CREATED": (9, self._import),
            "TASKS_CREATED (annotated)": (2, self._import_annotated),
            "TASKS_DELETED": (5, self._delete),
            "TASKS_UPDATED": (3, self._change_image),
            "PROJECT_UPDATED (choices)": (0.4, self._change_choices),
            "PROJECT_UPDATED (title)": (1, self._change_title),
            "PROJECT_UPDATED (sampling)": (0.3, self._change_sampling),
            "START_TRAINING": (0.4, self._train),
        }
        if not trainings:
            del self._actions["START_TRAINING"], self._actions["PROJECT_UPDATED (choices)"]

    def step(self) -> Json:
        """Something is done; the event that Label Studio has for it."""
        names, weights = list(self._actions), [weight for weight, _ in self._actions.values()]
        while True:
            name = self.rng.choices(names, weights)[0]
            with self.studio.state.lock:
                body = self._actions[name][1]()
            if body is not None:
                self.done[name] += 1
                return body

    @property
    def _there(self) -> Any:
        return self.studio.state.projects[self.project]

    def _choices(self) -> list[str]:
        return [name for name in (*BASE, *EXTRA, "invalid") if f'"{name}"' in self._there.label_config]

    def _tasks(self, count: int) -> list[int]:
        """Some tasks; mostly unlabelled ones, as annotators get them."""
        tasks = list(self._there.tasks)
        answered = {a["task"] for a in self._there.annotations.values()}
        open_ones = [task for task in tasks if task not in answered]
        pool = open_ones if len(open_ones) > count and self.rng.random() < 0.85 else tasks
        return self.rng.sample(pool, min(count, len(pool)))

    def _some_annotation(self) -> int | None:
        numbers = list(self._there.annotations)
        return self.rng.choice(numbers) if numbers else None

    def _annotate(self) -> Json | None:
        who, truth = self.rng.randint(1, ANNOTATORS), self.rng.random() < 0.03
        found = self._tasks(1)
        return self.studio.state.annotate(found[0], self.rng.choice(self._choices()), who, truth) if found else None

    def _skip(self) -> Json | None:
        found = self._tasks(1)
        return self.studio.state.skip(found[0], self.rng.randint(1, ANNOTATORS)) if found else None

    def _annotate_many(self) -> Json | None:
        answers = [(task, self.rng.choice(self._choices())) for task in self._tasks(self.rng.randint(2, 12))]
        return self.studio.state.annotate_many(answers, self.rng.randint(1, ANNOTATORS)) if answers else None

    def _change(self) -> Json | None:
        number = self._some_annotation()
        if number is None:
            return None
        return self.studio.state.change_annotation(number, self.rng.choice(self._choices()))

    def _unlabel(self) -> Json | None:
        number = self._some_annotation()
        return None if number is None else self.studio.state.delete_annotation(number)

    def _unlabel_many(self) -> Json | None:
        numbers = list(self._there.annotations)
        some = self.rng.sample(numbers, min(len(numbers), self.rng.randint(2, 8)))
        return self.studio.state.delete_annotations(some) if some else None

    def _import(self) -> Json | None:
        count = self.rng.randint(1, 6)
        if len(self._there.tasks) + count > self.most_tasks:
            return None
        return self.studio.state.import_tasks(self.project, count)

    def _import_annotated(self) -> Json | None:
        """Nobody tells of these annotations."""
        count = self.rng.randint(1, 4)
        if len(self._there.tasks) + count > self.most_tasks:
            return None
        choices = [self.rng.choice(self._choices()) for _ in range(count)]
        return self.studio.state.import_tasks(self.project, count, annotated=choices)

    def _delete(self) -> Json | None:
        tasks = list(self._there.tasks)
        if len(tasks) < self.most_tasks // 2:
            return None
        return self.studio.state.delete_tasks(*self.rng.sample(tasks, self.rng.randint(1, 5)))

    def _change_image(self) -> Json | None:
        tasks = list(self._there.tasks)
        return self.studio.state.change_image(self.rng.choice(tasks), self.rng.randrange(10**9)) if tasks else None

    def _change_choices(self) -> Json:
        extra = [name for name in EXTRA if self.rng.random() < 0.5]
        return self.studio.state.change_project(self.project, label_config=label_config(*BASE, *extra, "invalid"))

    def _change_title(self) -> Json:
        return self.studio.state.change_project(self.project, title=f"animals {self.rng.randrange(1000)}")

    def _change_sampling(self) -> Json:
        sampling = self.rng.choice(["Sequential sampling", "Uncertainty sampling"])
        return self.studio.state.change_project(self.project, sampling=sampling)

    def _train(self) -> Json:
        return self.studio.state.press_train(self.project)


class Post:
    """Sends webhooks as Label Studio does, once and with a second's patience, over a network that loses a tenth."""

    def __init__(self, studio: LabelStudioHttp, project: int, rng: random.Random, late_seconds: float) -> None:
        """late_seconds: the longest that a webhook is late."""
        self.studio, self.project, self.rng, self.late_seconds = studio, project, rng, late_seconds
        self.fates: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.acknowledged: Counter[str] = Counter()  # by action
        self._due: queue.PriorityQueue[tuple[float, int, Json]] = queue.PriorityQueue()
        self._lock = threading.Lock()
        self._open = 0  # to be sent
        self._number = 0
        self._last = 0.0
        self._http = httpx.Client(timeout=TIMEOUT_SECONDS, trust_env=False)
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._carry, daemon=True) for _ in range(16)]
        for thread in self._threads:
            thread.start()

    def send(self, body: Json) -> None:
        fate = self.rng.choices(list(FATES), list(FATES.values()))[0]
        self.fates[fate] += 1
        now = time.monotonic()
        late = {
            "delayed": self.rng.uniform(1, self.late_seconds),
            "reordered": self.rng.uniform(0.05, 1),
            "dropped": None,
        }
        delay = late.get(fate, 0.0)
        if delay is not None:
            self._put(now + delay, body)
        if fate == "duplicated":
            self._put(now + self.rng.uniform(0, self.late_seconds / 2), body)

    def _put(self, at: float, body: Json) -> None:
        with self._lock:
            self._number += 1
            self._open += 1
            self._due.put((at, self._number, body))

    @property
    def waiting(self) -> int:
        return self._open

    def _carry(self) -> None:
        while not self._stopping.is_set():
            try:
                at, _, body = self._due.get(timeout=0.2)
            except queue.Empty:
                continue
            early = at - time.monotonic()
            if early > 0.02:  # others may be due before
                self._due.put((at, _, body))
                time.sleep(0.01)
                continue
            try:
                self._post(body)
            finally:
                with self._lock:
                    self._open -= 1

    def _post(self, body: Json) -> None:
        with self.studio.state.lock:
            hooks = [dict(hook) for hook in self.studio.hooks.get(self.project, [])]
        for hook in hooks:
            try:
                answer = str(self._http.post(hook["url"], json=body, headers=hook["headers"]).status_code)
            except httpx.HTTPError as error:
                answer = type(error).__name__
            with self._lock:
                self.answers[answer] += 1
                if answer.startswith("2"):
                    self.acknowledged[body["action"]] += 1

    def close(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        self._http.close()
