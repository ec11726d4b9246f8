"""A project in a store as if written by a worker, from given features and labels; nothing is read or encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.engine import Engine
from neat_backend.ranking.method import Method
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.records import Annotation, Label, Task
from neat_backend.settings import Settings
from neat_backend.store import projects, rounds, snapshots, tasks
from neat_backend.store.arrays import ProjectArrays, image_key
from neat_backend.store.database import Database
from neat_backend.store.sql import chunks
from neat_backend.worker.steps.insight import Insights

KIND = "features/made-up"
NONE_OF_THEM = "invalid"  # the choice


def label_config(classes: Sequence[str]) -> str:
    """For single choices among the classes and one that means none of them."""
    choices = "".join(f'<Choice value="{name}"/>' for name in (*classes, NONE_OF_THEM))
    return (
        f'<View><Image name="image" value="$image"/><Choices name="class" toName="image" choice="single">{choices}'
        "</Choices></View>"
    )


@dataclass(frozen=True)
class Samples:
    """The images of tasks 1 … n.

    features [n, dim] on the grid; truth [n]: class, or -1 = none of them; pictures [n, side, side, 3] with the side of
    `settings.image_size`, else gray ones of the tasks that are shown first. failed: tasks without features.
    """

    features: NDArray[np.float32]
    truth: NDArray[np.int64]
    classes: Sequence[str]
    pictures: NDArray[np.uint8] | None = None
    failed: Sequence[int] = ()


@dataclass(frozen=True)
class _Encoded:
    """The tasks with features: arrays of one length."""

    ids: NDArray[np.int64]
    keys: NDArray[np.int64]
    truth: NDArray[np.int64]


def prepare(
    settings: Settings,
    database: Database,
    project: int,
    samples: Samples,
    rounds_done: int,
    title: str = "A made-up project",
) -> Engine:
    """A project of the samples, labelled round by round in the engine's order, with the files of the dashboard."""
    features, truth, classes, failed = samples.features, samples.truth, samples.classes, samples.failed
    ids, moment = np.arange(1, len(features) + 1), datetime.now(timezone.utc)
    named = {task: f"/data/upload/{task}.png" for task in ids.tolist()}
    keys = np.array([image_key(named[task]) for task in ids.tolist()], np.int64)
    arrays = ProjectArrays(settings.data_dir, project)
    good = ~np.isin(ids, np.array(failed, np.int64))
    encoded = _Encoded(ids[good], keys[good], truth[good])
    arrays.append(KIND, encoded.ids, encoded.keys, features[good])
    method = Method(
        k=settings.k, batch_size=settings.batch_size, seed=settings.seed, random_share=settings.random_share
    )
    engine = Engine(features.shape[1], classes, method)
    engine.add_tasks(ids[good], features[good])
    truths = dict(enumerate(truth.tolist(), 1))
    with database.begin() as conn:
        projects.save_connection(conn, project, title=title, label_config=label_config(classes))
        for part in chunks(ids.tolist()):
            tasks.upsert_tasks(conn, project, [Task(task, named[task], moment) for task in part], seen=0)
        tasks.set_image_state(conn, project, ids[good].tolist(), tasks.READY)
        if len(failed):
            tasks.set_image_state(conn, project, failed, tasks.FAILED, "Label Studio answered 404 for the image")
    rng = np.random.default_rng(0)
    for number in range(1, rounds_done + 1):
        _annotate(database, project, engine, truths, classes, moment)
        _train(database, arrays, project, engine, encoded, number, rng)
    _show(settings, arrays, engine, samples.pictures, ids, keys)
    now = datetime.now(timezone.utc)
    with database.begin() as conn:
        projects.update(conn, project, state=projects.READY, synced_at=now, model_version=f"neat-r{rounds_done:06d}")
    return engine


def _annotate(
    database: Database, project: int, engine: Engine, truths: dict[int, int], classes: Sequence[str], moment: datetime
) -> None:
    """Answer the next batch."""
    batch = engine.head(engine.batch_size)
    choice = {task: classes[truths[task]] if truths[task] >= 0 else NONE_OF_THEM for task in batch}
    answers = [Annotation(task, task, 1, {"class": (choice[task],)}, False, False, moment) for task in batch]
    with database.begin() as conn:
        tasks.upsert_annotations(conn, project, answers, seen=0)
    engine.set_labels(
        Label(task, classes[truths[task]]) if truths[task] >= 0 else Label(task, invalid=True) for task in batch
    )


def _train(
    database: Database,
    arrays: ProjectArrays,
    project: int,
    engine: Engine,
    encoded: _Encoded,
    number: int,
    rng: np.random.Generator,
) -> None:
    """A round, whose classifier is better the later it comes; one of ten known labels is held out."""
    counts = engine.counts()
    labels = engine.labels().values()
    known_before, labelled_before = 0, 0
    with database.begin() as conn:
        done = rounds.all(conn, project)
        if done:
            known_before, labelled_before = done[-1].known, done[-1].known + done[-1].invalid
        begun = rounds.start(
            conn,
            project,
            rounds.NewRound(
                trigger="batch",
                known=counts.known,
                invalid=counts.invalid,
                unlabelled=counts.unlabelled,
                queried=counts.known + counts.invalid - labelled_before,
                queried_known=counts.known - known_before,
                classes=engine.classes,
            ),
        )
        held_out = counts.known // 10 if counts.known >= 100 else 0
        right = round(held_out * (1 - 0.5 / (number + 1)))
        rounds.finish(conn, project, begun.number, seconds=9.0, held_out=held_out, held_out_correct=right)
    if len({one.choice for one in labels if one.choice}) < 2:
        return
    chances = rng.dirichlet(np.ones(len(engine.classes)), len(encoded.ids)).astype(np.float32)
    rows = np.flatnonzero(encoded.truth >= 0)
    chances[rows, encoded.truth[rows]] += number
    chances /= chances.sum(axis=1, keepdims=True)
    arrays.append(f"probabilities/{number:06d}", encoded.ids, encoded.keys, chances)
    engine.set_probabilities(encoded.ids, chances, engine.classes)


def _show(
    settings: Settings,
    arrays: ProjectArrays,
    engine: Engine,
    pictures: NDArray[np.uint8] | None,
    ids: NDArray[np.int64],
    keys: NDArray[np.int64],
) -> None:
    """Write the worker's files for the web: head, ranking, pictures, map, insight."""
    counts = engine.counts()
    snapshots.write_ranking(arrays, vars(engine.ranking()))
    snapshots.write_head(
        arrays,
        snapshots.Head(
            engine.ranked(engine.head()),
            engine.classes,
            counts.known,
            counts.invalid,
            counts.unlabelled,
            0,
            "neat-r000001",
            features=KIND,
        ),
    )
    insights = Insights(arrays, SharedEngine(engine), KIND, settings.seed)
    while insights.step():
        pass
    if pictures is None:
        shown = np.array(sorted({*engine.head(), *engine.labels()}), np.int64)
        side = settings.image_size
        pictures = np.repeat((shown * 37 % 256).astype(np.uint8), side * side * 3).reshape(len(shown), side, side, 3)
        ids, keys = shown, keys[shown - 1]
    arrays.append(f"images/{settings.image_size}", ids, keys, pictures)
