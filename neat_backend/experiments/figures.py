"""Results as figures in the paper's form, PNG and SVG: curves by query with bands, and where two strategies chose.

Readable in print and by the colour-blind: Okabe and Ito's colours, and for each strategy its own marker and dashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import SettingsError
from neat_backend.experiments import metrics, results
from neat_backend.experiments.results import Experiment, Record
from neat_backend.strategies import HYBRID

# Okabe and Ito (2008), without the yellow, which is too light for lines on paper.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
GREY = "#8C8C8C"
SOLID, DASHED, DOTTED, DASHDOT = "-", (0, (5, 1.6)), (0, (1, 1.4)), (0, (6, 1.5, 1, 1.5))
# Strategy → colour, marker, dashes. No two are alike in more than one of them.
LOOKS: dict[str, tuple[str, str, Any]] = {
    "random": (GREY, "x", DOTTED),
    "uncertainty": (SKY, "v", DASHED),
    "certainty": (SKY, "^", DOTTED),
    "coreset": (GREEN, "s", DASHED),
    "bgadl": (PURPLE, "P", DASHDOT),
    "openmax": (ORANGE, "<", DOTTED),
    "badge": (GREEN, "D", DASHDOT),
    "mqnet": (PURPLE, ">", DASHED),
    "lfosa": (ORANGE, "h", DASHED),
    "neat": (BLUE, "o", SOLID),
    "neat_passive": (BLUE, "d", DASHED),
    "neat_plus": (VERMILION, "*", SOLID),
}
SHOWN = {"neat": "NEAT", "neat_passive": "NEAT (passive)", "neat_plus": "NEAT+"}
BEFORE_LAST = ("neat_passive", "neat", "neat_plus")  # drawn last: on top
WIDTH_INCHES = 3.4
PANELS = {
    "accuracy": ("Accuracy", metrics.accuracies, 0),
    "precision": ("Precision of the query", metrics.precisions, 1),
    "recall": ("Recall", metrics.recalls, 0),
}


def shown_name(strategy: str) -> str:
    plain = strategy.removeprefix(HYBRID)
    name = SHOWN.get(plain, plain.upper() if plain != "random" else "random")
    return f"{name} after detection" if strategy.startswith(HYBRID) else name


def _look(strategy: str) -> dict[str, Any]:
    colour, marker, dashes = LOOKS.get(strategy.removeprefix(HYBRID), (BLACK, ".", SOLID))
    main = strategy in ("neat", "neat_plus")
    return {
        "color": colour,
        "marker": marker,
        "linestyle": dashes,
        "linewidth": 2.0 if main else 1.2,
        "markersize": 9 if marker == "*" else 5,
        "markerfacecolor": "white" if strategy.startswith(HYBRID) else colour,
        "markeredgecolor": colour,
        "zorder": 3 + (BEFORE_LAST.index(strategy) if strategy in BEFORE_LAST else 0) * 0.1,
    }


@contextmanager
def _style() -> Iterator[Any]:
    """pyplot without a display, with this module's fonts, and everything closed afterwards."""
    import matplotlib

    with matplotlib.rc_context(
        {
            "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8,
            "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
            "grid.color": "#E3E3E3", "grid.linewidth": 0.6, "axes.axisbelow": True, "svg.fonttype": "none",
            "svg.hashsalt": "neat-backend", "figure.dpi": 100, "savefig.dpi": 200,
        }
    ):  # fmt: skip
        from matplotlib.figure import Figure

        yield Figure


def _save(figure: Any, path: Path) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(f"{path.name}.{suffix}") for suffix in ("png", "svg")]
    for file in written:
        # Without a date the same results give the same file.
        figure.savefig(file, bbox_inches="tight", metadata={"Date": None} if file.suffix == ".svg" else None)
    return written


def curves(folders: Sequence[Path], out: Path, strategies: Sequence[str] | None = None) -> list[Path]:
    """Accuracy, precision and recall by query, means with bands of one standard deviation; a row each experiment.

    Writes `out`/curves.png and .svg. Raises SettingsError where no run is finished.
    """
    experiments = [one for one in map(results.read, folders) if one.records]
    if not experiments:
        raise SettingsError("no run is finished yet; go on with neat-backend experiment resume")
    with _style() as figure_class:
        figure = figure_class(figsize=(WIDTH_INCHES * len(PANELS), 2.9 * len(experiments) + 0.9), layout="constrained")
        axes = figure.subplots(len(experiments), len(PANELS), squeeze=False)
        lines: dict[str, Any] = {}
        for row, experiment in zip(axes, experiments, strict=True):
            names = [name for name in experiment.strategies if strategies is None or name in strategies]
            for axis, (title, figure_of, start) in zip(row, PANELS.values(), strict=True):
                for name in names:
                    line = _curve(axis, experiment.of(name), figure_of, start, name)
                    lines.setdefault(name, line)
                axis.set_title(title if len(experiments) == 1 else f"{_dataset(experiment)}: {title.lower()}")
                axis.set_xlabel("query")
                axis.set_ylabel("%")
                axis.locator_params(axis="x", integer=True)
                axis.margins(x=0.03)
        if not lines:
            raise SettingsError(f"none of {', '.join(strategies or ())} has a finished run")
        figure.legend(
            lines.values(), map(shown_name, lines), loc="outside lower center", ncols=min(6, len(lines)),
            frameon=False, handlelength=3.2,
        )  # fmt: skip
        return _save(figure, out / "curves")


def _dataset(experiment: Experiment) -> str:
    protocol = experiment.plan.protocol
    return f"{protocol.dataset}, {protocol.known} known"


def _curve(axis: Any, records: Sequence[Record], figure_of: Any, start: int, name: str) -> Any:
    values = [100 * figure_of(record.rounds) for record in records]
    longest = max(len(one) for one in values)
    table = np.full((len(values), longest), np.nan)
    for row, one in zip(table, values, strict=True):
        row[: len(one)] = one
    x = np.arange(start, start + longest)
    mean = np.nanmean(table, axis=0)
    look = _look(name)
    (line,) = axis.plot(x, mean, label=name, **look)
    if len(values) > 1:
        half = np.nanstd(table, axis=0, ddof=1)
        low, high = np.maximum(mean - half, 0), np.minimum(mean + half, 100)  # shares stay within 0 and 100 %
        axis.fill_between(x, low, high, color=look["color"], alpha=0.10, linewidth=0, zorder=1)
    return line


def choices(
    experiment: Experiment, features: NDArray[np.float32], codes: NDArray[np.int64],
    chosen: dict[str, NDArray[np.int64]], query: int, out: Path, rng: np.random.Generator,
) -> list[Path]:  # fmt: skip
    """t-SNE of the pool, and in a panel each what strategies chose in one query (the paper's Figure 4).

    features: [n, d] of the pool; codes: [n], true class or INVALID; chosen: strategy → indices [B]. Of the rest of
    the pool 3,000 are drawn at random. Writes `out`/tsne.png and .svg.
    """
    from sklearn.manifold import TSNE

    asked = np.unique(np.concatenate(list(chosen.values())))
    others = rng.permutation(np.setdiff1d(np.arange(len(features)), asked))[:3000]
    rows = np.concatenate([asked, others])
    perplexity = min(30.0, (len(rows) - 1) / 3)
    places = TSNE(
        n_components=2, metric="cosine", init="random", perplexity=perplexity, random_state=int(rng.integers(2**31))
    ).fit_transform(np.asarray(features[rows]))
    at = {int(row): place for row, place in zip(rows, places, strict=True)}
    with _style() as figure_class:
        figure = figure_class(figsize=(WIDTH_INCHES * 1.15 * len(chosen), 3.9), layout="constrained")
        axes = figure.subplots(1, len(chosen), squeeze=False)[0]
        known = codes[rows] >= 0
        handles: list[Any] = []
        for axis, (name, indices) in zip(axes, chosen.items(), strict=True):
            right = codes[indices] >= 0
            points = np.array([at[int(index)] for index in indices]).reshape(-1, 2)
            handles = [
                axis.scatter(*places[~known].T, s=4, c="#D4D4D4", linewidths=0, label="unknown class"),
                axis.scatter(*places[known].T, s=4, c=SKY, linewidths=0, label="known class"),
                axis.scatter(*points[right].T, s=22, c=BLUE, marker="o", linewidths=0.5, edgecolors="white",
                             label="chosen, of a known class"),
                axis.scatter(*points[~right].T, s=26, c=VERMILION, marker="x", linewidths=1.3,
                             label="chosen, of an unknown class"),
            ]  # fmt: skip
            axis.set_title(f"{shown_name(name)}, query {query}: {right.sum()} of {len(indices)} known")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
            for spine in axis.spines.values():
                spine.set_visible(True)
                spine.set_color("#BBBBBB")
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, 2 * len(chosen)), frameon=False)
        return _save(figure, out / "tsne")
