"""What must be true after every fault, and what causes some of them."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import TrainingError
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.events import annotation_from_json
from neat_backend.records import Label
from neat_backend.store import inbox
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps.training import TrainingJob, TrainingResult, train_round
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, engine_of, settle, state, take_in


def expected_labels(server: FakeLabelStudio) -> dict[int, Label]:
    """What people's answers in Label Studio come to."""
    there = server.projects[PROJECT]
    config = label_config.parse(there.label_config, ("invalid",), None)
    answers: dict[int, list[Any]] = {}
    for answer in there.annotations.values():
        answers.setdefault(answer["task"], []).append(annotation_from_json(answer))
    made = {task: label_config.resolve(task, answers.get(task, []), config) for task in there.tasks}
    return {task: label for task, label in made.items() if label.invalid or label.choice is not None}


def assert_whole(backend: Backend, live: LiveProject | None = None, aside: Collection[int] = ()) -> LiveProject:
    """Nothing waits, no label is lost, and the state is that of a backend that has never seen an event.

    live: the project as it runs; None: it is taken up now, from what the fault has left. aside: events that
    are expected to have been set aside. Returns the live project.
    """
    if live is None:
        live = backend.live()
        settle(live)
    with backend.database.read() as conn:
        assert inbox.pending(conn, PROJECT) == []
        assert [event.id for event, _ in inbox.set_aside_events(conn, PROJECT)] == sorted(aside)
    assert engine_of(live).labels() == expected_labels(backend.server)
    with tempfile.TemporaryDirectory() as folder:
        anew = Backend(
            Path(folder),
            backend.server,
            k=backend.settings.k,
            batch_size=backend.settings.batch_size,
            classifier=backend.settings.classifier,
        )
        read = anew.live()
        take_in(read)
        if live.rounds._done is not None:  # there is no second classifier like it
            read.rounds.arrays = live.context.arrays
            read.rounds._use_probabilities(live.rounds._done)  # type: ignore[union-attr, arg-type]
        ours, theirs = state(live), state(read)
        anew.close()
    assert ours[:3] == theirs[:3]  # ranking, classes, neighbours of every task
    assert ours[4:] == theirs[4:]  # labels, counts
    served, n = backend.server.served(PROJECT), 2 * backend.settings.batch_size
    answered = {answer["task"] for answer in backend.server.projects[PROJECT].annotations.values()}
    # What is left of the published head is how the order begins.
    assert served == [task for task in engine_of(live).head() if task not in answered][: len(served)]
    assert len(served) >= min(n // 2, len(ours[0][0]))
    return live


class TrainingHere:
    """A real training without a process of its own."""

    def __init__(self, job: TrainingJob, folder: Path, *, time_limit_seconds: float = 0) -> None:
        self.job, self.folder = job, folder
        self._result: TrainingResult | TrainingError | None = None

    def start(self, ids: NDArray[np.int64], codes: NDArray[np.int64]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        np.savez(self.folder / "labels.npz", ids=ids, codes=codes)
        try:
            self._result = train_round(self.job, self.folder)
        except TrainingError as error:
            self._result = error

    def poll(self) -> TrainingResult | None:
        if isinstance(self._result, TrainingError):
            raise self._result
        return self._result

    def stop(self) -> None:
        """It never runs for long."""


def torn(data: bytes, how: str) -> bytes:
    """A file as a power cut or a failing disk leaves it."""
    middle = len(data) // 2
    return {
        "nothing in it": b"",
        "half of it": data[:middle],
        "a byte short": data[:-1],
        "other bytes": np.random.default_rng(0).bytes(len(data)),
        "a few other bytes": data[: middle - 8]
        + bytes(255 - byte for byte in data[middle - 8 : middle + 8])
        + data[middle + 8 :],
    }[how]


TORN = ("nothing in it", "half of it", "a byte short", "other bytes", "a few other bytes")
