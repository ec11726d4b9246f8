"""Publishing with a clock, a fake Label Studio and a pool."""

from __future__ import annotations

from collections.abc import Sequence

from neat_backend.errors import LabelStudioUnavailable
from neat_backend.labelstudio.label_config import parse
from neat_backend.labelstudio.publisher import UNCERTAINTY, Publisher
from neat_backend.records import Ranked
from neat_backend.settings import Settings
from neat_backend.store import revisions
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.publishing import Order, Publishing
from neat_backend.worker.steps.suspicions import Suspicions
from tests.fake_label_studio import CONFIG, FakeLabelStudio

PROJECT = 1
B = 3
AWAY = LabelStudioUnavailable("Label Studio is away")


class Site:
    """Publishing with a clock of its own, a Label Studio with tasks 1 to 40, and a pool to label."""

    def __init__(self, database: Database, tail: int = 0, interval_seconds: float = 2) -> None:
        self.now = 100.0
        self.server = FakeLabelStudio()
        self.server.add_project(PROJECT)
        self.server.import_tasks(PROJECT, 40)
        self.server.projects[PROJECT].sampling = UNCERTAINTY
        self.database = database
        self.pool = set(range(1, 41))
        self.tail = tail
        self.interval_seconds = interval_seconds
        self.publishing = self.restarted()

    def restarted(self) -> Publishing:
        settings = Settings.from_env(
            {}, batch_size=B, publish_interval_seconds=self.interval_seconds, publish_tail=self.tail
        )
        publisher = Publisher(self.server, PROJECT, parse(CONFIG, ("invalid",)))
        context = Context(PROJECT, settings, self.database, ProjectArrays(settings.data_dir, PROJECT), self.server)  # type: ignore[arg-type]
        self.suspicions = Suspicions(context, clock=lambda: self.now)
        self.publishing = Publishing(
            context,
            publisher,
            self.suspicions,
            clock=lambda: self.now,
        )
        return self.publishing

    def step(
        self, tasks: Sequence[int], sampling: str = UNCERTAINTY, hold: bool = False, version: int | None = None
    ) -> bool:
        order = Order(ranked(tasks), 5, sampling, hold, version)
        return self.publishing.step(order, lambda served: set(served) - self.pool)

    def label(self, *tasks: int) -> None:
        self.pool -= set(tasks)
        for task in tasks:
            self.server.annotate(task, "dog")

    def background(self, order: Sequence[int] = range(1, 41), sampling: str = UNCERTAINTY) -> bool:
        left = [task for task in order if task in self.pool]
        return self.publishing.background_step(lambda n: ranked(left)[:n], sampling)

    def imports(self) -> list[list[int]]:
        return [call[2] for call in self.server.called("import_predictions")]

    def served(self) -> list[int]:
        return self.server.served(PROJECT)

    def old(self) -> list[str]:
        with self.database.read() as conn:
            return revisions.to_delete(conn, PROJECT)


def ranked(tasks: Sequence[int], highest: float = 0.9) -> list[Ranked]:
    """In this order, from priority `highest` down; every second one a candidate."""
    return [
        Ranked(task, rank, highest - 0.01 * rank, 1.0, 2, bool(task % 2), "dog" if task % 3 else "cat")
        for rank, task in enumerate(tasks)
    ]
