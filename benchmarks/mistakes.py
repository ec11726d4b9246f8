"""`python -m benchmarks mistakes`: how many of the labels that were changed on purpose are found, and what else is.

Images of a data set are labelled by the truth, some classes known, all others invalid; then 5 % of the labels are
changed, to another answer at random or to the one whose mean feature is most similar. Beside the product's list: that
of confident learning (Northcutt, Jiang and Chuang 2021, section 3.1) from the same linear head, out of sample, and that
of the neighbours alone, of which 60 % agree on another label.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.report import Json, progress, report

CHANGES = ("none", "random", "similar")
ORDERS = ("random", "live")


def mistakes(
    dataset: Annotated[str, typer.Option(help="As experiment run.")] = "fashion-mnist",
    data: Annotated[Path | None, typer.Option(help="Its folder.")] = None,
    known: Annotated[int, typer.Option(min=2, help="Classes.")] = 5,
    pool: Annotated[int, typer.Option(min=100, help="Images.")] = 12_000,
    labels: Annotated[int, typer.Option(min=60)] = 300,
    order: Annotated[str, typer.Option(help="Of the labels: random, or live, the product's.")] = "random",
    share: Annotated[float, typer.Option(min=0.001, max=0.5, help="Of the labels that are changed.")] = 0.05,
    draws: Annotated[int, typer.Option(min=1, help="Sets of known classes.")] = 5,
    repeat: Annotated[int, typer.Option(min=1, help="Runs of each set.")] = 2,
    k: Annotated[int, typer.Option(min=1)] = 10,
    cache: Annotated[Path, typer.Option(help="Folder of computed features.")] = Path("data/features"),
    as_json: Json = False,
) -> None:
    """Precision and recall of the likely mistakes, and how often their list is empty where nothing is wrong.

    Example: python -m benchmarks mistakes --dataset cifar10 --data cifar-10-batches-bin --labels 600
    """
    from neat_backend.experiments import datasets
    from neat_backend.experiments.features import features_of
    from neat_backend.experiments.splits import codes_of, known_choices
    from neat_backend.models.encoders import build_encoder

    if order not in ORDERS:
        raise typer.BadParameter(f"--order {order!r}: must be one of {', '.join(ORDERS)}")
    images = datasets.without_test(datasets.load(dataset, data).subset(pool, 0))
    encoder = build_encoder("efficientnet_lite0", None, "cpu")
    features, _ = features_of(images, encoder, cache, lambda done, total: progress.print(f"{done} of {total} images"))
    counts: dict[tuple[str, str], list[tuple[int, int, int]]] = defaultdict(list)
    for known_classes in known_choices(f"draw:{draws}", known, images.n_classes, 0):
        codes = codes_of(images.labels, known_classes)
        for seed in range(repeat):
            rng = np.random.default_rng([seed, *known_classes])
            rows = np.sort(rng.choice(len(codes), labels, replace=False))
            if order == "live":
                rows = _served(features, images.labels, known_classes, seed, labels, k)
            for changes in CHANGES:
                given, changed = _changed(features[rows], codes[rows], changes, share, rng)
                for name, found in _found(features[rows], given, len(known_classes), k).items():
                    counts[changes, name].append((len(np.intersect1d(found, changed)), len(found), len(changed)))
        progress.print(f"{known_classes} …")
    figures: dict[str, Any] = {"dataset": dataset, "known": known, "labels": labels, "order": order, "share": share}
    figures["runs"] = draws * repeat
    for (changes, name), of in counts.items():
        right, listed, changed_labels = np.sum(of, axis=0).tolist()
        if changes == "none":
            figures[f"{name}_empty_share"] = float(np.mean([one[1] == 0 for one in of]))
            figures[f"{name}_listed_mean"] = listed / len(of)
        else:
            figures[f"{name}_{changes}_precision"] = right / max(listed, 1)
            figures[f"{name}_{changes}_recall"] = right / changed_labels
    report("mistakes", figures, as_json)


def _served(
    features: NDArray[np.float32], labels: NDArray[np.int64], known: tuple[int, ...], seed: int, n: int, k: int
) -> NDArray[np.int64]:
    """Rows that the live order queries, after four of each class, ascending."""
    from neat_backend.experiments import orders
    from neat_backend.experiments.checkpoints import Run
    from neat_backend.experiments.linear_classifier import LinearLearner
    from neat_backend.experiments.live_loop import start_of
    from neat_backend.experiments.loop import Samples
    from neat_backend.experiments.models import Clock
    from neat_backend.experiments.protocols import LiveProtocol
    from neat_backend.experiments.splits import codes_of

    protocol, run = LiveProtocol("", len(known), "", labels=n, k=k), Run("live", seed, known)
    samples = Samples(features, labels, LinearLearner(features, len(features)))
    codes, rows = codes_of(labels, known), start_of(protocol, labels, run).tolist()
    order = orders.build(protocol, samples, run, Clock())
    order.take(rows, codes[rows].tolist())
    while len(rows) < n:
        row = order.next()[0]
        order.take([row], [int(codes[row])])
        rows.append(row)
    return np.sort(np.array(rows))


def _changed(
    features: NDArray[np.float32], codes: NDArray[np.int64], changes: str, share: float, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels with some of them changed, and the rows of these."""
    given = codes.copy()
    if changes == "none":
        return given, np.zeros(0, np.int64)
    rows = rng.choice(len(codes), round(share * len(codes)), replace=False)
    answers = np.unique(codes)
    means = np.stack([features[codes == answer].mean(axis=0) for answer in answers])
    alike = (means / np.linalg.norm(means, axis=1, keepdims=True)) @ means.T / np.linalg.norm(means, axis=1)
    np.fill_diagonal(alike, -1)
    for row in rows:
        own = int(np.searchsorted(answers, codes[row]))
        others = np.delete(np.arange(len(answers)), own)
        given[row] = answers[rng.choice(others) if changes == "random" else alike[own].argmax()]
    return given, rows


def _found(features: NDArray[np.float32], codes: NDArray[np.int64], n_classes: int, k: int) -> dict[str, Any]:
    """Rows that each way lists."""
    from neat_backend.worker.steps import mistakes

    similar = features @ features.T
    np.fill_diagonal(similar, -2)
    nearest = codes[np.argsort(-similar, axis=1, kind="stable")[:, :k]]
    rng = np.random.default_rng(0)
    ours = mistakes.listed(mistakes.chances(features, codes, nearest, n_classes, rng))
    # "None of these" is the last one, as it is of the head.
    answers, given = np.unique(np.where(codes < 0, n_classes, codes), return_inverse=True)
    shares = np.exp(mistakes.unseen(features, codes, given, len(answers), rng))
    votes = (np.where(nearest < 0, n_classes, nearest)[:, :, None] == answers).mean(axis=1)
    contradicted = (votes.max(axis=1) >= 0.6) & (votes.argmax(axis=1) != given)
    return {"ours": ours, "confident": _confident(shares, given), "neighbours": np.flatnonzero(contradicted)}


def _confident(shares: NDArray[np.float64], given: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows off the diagonal of the confident joint: probabilities [n, m] and labels [n] → rows.

    An answer counts where its probability is at least the mean of those of the labels that give it; of several, the
    likeliest one.
    """
    own = np.array([shares[given == answer, answer].mean() for answer in range(shares.shape[1])])
    counts = np.where(shares >= own, shares, 0)
    return np.flatnonzero((counts.max(axis=1) > 0) & (counts.argmax(axis=1) != given))
