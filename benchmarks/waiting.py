"""The work of the benchmark `scale`: it waits as long as a GPU would compute; its results depend on nothing else."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
import ray.data  # once here, so that it is compiled when Ray's processes import it
import torch
from numpy.typing import NDArray
from PIL import Image
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from benchmarks.samples import random_features
from neat_backend.compute import Compute, LocalCompute
from neat_backend.compute.actors import start_shards
from neat_backend.compute.cluster import connect
from neat_backend.compute.embedding import Source, Target
from neat_backend.compute.on_ray import RayCompute
from neat_backend.compute.sharded import ShardedEngine
from neat_backend.compute.shards import Shard
from neat_backend.errors import ComputeError
from neat_backend.labelstudio.images import thumbnail
from neat_backend.models.classifier import Classifier
from neat_backend.models.grid import to_grid
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.method import Method
from neat_backend.records import Label
from neat_backend.store import kinds
from neat_backend.store.arrays import ProjectArrays, Segment

BATCH = 16
SIDE = 16
NODE_SECONDS, TRIES_OF_A_NODE = 120, 3
STORE_BYTES = 80_000_000  # of each node; Ray's least is some 75 MB
BEFORE, TRIES = 100, 20  # labels before, and those whose new order is timed
CLASSES = ("cat", "dog", "bird")
ENGINE: dict[str, Any] = {"method": Method(k=10, batch_size=50, seed=0), "device": "cpu"}


@dataclass
class WaitingEncoder:
    """Features are a picture's colours, projected; a batch takes as long as a GPU would need for it."""

    seconds_per_image: float
    dim: int = 64
    key: str = "waiting"

    def preprocess(self, image: Image.Image) -> Any:
        return torch.from_numpy(np.asarray(image.resize((8, 8)), np.float32))

    def encode(self, batch: Any) -> NDArray[np.float32]:
        time.sleep(self.seconds_per_image * len(batch))
        pixels = batch.numpy().reshape(len(batch), -1) - 127.25
        projection = np.random.default_rng(0).normal(size=(pixels.shape[1], self.dim)).astype(np.float32)
        return to_grid(np.stack([row @ projection for row in pixels]))


@dataclass(frozen=True)
class WaitingClassifier:
    """Probabilities from a picture's mean colour."""

    seconds_per_image: float

    def on(self, device: Any) -> WaitingClassifier:
        return self

    def predict_proba(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        time.sleep(self.seconds_per_image * len(images))
        colours = images.mean(axis=(1, 2), dtype=np.float64) + 1
        return (colours / colours.sum(axis=1, keepdims=True)).astype(np.float32)


class WaitingShard(Shard):
    """A shard whose pass over its rows takes as long as it would over so many rows on a GPU."""

    seconds_per_row = 0.0

    def set_pace(self, seconds_per_row: float) -> None:
        self.seconds_per_row = seconds_per_row

    def set_labels(self, labels: Sequence[Label]) -> None:
        self._wait()
        super().set_labels(labels)

    def host(self, labels: Sequence[Label], features: NDArray[np.float32]) -> None:
        self._wait()
        super().host(labels, features)

    def _wait(self) -> None:
        time.sleep(self.seconds_per_row * len(self.engine))


def picture(task: int, ref: str | None) -> Image.Image:
    """A made-up image of a task; fetched on whichever machine."""
    return Image.fromarray(np.random.default_rng(task).integers(0, 256, (24, 24, 3), dtype=np.uint8))


@dataclass
class Results:
    """Results of the local engine, and their comparison with others."""

    images: int
    rows: int
    stored: list[Segment]  # features and thumbnails
    probabilities: NDArray[np.float32]
    features: NDArray[np.float32]  # of the engine's tasks
    answers: list[Label]
    engine: Engine

    @classmethod
    def local(cls, images: int, rows: int, folder: Path) -> Results:
        compute = LocalCompute()
        stored, _ = _embed(compute, images, 0.0, folder)
        probabilities, _ = _classify(compute, stored[1].values, 0.0)
        rng = np.random.default_rng(0)
        features = random_features(rng, rows, 64)
        answers = [
            Label(int(t), None, invalid=True) if t % 2 else Label(int(t), CLASSES[t % 3])
            for t in rng.permutation(rows)[: BEFORE + TRIES]
        ]
        engine = compute.engine(64, CLASSES, **ENGINE)
        _label(engine, features, answers)
        return cls(images, rows, stored, probabilities, features, answers, engine)

    def compare(self, compute: RayCompute, n: int, image_ms: float, row_us: float, folder: Path) -> dict[str, Any]:
        """Figures of one cluster, and whether its results are these."""
        stored, embedding = _embed(compute, self.images, image_ms / 1e3, folder, at_once=n)
        _start_processes()
        probabilities, classifying = _classify(compute, stored[1].values, image_ms / 1e3)
        shards = start_shards(n, 64, CLASSES, ENGINE, kind=WaitingShard)
        engine = ShardedEngine(shards, CLASSES, **ENGINE)
        seconds = _label(
            cast(Engine, engine),
            self.features,
            self.answers,
            lambda: shards.begin("set_pace", dict.fromkeys(range(n), (row_us / 1e6,)))(),
        )
        return {
            "embed_images_per_second": self.images / embedding,
            "features_equal": all(_same(vars(a), vars(b)) for a, b in zip(stored, self.stored, strict=True)),
            "classify_images_per_second": self.images / classifying,
            "probabilities_equal": bool(np.array_equal(probabilities, self.probabilities)),
            "label_ms": statistics.median(seconds) * 1e3,
            "ranking_equal": _same(vars(engine.ranking()), vars(self.engine.ranking())),
            "neighbours_equal": _same(vars(engine.nearest_labelled()), vars(self.engine.nearest_labelled())),
            "head_equal": engine.head() == self.engine.head(),
        }


def _embed(compute: Compute, images: int, pace: float, folder: Path, at_once: int = 1) -> tuple[list[Segment], float]:
    """What is stored, and the seconds for it at the pace reached once every one of the actors has done a batch."""
    arrays = ProjectArrays(folder, 1)
    encoder = WaitingEncoder(pace)
    times: list[tuple[float, int]] = []
    compute.embed(
        [(task, f"/{task}.png") for task in range(1, images + 1)],
        encoder,
        Source(picture, thumbnail, SIDE, downloads=2),
        Target(
            arrays,
            on_stored=lambda stored: None,
            on_failed=_failed,
            on_progress=lambda progress: times.append((time.perf_counter(), progress.done)),
        ),
        batch_size=BATCH,
    )
    stored = [arrays.load(kinds.features_kind(encoder.key)), arrays.load(kinds.thumbnails_kind(SIDE))]
    (began, first), (ended, last) = times[at_once - 1], times[-1]
    return stored, max(ended - began, 1e-9) * last / max(last - first, 1)


def _failed(task: int, error: Exception) -> None:
    raise error


def _classify(compute: Compute, images: NDArray[np.uint8], pace: float) -> tuple[NDArray[np.float32], float]:
    """Probabilities [n, C] and the seconds that they took."""
    classifier = cast(Classifier, WaitingClassifier(pace))
    began = time.perf_counter()
    found = list(compute.predict(classifier, [images[at : at + BATCH] for at in range(0, len(images), BATCH)]))
    return np.concatenate(found), time.perf_counter() - began


@ray.remote(num_cpus=0)
def _import(work: WaitingClassifier) -> None:
    """To be sent its argument, a process has to import this module, and PyTorch with it."""


def _start_processes() -> None:
    """A process on every node; starting one takes seconds, once, and is no part of what is measured."""
    on = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in ray.nodes() if node["Alive"]]
    ray.get([_import.options(scheduling_strategy=each).remote(WaitingClassifier(0.0)) for each in on])


def _label(
    engine: Engine, features: NDArray[np.float32], answers: list[Label], before: Callable[[], object] = lambda: None
) -> list[float]:
    """Fill an engine, and label one by one: seconds of each label to the new head."""
    engine.add_tasks(np.arange(len(features)), features)
    engine.set_labels(answers[:BEFORE])
    engine.head()
    before()
    seconds = []
    for answer in answers[BEFORE:]:
        began = time.perf_counter()
        engine.set_labels([answer])
        engine.head()
        seconds.append(time.perf_counter() - began)
    return seconds


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@contextmanager
def nodes(n: int) -> Iterator[RayCompute]:
    """A cluster of n Ray nodes on this machine, and what computes there. Raises ComputeError when none comes up."""
    how = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": STORE_BYTES}
    machines = Cluster()
    try:
        for number in range(n):
            _add_node(machines, **how, **({} if number else {"include_dashboard": False}))
        machines.wait_for_nodes(NODE_SECONDS)
        with redirect_stdout(sys.stderr):  # Ray writes about a worker that died to stdout
            yield RayCompute(connect(machines.address), device="cpu", workers=n)
    finally:
        ray.shutdown()
        machines.shutdown()


def _add_node(machines: Cluster, **how: Any) -> None:
    """Ray gives a node 30 s to start, which a busy machine may exceed: then once more."""
    for left in reversed(range(TRIES_OF_A_NODE)):
        try:
            machines.add_node(**how)
            return
        except Exception as error:  # Ray has no class of its own for it
            if not left:
                raise ComputeError(f"a Ray node did not start, the machine may be too busy: {error}") from error
