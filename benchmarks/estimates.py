"""`python -m benchmarks estimates`: how often the ranges that a lead is shown hold the truth.

Live runs are replayed by the worker's own parts, one label at a time, in the product's order: engine, `Learning`,
`Insights`. After every ten labels the numbers of the dashboard are read as the web reads them, and compared with the
truth, which none of these parts has.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.report import Json, progress, report

KIND = "features/estimates"
EVERY = 10  # labels between two looks
PROJECT = 1
RANGES = ("left", "random", "found", "accuracy")
Ids = NDArray[np.int64]


def estimates(
    dataset: Annotated[str, typer.Option(help="As experiment run.")] = "fashion-mnist",
    data: Annotated[Path | None, typer.Option(help="Its folder.")] = None,
    known: Annotated[int, typer.Option(min=1, help="Classes.")] = 5,
    pool: Annotated[int, typer.Option(min=100, help="Images.")] = 6_000,
    labels: Annotated[int, typer.Option(min=20, help="Of each run.")] = 300,
    start: Annotated[int, typer.Option(min=0, help="Labels of each class to begin with.")] = 4,
    choice: Annotated[str, typer.Option(help="Known classes, as experiment run.")] = "draw:3",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each set of known classes.")] = 1,
    share: Annotated[float, typer.Option(min=0, max=0.5, help="NEAT_RANDOM_SHARE.")] = 0.05,
    cache: Annotated[Path, typer.Option(help="Folder of computed features.")] = Path("data/features"),
    as_json: Json = False,
) -> None:
    """Share of the moments at which each range that is shown holds the truth, and how wide it is.

    `left`, `random`, `found` and `accuracy`: known images left in the pool, share at random, share found, accuracy of
    the linear classifier on the pool's images of known classes. Widths are in points; that of `left` is of the pool.

    Example: python -m benchmarks estimates --dataset cifar10 --data cifar-10-batches-bin --choice draw:6-10
    """
    from neat_backend.experiments import datasets
    from neat_backend.experiments.features import features_of
    from neat_backend.experiments.splits import codes_of, known_choices
    from neat_backend.models.encoders import build_encoder

    images = datasets.without_test(datasets.load(dataset, data).subset(pool, 0))
    encoder = build_encoder("efficientnet_lite0", None, "cpu")
    features, _ = features_of(images, encoder, cache, lambda done, total: progress.print(f"{done} of {total} images"))
    moments: list[dict[str, Any]] = []
    for classes in known_choices(choice, known, images.n_classes, 0):
        codes = codes_of(images.labels, classes)
        for seed in range(seeds):
            with tempfile.TemporaryDirectory() as folder:
                live = Replay(features, codes, Path(folder), seed, start, share)
                moments += live.run(labels)
        progress.print(f"{classes} …")
    setup = {"dataset": dataset, "known": known, "pool": len(images.images), "share": share}
    report("estimates", setup | figures_of(moments), as_json)


class Replay:
    """One live project without Label Studio. Task t is image rows[t] of a permutation: ids say nothing of classes."""

    def __init__(
        self,
        features: NDArray[np.float32],
        codes: NDArray[np.int64],
        folder: Path,
        seed: int,
        start: int,
        share: float = 0.05,
    ) -> None:
        """codes [n]: the truth, as class or INVALID. start: labels of each class to begin with."""
        from neat_backend.experiments.splits import labels_of_each
        from neat_backend.ranking.engine import Engine
        from neat_backend.ranking.shared_engine import SharedEngine
        from neat_backend.settings import Settings
        from neat_backend.store.arrays import ProjectArrays
        from neat_backend.store.prequential import Prequential
        from neat_backend.worker.steps.context import Context
        from neat_backend.worker.steps.insight import Insights
        from neat_backend.worker.steps.learning import Learning, engine_settings

        rng, n = np.random.default_rng(seed), len(codes)
        rows = rng.permutation(n)
        self._codes = codes[rows]
        self._arrays = ProjectArrays(folder, PROJECT)
        settings = Settings(data_dir=folder, seed=seed, classifier="linear", device="cpu", random_share=share)
        context = Context(PROJECT, settings, cast(Any, None), self._arrays, cast(Any, None))
        classes = [str(code) for code in range(codes.max() + 1)]
        self._engine = Engine(features.shape[1], classes, **engine_settings(settings, Prequential()))
        self._engine.add_tasks(np.arange(n), features[rows])
        self._arrays.append(KIND, np.arange(n), np.arange(n), features[rows])
        shared = SharedEngine(self._engine)
        self._clock = 0.0
        self._learning = Learning(context, shared)
        self._insights = Insights(self._arrays, shared, KIND, seed, clock=lambda: self._clock)
        self._engine.set_labels(map(self._label, labels_of_each(self._codes, start, rng).tolist()))

    def run(self, labels: int) -> list[dict[str, Any]]:
        """What is shown after every ten labels, as far as anything is, beside the truth."""
        found = []
        for task in self._served(labels):
            label = self._label(task)
            self._learning.test(self._engine, [label])
            self._engine.set_labels([label])
            if (len(self._engine.labels())) % EVERY == 0:
                found.append(self._moment())
        return found

    def _served(self, labels: int) -> Iterator[int]:
        for _ in range(labels):
            self._learning.step()
            head = self._engine.head(1)
            if not head:
                return
            yield head[0]

    def _label(self, task: int) -> Any:
        from neat_backend.records import Label

        code = int(self._codes[task])
        return Label(task, invalid=True) if code < 0 else Label(task, choice=self._engine.classes[code])

    def _moment(self) -> dict[str, Any]:
        from neat_backend.service import overview

        self._clock += 1e6
        self._learning.step()
        while self._insights.step():
            pass
        shown = overview.describe(self._arrays, [])
        left, total = self._left(), int((self._codes >= 0).sum())
        truth = {
            "left": left,
            "random": total / len(self._codes),
            "found": (total - left) / max(total, 1),
            "accuracy": self._accuracy(),
        }
        pool = max(shown["pool"], 1)
        moment: dict[str, Any] = {"labels": len(self._engine.labels())}
        for name in RANGES:
            if shown[name] is not None:
                low, high = shown[name]["low"], shown[name]["high"]
                moment[f"{name}_holds"] = bool(low - 1e-9 <= truth[name] <= high + 1e-9)
                moment[f"{name}_width"] = 100 * (high - low) / (pool if name == "left" else 1)
        return moment

    def _left(self) -> int:
        labelled = np.array(list(self._engine.labels()), np.int64)
        return int((np.delete(self._codes, labelled) >= 0).sum())

    def _accuracy(self) -> float:
        """Of the classifier in force, on the unlabelled images of known classes."""
        of = np.setdiff1d(np.flatnonzero(self._codes >= 0), np.array(list(self._engine.labels()), np.int64))
        said = self._engine.predictions(of.tolist())[self._engine.source]
        return float((said == self._codes[of]).mean()) if len(of) else 1.0


def figures_of(moments: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of moments as `Replay.run` gives them."""
    figures: dict[str, Any] = {"moments": len(moments)}
    for name in RANGES:
        holds = [one[f"{name}_holds"] for one in moments if f"{name}_holds" in one]
        figures[f"{name}_shown"] = len(holds)
        if holds:
            figures[f"{name}_holds_percent"] = 100 * float(np.mean(holds))
            figures[f"{name}_width"] = float(
                np.mean([one[f"{name}_width"] for one in moments if f"{name}_width" in one])
            )
    return figures
