"""`python -m benchmarks rerank`: one more label, against what everyone does and against what the hardware can."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.report import Json, quantile, report
from benchmarks.samples import features_of, random_features

if TYPE_CHECKING:
    from neat_backend.ranking.engine import Engine
    from neat_backend.records import Label

BATCHES = 3  # so often many labels come at once
COMPARED_TASKS = 2000


def rerank(
    pool: Annotated[int, typer.Option(min=1)] = 50_000,
    labelled: Annotated[int, typer.Option(min=11)] = 5_000,
    dim: Annotated[int, typer.Option(min=2)] = 512,
    k: Annotated[int, typer.Option(min=1)] = 10,
    labels: Annotated[int, typer.Option(min=1, help="Single labels to time.")] = 50,
    batch: Annotated[int, typer.Option(min=0, help="Labels that come at once, three times; 0 = none.")] = 100,
    features: Annotated[
        Path | None, typer.Option(help="Features of real images, .npy [n, dim], instead of made-up ones.")
    ] = None,
    balance: Annotated[bool, typer.Option(help="As NEAT_BALANCE.")] = True,
    as_json: Json = False,
) -> None:
    """One more label: the incremental table and ranking against a full FAISS flat search, results compared.

    Beside it one half-precision product of the pool with a vector, the least that one label can cost without
    leaving parts of the pool out, and with so many vectors as labels come at once.

    `rows_read` is the share of the pool whose features had to be read for a label, which the sketch of the pool
    decides; it depends on the features, so give real ones with --features (--pool and --dim are then theirs).
    `pass_ms`, `scores_ms` and `head_ms` are where one label's milliseconds go: the pass over the pool with what changes
    in the table, the scores of the `tasks_changed`, the partial selection of the head; medians, so not quite its sum.
    `fit_ms` and `apply_ms` are the linear classifier's: fitted to all labels, and its word on all tasks; the worker
    does both beside the labels.

    Example: python -m benchmarks rerank --pool 50000 --labelled 5000 --dim 512
    """
    given = None if features is None else features_of(features)
    if given is not None:
        pool, dim = len(given) - labelled, given.shape[1]
    if k > labelled:
        raise typer.BadParameter(f"there are {labelled} labelled tasks to be neighbours, fewer than {k}")
    if labels + BATCHES * batch >= pool:
        more = f"{labels} + {BATCHES} × {batch}" if batch else str(labels)
        raise typer.BadParameter(f"labelling {more} leaves nothing of a pool of {pool} to compare")
    rng = np.random.default_rng(0)
    rows = random_features(rng, pool + labelled, dim) if given is None else given
    figures = measured(rows, Sizes(pool, labelled, k, labels, batch), rng, balance=balance)
    report("rerank", figures, as_json)


@dataclass(frozen=True)
class Sizes:
    """What is measured: tasks without a label at first, labels at first, K, single labels, labels at once."""

    pool: int
    labelled: int
    k: int
    labels: int
    batch: int


def measured(
    rows: NDArray[np.float32], sizes: Sizes, rng: np.random.Generator, *, balance: bool = True, device: str = "cpu"
) -> dict[str, Any]:
    """The figures of `rerank` for features [pool + labelled, dim], with the pool and the products on the device."""
    from neat_backend.ranking.engine import Engine
    from neat_backend.ranking.method import Method
    from neat_backend.records import Label

    pool, labelled, k, labels, batch = sizes.pool, sizes.labelled, sizes.k, sizes.labels, sizes.batch
    dim = rows.shape[1]
    classes = tuple(f"class {c}" for c in range(10))
    engine = Engine(dim, classes, Method(k=k, balance=balance), source="linear", device=device)
    engine.add_tasks(range(pool + labelled), rows)
    some = rng.permutation(pool + labelled)[: labelled + labels + BATCHES * batch]
    answers = [
        Label(int(t), None, invalid=True) if rng.random() < 0.5 else Label(int(t), classes[rng.integers(10)])
        for t in some
    ]
    engine.set_labels(answers[:labelled])
    learning = _learn(engine)
    engine.head()
    singles, read = [], []
    parts = _Parts(engine)
    for answer in answers[labelled : labelled + labels]:
        singles.append(_time(engine, [answer]))
        read.append(engine.read_share)
    spent = parts.stop()
    rest = answers[labelled + labels :]
    batches = [_time(engine, rest[start : start + batch]) for start in range(0, len(rest), batch or 1)]
    full, compared, same = _full_search(engine, rows, some, k)
    one = statistics.median(singles)
    products = _products(rows, batch, device)
    figures: dict[str, Any] = {
        "pool": pool,
        "labelled": labelled,
        "dim": dim,
        "k": k,
        "one_label_ms": one * 1e3,
        "one_label_p95_ms": quantile(singles, 0.95) * 1e3,
        "full_faiss_search_ms": full * 1e3,
        "times_faster": full / one,
        "half_vector_product_ms": products["vector"] * 1e3,
        "one_label_over_product": one / products["vector"],
        "rows_read": statistics.mean(read),
        **spent,
        **learning,
        "compared_tasks": compared,
        "equal_tasks": same,
    }
    if batch:
        many, best = statistics.median(batches), min(products["half"], products["single"])
        figures |= {
            "batch": batch,
            "batch_ms": many * 1e3,
            "half_matrix_product_ms": products["half"] * 1e3,
            "single_matrix_product_ms": products["single"] * 1e3,
            "batch_over_faster_product": many / best,
            "batch_over_slower_product": many / max(products["half"], products["single"]),
        }
    return figures


def _learn(engine: Engine) -> dict[str, float]:
    """Milliseconds of fitting the linear classifier and of applying it, medians."""
    from neat_backend.ranking.linear import fit_head

    def apply() -> None:
        for _ in engine.set_linear(head):
            pass

    _, codes, features = engine.training_data()
    head = fit_head(features, codes, engine.classes)
    fit = _median(lambda: fit_head(features, codes, engine.classes), 5)
    return {"fit_ms": fit * 1e3, "apply_ms": _median(apply, 5) * 1e3}


def _time(engine: Engine, answers: Sequence[Label]) -> float:
    """Seconds from labels to the new head."""
    began = time.perf_counter()
    engine.set_labels(answers)
    engine.head()
    return time.perf_counter() - began


class _Parts:
    """Times the parts of an engine's work, label by label, until `stop`."""

    PARTS = ("pass", "scores", "head")

    def __init__(self, engine: Engine) -> None:
        self._seconds: dict[str, list[float]] = {name: [] for name in self.PARTS}
        self._changed: list[int] = []
        self._places = ((engine._table.planes, "offer"), (engine, "_rescore"), (engine, "head"))
        for name, (owner, method) in zip(self.PARTS, self._places, strict=True):
            setattr(owner, method, self._timed(name, getattr(owner, method)))

    def _timed(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            done = work(*args)
            self._seconds[name].append(time.perf_counter() - began)
            if name == "scores":
                self._changed.append(len(args[0]))
            return done

        return timed

    def stop(self) -> dict[str, float]:
        """Medians in milliseconds, and how many tasks a label changed in the mean."""
        for owner, method in self._places:
            delattr(owner, method)
        medians = {f"{name}_ms": statistics.median(each) * 1e3 for name, each in self._seconds.items() if each}
        return medians | {"tasks_changed": statistics.mean(self._changed)}


def _full_search(
    engine: Engine, features: NDArray[np.float32], labelled: NDArray[np.int64], k: int
) -> tuple[float, int, int]:
    """Seconds of a full FAISS flat search; tasks compared with it; those of them whose neighbours are the same."""
    import faiss

    index = faiss.IndexFlatIP(features.shape[1])
    rows = np.sort(labelled)
    index.add(features[rows])  # ascending ids: FAISS prefers the first of equals
    rest = np.setdiff1d(np.arange(len(features)), labelled)
    queries = features[rest]
    began = time.perf_counter()
    similarities, found = index.search(queries, k)
    full = time.perf_counter() - began
    step = max(1, len(rest) // COMPARED_TASKS)
    same = 0
    for at in range(0, len(rest), step):
        mine = engine.neighbours(int(rest[at]))
        # FAISS rounds in single precision: neighbours it can't tell apart may stand in another order.
        close = np.allclose([s for _, s in mine], similarities[at], atol=1e-5)
        same += {t for t, _ in mine} == set(rows[found[at]].tolist()) or close
    return full, len(range(0, len(rest), step)), same


def _products(features: NDArray[np.float32], batch: int, device: str) -> dict[str, float]:
    """Median seconds of the pool times one vector (half precision) and times `batch` (half and single)."""
    import torch

    single = torch.from_numpy(features).to(device)
    half = torch.empty(single.shape, dtype=torch.float16, device=device)
    half.copy_(single)

    def seconds_of(work: Callable[[], object], times: int) -> float:
        def done() -> None:
            work()
            if single.is_cuda:
                torch.cuda.synchronize()

        return _median(done, times)

    seconds = {"vector": seconds_of(lambda: torch.mv(half, half[0]), 11)}
    if batch:
        several = min(batch, len(features))
        seconds["half"] = seconds_of(lambda: half @ half[:several].T, 3)
        seconds["single"] = seconds_of(lambda: single @ single[:several].T, 3)
    return seconds


def _median(work: Callable[[], object], times: int) -> float:
    work()  # the first call allocates memory and starts threads
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)
