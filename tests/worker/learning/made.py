"""An engine and what learns beside it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.models.grid import to_grid
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.method import Method
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.records import Label
from neat_backend.store import prequential
from neat_backend.worker.steps.learning import Learning, source
from tests.conftest import Clock
from tests.fake_label_studio import FakeLabelStudio
from tests.living import Backend, context_of

CLASSES = ("cat", "dog")
DIM = 8


def leading(learning: Learning) -> str:
    return source(learning.choice, learning.tested)


class Made:
    """An engine and what learns beside it: task t is a cat, a dog or neither by t % 3."""

    def __init__(self, folder: Path, clock: Clock, n: int = 60, **fields: Any) -> None:
        context = context_of(folder, **fields)
        self.arrays, balanced = context.arrays, context.settings.balanced
        rng = np.random.default_rng(0)
        leads = source(context.settings.classifier, prequential.read(self.arrays))
        self.engine = Engine(DIM, CLASSES, Method(k=3, batch_size=4, balance=balanced), source=leads)
        self.shared = SharedEngine(self.engine)
        self.learning = Learning(context, self.shared, lambda: self.event, self._network_again, clock)
        self.engine.add_tasks(range(n), to_grid(np.eye(DIM)[np.arange(n) % 3] + 0.1 * rng.normal(size=(n, DIM))))
        self.network: NDArray[np.float32] = np.zeros((0, 2), np.float32)  # of each task
        self.event = 0

    def label(self, *tasks: int, choice: str = "") -> None:
        """As they are, or all like that."""
        self.take([Label(t, *truth(t)) if not choice else Label(t, choice) for t in tasks])

    def take(self, labels: Sequence[Label]) -> None:
        with self.shared():
            self.learning.test(self.engine, labels)
            self.engine.set_labels(labels)
            self.event += 1

    def step(self) -> bool:
        return self.learning.step()

    def train(self, predicted: Sequence[int]) -> None:
        """The network's round is over: it is 90 % sure of these classes."""
        self.network = np.where(np.eye(2)[list(predicted)] > 0, 0.9, 0.1).astype(np.float32)
        self._network_again()

    def _network_again(self) -> None:
        self.engine.set_probabilities(range(len(self.network)), self.network, CLASSES)

    def predicted(self) -> list[int]:
        return self.engine.ranking().predicted.tolist()


def truth(task: int) -> tuple[str | None, bool]:
    return (CLASSES[task % 3], False) if task % 3 < 2 else (None, True)


def backend_of(tmp_path: Path, server: FakeLabelStudio, **fields: Any) -> Any:
    return closing(Backend(tmp_path, server, **fields))
