"""`python -m benchmarks approximate`: how far the approximate mode's ranking agrees with the exact one."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.report import Json, numbers, progress, report
from benchmarks.samples import real_pictures

if TYPE_CHECKING:
    from neat_backend.ranking.neighbors import LargePool
    from neat_backend.records import Label

SINGLE = 40  # labels that are added one by one, and timed
BATCH_SIZE = 50
PQ_BYTES = 8  # dimensions for each byte of a product-quantised feature


def approximate(
    data: Annotated[str, typer.Option(help="digits (their pixels), or fashion-mnist (encoded, then kept).")] = "digits",
    images: Annotated[int, typer.Option(min=500)] = 1797,
    labelled: Annotated[int, typer.Option(min=100, help="Labels in all.")] = 600,
    known: Annotated[int, typer.Option(min=1, max=9, help="Classes that are wanted, of ten.")] = 5,
    k: Annotated[int, typer.Option(min=1)] = 10,
    listed: Annotated[str, typer.Option(help="Labels that a cell lists for each of K neighbours.")] = "5,10,20,40",
    encoder: Annotated[str, typer.Option(help="For fashion-mnist, as NEAT_ENCODER.")] = "efficientnet_lite0",
    folder: Annotated[Path, typer.Option(help="Where features are kept.")] = Path("data/features"),
    features: Annotated[Path | None, typer.Option(help="Features of your own images, .npy [n, dim].")] = None,
    classes: Annotated[Path | None, typer.Option(help="And their classes, 0 to 9, .npy [n].")] = None,
    as_json: Json = False,
) -> None:
    """The neighbours, head and order of the approximate mode against the exact ones, on features of real images.

    For comparison FAISS's own approximate indices over the labelled tasks, each searched for every task of the pool:
    IVF-PQ and HNSW. All are judged alike: recall of the K neighbours, the share of the exact head (2B tasks)
    that is in theirs, and Spearman's correlation of the priorities. The features lie in a mapped file.

    Example: python -m benchmarks approximate --data fashion-mnist --images 8000 --labelled 2000
    """
    from neat_backend.ranking.neighbors import LargePool

    shares = numbers(listed, "--listed")
    if data not in ("digits", "fashion-mnist"):
        raise typer.BadParameter(f"--data {data!r} is neither digits nor fashion-mnist")
    if (features is None) != (classes is None):
        raise typer.BadParameter("--features and --classes go together")
    try:
        if features is not None and classes is not None:
            rows, of = _given(features, classes)
        else:
            rows, of = _features(data, images, encoder, folder)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(f"{features or f'--data {data}'}: {error}") from error
    if labelled + SINGLE > len(rows) // 2:
        raise typer.BadParameter(f"--labelled {labelled} leaves too little of {len(rows)} images to rank")
    pool = Pool.make(rows, of, labelled, known, k)
    exact = pool.engine(None)
    found = [{"mode": "exact", **pool.agreement(exact, exact)}]
    with tempfile.TemporaryDirectory() as scratch:
        for share in shares:
            progress.print(f"cells that list {share} K labels …")
            how = LargePool("approximate", 0, Path(scratch), listed=share)
            found.append({"mode": f"cells, {share} K", **pool.agreement(pool.engine(how), exact)})
    for name, index in pool.faiss_indices().items():
        progress.print(f"{name} …")
        found.append({"mode": name, **pool.agreement(index, exact)})
    report(
        "approximate",
        {"data": str(features or data), "images": len(rows), "dim": rows.shape[1], "labelled": labelled, "k": k},
        as_json,
        found,
        of="mode",
    )


@dataclass(frozen=True)
class Found:
    """The results of one search method for the unlabelled tasks."""

    neighbours: list[set[int]]
    priority: NDArray[np.float64]
    head: list[int]
    ms: float  # exact and cells: one more label; the indices: a search for the whole pool
    rows_read: float | None  # share of the pool, at one more label; None for the indices


@dataclass(frozen=True)
class Pool:
    features: NDArray[np.float32]
    labels: list[Label]
    classes: tuple[str, ...]
    k: int

    @classmethod
    def make(cls, features: NDArray[np.float32], classes: NDArray[np.int64], labelled: int, known: int, k: int) -> Pool:
        from neat_backend.records import Label

        names = tuple(f"class {c}" for c in range(known))
        some = np.random.default_rng(0).permutation(len(features))[:labelled].tolist()
        labels = [Label(t, names[classes[t]]) if classes[t] < known else Label(t, None, invalid=True) for t in some]
        return cls(features, labels, names, k)

    @property
    def open(self) -> NDArray[np.int64]:
        """Tasks without a label, ascending."""
        return np.setdiff1d(np.arange(len(self.features)), [label.task for label in self.labels])

    def engine(self, large: LargePool | None) -> Found:
        """The engine, labelled in bulk and then one by one."""
        from neat_backend.ranking.engine import Engine
        from neat_backend.ranking.method import Method

        engine = Engine(self.features.shape[1], self.classes, Method(k=self.k, batch_size=BATCH_SIZE), large=large)
        engine.add_tasks(np.arange(len(self.features)), self.features)
        engine.set_labels(self.labels[:-SINGLE])
        engine.head()
        seconds, read = [], []
        for label in self.labels[-SINGLE:]:
            began = time.perf_counter()
            engine.set_labels([label])
            engine.head()
            seconds.append(time.perf_counter() - began)
            read.append(engine.read_share)
        return Found(
            [{other for other, _ in engine.neighbours(task)} for task in self.open.tolist()],
            engine.ranking().priority,
            engine.head(),
            statistics.median(seconds) * 1e3,
            statistics.mean(read),
        )

    def faiss_indices(self) -> dict[str, Found]:
        """The results of FAISS indices over the labelled tasks."""
        import faiss

        dim, count = self.features.shape[1], len(self.labels)
        lists = max(4, int(np.sqrt(count)))
        parts = max(1, dim // PQ_BYTES)
        bits = 8 if count >= 256 * 4 else 6
        made: dict[str, Callable[[], Any]] = {
            f"IVF{lists},PQ{parts}, {lists // 4} probed": lambda: faiss.IndexIVFPQ(
                faiss.IndexFlatIP(dim), dim, lists, parts, bits, faiss.METRIC_INNER_PRODUCT
            ),
            "HNSW32": lambda: faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT),
        }
        return {name: self._searched(make()) for name, make in made.items()}

    def _searched(self, index: Any) -> Found:
        tasks = np.sort([label.task for label in self.labels])
        index.train(self.features[tasks])
        index.add(self.features[tasks])
        if hasattr(index, "nprobe"):
            index.nprobe = index.nlist // 4
        began = time.perf_counter()
        found = index.search(self.features[self.open], self.k)[1]
        ms = (time.perf_counter() - began) * 1e3
        code = {label.task: -1 if label.invalid else self.classes.index(label.choice or "") for label in self.labels}
        of = np.array([code[task] for task in tasks.tolist()])
        codes = np.where(found < 0, -2, of[found]).astype(np.int32)
        priority = self._priority(codes)
        order = np.lexsort((self.open, -priority))
        neighbours = [set(tasks[row[row >= 0]].tolist()) for row in found]
        return Found(neighbours, priority, self.open[order][: 2 * BATCH_SIZE].tolist(), ms, None)

    def _priority(self, codes: NDArray[np.int32]) -> NDArray[np.float64]:
        """As the engine has it before the first round, ties apart from each other by the same hash."""
        from neat_backend.ranking import scores
        from neat_backend.ranking.hashing import mixed

        inconsistency = scores.inconsistency(codes, None, len(self.classes))
        values = scores.priority(
            inconsistency, scores.known_neighbours(codes), scores.candidates(codes, "all"), self.k, len(self.classes)
        )
        tie = (mixed(self.open, 0) >> np.uint64(44)).astype(np.float64) / 2.0**20
        return (np.minimum(np.round(values * 2.0**32), 2.0**32 - 1) + tie) / 2.0**32

    def agreement(self, one: Found, exact: Found) -> dict[str, Any]:
        from scipy.stats import spearmanr

        pairs = zip(one.neighbours, exact.neighbours, strict=True)
        return {
            "neighbour_recall": statistics.mean(len(a & b) / max(len(b), 1) for a, b in pairs),
            "head_overlap": len(set(one.head) & set(exact.head)) / len(exact.head),
            "rank_correlation": float(spearmanr(one.priority, exact.priority).statistic),
            "ms": one.ms,
            "rows_read": one.rows_read,
        }


def _given(features: Path, classes: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features on the grid and classes of two files. Raises ValueError when they don't go together."""
    from neat_backend.models.grid import to_grid

    rows, of = to_grid(np.load(features, allow_pickle=False)), np.load(classes, allow_pickle=False)
    if of.shape != (len(rows),) or not np.isin(of, np.arange(10)).all():
        raise ValueError(f"{classes} must hold {len(rows)} classes, each from 0 to 9")
    return rows, of.astype(np.int64)


def _features(data: str, images: int, encoder: str, folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features [n, dim] on the grid and classes [n] of images drawn by a seed."""
    from neat_backend.models.grid import to_grid

    pictures, classes = real_pictures(data, images, 8 if data == "digits" else 28, seed=0)
    if data == "digits":
        grey = pictures[..., 0].reshape(len(pictures), -1).astype(np.float32)
        return to_grid(grey - grey.mean(axis=0)), classes
    path = folder / f"{data}-{images}-{encoder.replace('/', '-').replace(':', '-')}.npy"
    if not path.exists():
        import torch
        from PIL import Image

        from neat_backend.experiments.features import write_atomically
        from neat_backend.models.encoders import build_encoder

        model = build_encoder(encoder)
        parts = []
        for start in range(0, images, 32):
            batch = [model.preprocess(Image.fromarray(picture)) for picture in pictures[start : start + 32]]
            parts.append(model.encode(torch.stack(batch)))
            progress.print(f"encoding: {min(start + 32, images)} of {images}", end="\r")
        write_atomically(path, lambda file: np.save(file, np.concatenate(parts), allow_pickle=False))
    return np.load(path, allow_pickle=False), classes
