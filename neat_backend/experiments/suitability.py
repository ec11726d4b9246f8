"""The clusterability of a data set under an encoder, as a table and in a sentence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neat_backend.errors import SettingsError
from neat_backend.experiments import clusterability, datasets
from neat_backend.experiments.clusterability import EXPONENT, Suitability
from neat_backend.experiments.run_progress import Reporter
from neat_backend.experiments.runner import Machine, encode
from neat_backend.experiments.splits import Known, known_choices, stream
from neat_backend.experiments.tables import Table

KS = (1, 5, 10, 15, 20)


@dataclass(frozen=True)
class Row:
    dataset: str
    encoder: str
    images: int
    known: Known
    found: Suitability

    def as_dict(self) -> dict[str, Any]:
        return {
            "dataset": self.dataset,
            "encoder": self.encoder,
            "images": self.images,
            "known": self.known,
            **self.found.as_dict(),
        }

    @property
    def verdict(self) -> str:
        """The meaning of the figures for a person who is about to label."""
        found = self.found
        if found.pure_recall == 0:
            return f"{self.encoder}: no sample has known neighbours alone; NEAT's detection would find nothing."
        return (
            f"{self.encoder}: with everything else labelled, {100 * found.pure_recall:.0f} % of the known samples have "
            f"{found.k} known neighbours, and {100 * found.pure_precision:.0f} % of the samples that do are known. "
            "With few labels it will be less; compare encoders by it."
        )


@dataclass(frozen=True)
class Sample:
    """The images that are measured: at most `images` of the training part, drawn by the seed.

    data: the data set's folder, None = the default. known: number of known classes, None = a fifth of them.
    """

    dataset: str
    data: Path | None
    side: int  # pixels
    images: int
    known: int | None
    choice: str
    k: int
    seed: int


def of_encoder(encoder: str, sample: Sample, machine: Machine, report: Reporter) -> Row:
    """The clusterability of the sample. Raises SettingsError for values that don't fit the data set."""
    whole = datasets.load(sample.dataset, sample.data, sample.side)
    whole = datasets.without_test(whole.subset(sample.images, None, sample.seed))
    if not 1 <= sample.k < len(whole.images):
        raise SettingsError(f"--k {sample.k}: there are {len(whole.images)} images; must be less, and at least 1")
    n_known = max(1, round(whole.n_classes / 5)) if sample.known is None else sample.known
    known = known_choices(sample.choice, n_known, whole.n_classes, sample.seed)[0]
    features, _, _ = encode(whole, encoder, machine, report)
    found = clusterability.measure(features, whole.labels, known, sample.k, stream("pairs", sample.seed))
    return Row(whole.name, encoder, len(whole.images), known, found)


def as_table(rows: list[Row]) -> Table:
    first = rows[0]
    shown = [k for k in KS if k <= first.found.k]
    head = ["encoder", *(f"σ{k}" for k in shown), "neighbours alike", "open: σK", "precision", "recall", "C", "bound"]
    lines = []
    for row in rows:
        found = row.found
        lines.append(
            [
                row.encoder,
                *(f"{found.sigma[k - 1]:.3f}" for k in shown),
                f"{100 * found.purity:.1f} %",
                f"{found.open_sigma[-1]:.3f}",
                _percent(found.pure_precision),
                _percent(found.pure_recall),
                f"{found.constant:.2f}",
                f"{found.bound:.2g}",
            ]
        )
    names = ", ".join(map(str, first.known))
    return Table(
        f"{first.dataset}, {first.images} images, known classes {names}",
        head,
        lines,
        f"σk: share of samples not of one class with all their k nearest; neighbours alike by chance: "
        f"{100 * first.found.chance:.1f} %. With K = {first.found.k}, all unknown classes taken as one: open σK, "
        "precision and recall of “all K neighbours are known”. C: Assumption 0.1 measured on this sample with "
        f"α = {EXPONENT:g}; bound: Theorem 0.1's with it, mean over samples, saying nothing above 1",
    )


def _percent(share: float) -> str:
    return "-" if np.isnan(share) else f"{100 * share:.1f} %"
