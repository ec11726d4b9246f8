"""One backend in one process, without its threads: live projects over a store, driven step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neat_backend.errors import TrainingError
from neat_backend.labelstudio.events import parse_webhook
from neat_backend.models.grid import to_grid
from neat_backend.ranking.engine import Engine
from neat_backend.records import Project, Round
from neat_backend.settings import Settings
from neat_backend.store import inbox, projects, rounds, tasks
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.objects import Objects
from neat_backend.worker.live import LiveProject, Resources
from neat_backend.worker.owned_project import OwnedProject
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.training import TrainingJob, TrainingResult
from neat_backend.worker.worker import Worker
from tests.fake_label_studio import BACKEND_URL, FakeLabelStudio
from tests.migrated import make_sqlite
from tests.waiting import until

PROJECT = 7


def label_studio_of(tasks: int = 0, annotated: Sequence[str] = (), project: int = PROJECT) -> FakeLabelStudio:
    """A Label Studio with one project and so many tasks, the first of them annotated like that."""
    made = FakeLabelStudio()
    made.add_project(project)
    if tasks:
        made.import_tasks(project, tasks, annotated=annotated)
    return made


class FakeEncoder:
    """Features are the colours of a picture's quarters."""

    key = "fake"
    dim = 12

    def __init__(self) -> None:
        self.encoded = 0  # images
        self.before_encoding: Callable[[], None] = lambda: None

    def preprocess(self, image: Image.Image) -> Any:
        import torch

        return torch.from_numpy(np.array(image.resize((2, 2), Image.Resampling.BOX), np.float32))

    def encode(self, batch: Any) -> NDArray[np.float32]:
        self.before_encoding()
        self.encoded += len(batch)
        return to_grid(batch.numpy().reshape(len(batch), -1) - 127.25)

    def encode_names(self, names: Sequence[str]) -> None:
        """It reads no text."""


class FakeTraining:
    """A training that ends on request: probabilities that depend on the task alone, no model."""

    running: ClassVar[list[FakeTraining]] = []

    def __init__(self, job: TrainingJob, folder: Path, *, time_limit_seconds: float = 0) -> None:
        self.job = job
        self.result: TrainingResult | TrainingError | None = None
        self.labels: dict[int, int] = {}
        self.stopped = False

    def start(self, ids: NDArray[np.int64], codes: NDArray[np.int64]) -> None:
        self.labels = dict(zip(ids.tolist(), codes.tolist(), strict=True))
        FakeTraining.running.append(self)

    def succeed(self) -> None:
        arrays = ProjectArrays(Path(self.job.data_dir), self.job.project)
        images = arrays.load(f"images/{self.job.image_size}")
        values = [
            np.random.default_rng(t + self.job.round).dirichlet(np.ones(len(self.job.classes))) for t in images.ids
        ]
        arrays.append(f"probabilities/{self.job.round:06d}", images.ids, images.keys, np.array(values, np.float32))
        self.result = TrainingResult(0, 0, 0.1, 1.0, 1, len(self.labels))

    def fail(self, reason: str) -> None:
        self.result = TrainingError(reason)

    def poll(self) -> TrainingResult | None:
        if self.stopped:
            raise TrainingError("the training process was ended by SIGTERM")
        if isinstance(self.result, TrainingError):
            raise self.result
        return self.result

    def stop(self) -> None:
        self.stopped = True


class Backend:
    """Store, data folder, encoder and a Label Studio; `live()` as often as a worker starts."""

    def __init__(
        self,
        folder: Path,
        server: FakeLabelStudio,
        database: Database | None = None,
        numbers: Sequence[int] = (PROJECT,),
        **fields: Any,
    ) -> None:
        values = {
            "k": 2,
            "batch_size": 4,
            "image_size": 16,
            "epochs": 1,
            "seed": 3,
            "encode_batch_size": 4,
            "downloads": 2,
            "publish_interval_seconds": 0,
            "publish_tail": 0,
            "reconcile_seconds": 0,
            "device": "cpu",
            **fields,
        }
        self.settings = Settings.from_env({}, data_dir=folder / "data", **values)
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        if database is None:
            make_sqlite(self.settings.data_dir / "neat.sqlite3")
            database = Database(self.settings.sqlalchemy_url)
        self.database = database
        self.server, self.encoder = server, FakeEncoder()
        url = self.settings.arrays_url
        self.objects = Objects(url, self.settings.data_dir, database) if url else None
        with self.database.begin() as conn:
            for number in numbers:
                projects.save_connection(
                    conn, number, label_config=server.projects[number].label_config, backend_url=BACKEND_URL
                )

    def deliver(self, body: dict[str, Any]) -> int:
        """As the web process takes a webhook."""
        webhook = parse_webhook(body)
        return self.file(webhook.action, webhook.payload, webhook.project)

    def file(self, action: str, payload: dict[str, Any] | None = None, number: int = PROJECT) -> int:
        with self.database.begin() as conn:
            return inbox.append(conn, number, action, payload or {})

    def live(self, number: int = PROJECT, owner: str = "me") -> LiveProject:
        """A worker takes the project over, whoever owned it."""
        with self.database.begin() as conn:
            holder = projects.lease_owner(conn, number)
            if holder is not None:
                projects.release_lease(conn, number, holder)
            assert projects.acquire_lease(conn, number, owner, 600)
        project = self.project(number)
        settings = self.settings.for_project(project.extra_params)
        owned = OwnedProject(project, owner, settings, self.database, self.objects)
        return LiveProject.load(
            owned, Resources(lambda: cast(Any, self.encoder), lambda project: cast(Any, self.server))
        )

    def context(self, number: int = PROJECT) -> Context:
        """What a step is given, outside any lease."""
        arrays = ProjectArrays(self.settings.data_dir, number)
        return Context(number, self.settings, self.database, arrays, cast(Any, self.server))

    def project(self, number: int = PROJECT) -> Project:
        with self.database.read() as conn:
            found = projects.get(conn, number)
        assert found is not None
        return found

    def counts(self, number: int = PROJECT) -> tasks.TaskCounts:
        with self.database.read() as conn:
            return tasks.counts(conn, number)

    def close(self) -> None:
        self.database.dispose()


def context_of(folder: Path, server: FakeLabelStudio | None = None, **fields: Any) -> Context:
    """Of steps that need no database."""
    settings = Settings.from_env({}, data_dir=folder, **fields)
    return Context(PROJECT, settings, cast(Any, None), ProjectArrays(folder, PROJECT), cast(Any, server))


def engine_of(live: LiveProject) -> Engine:
    """For a test that has no other thread at work."""
    with live.engine() as engine:
        return engine


def live_of(worker: Worker, number: int = PROJECT) -> LiveProject:
    """The project that this worker has taken up, once it is loaded."""
    until(lambda: number in worker.running and worker.running[number].live is not None)
    live = worker.running[number].live
    assert live is not None
    return live


def take_in(live: LiveProject) -> None:
    """Events, reading, embedding and the linear classifier, until nothing is left."""
    for _ in range(200):
        if not (live.apply.step() | live.bulk.step() | live.learning.step()):
            return
    raise AssertionError("there is no end to it")


def label(backend: Backend, live: LiveProject, *choices: str, first: int = 1) -> int:
    """Annotate tasks from `first` on and take the labels in; the last event."""
    for task, choice in enumerate(choices, first):
        event = backend.deliver(backend.server.annotate(task, choice))
    take_in(live)
    return event


def settle(live: LiveProject) -> None:
    """The same, and the order is published; after a slow publication the next one rests as long as it took."""

    def is_served() -> bool:
        take_in(live)
        return live.publish.step() and not live.wanted.read

    until(is_served, "the order is not served")


def settled(backend: Backend) -> LiveProject:
    """The project taken up by a worker, with its order published."""
    live = backend.live()
    settle(live)
    return live


def recorded(backend: Backend) -> list[Round]:
    """The project's rounds."""
    with backend.database.read() as conn:
        return rounds.all(conn, PROJECT)


def state(live: LiveProject) -> tuple[Any, ...]:
    """What must not depend on the way that led here."""
    with live.engine() as engine:
        ranking = engine.ranking()
        columns = [getattr(ranking, name).tolist() for name in vars(ranking) if name != "classes"]
        neighbours = [engine.neighbours(task) for task in ranking.ids.tolist()]
        return columns, ranking.classes, neighbours, engine.head(), engine.labels(), engine.counts()
