"""Results as figures in the paper's form, PNG and SVG: curves by query with bands, and where two strategies chose; of
live experiments, accuracy by label.

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
from neat_backend.experiments import metrics
from neat_backend.experiments.protocols import LiveProtocol
from neat_backend.experiments.results import Experiment, Record, read_all
from neat_backend.strategies import HYBRID

# Okabe and Ito (2008), without the yellow, which is too light for lines on paper.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
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
    "eoal": (BLACK, "p", DASHED),
    "bual": (BLACK, "X", DOTTED),
    "eaoa": (BLACK, "8", DASHDOT),
    "e2oal": (BLACK, "|", SOLID),
    "neat": (BLUE, "o", SOLID),
    "neat_passive": (BLUE, "d", DASHED),
    "neat_plus": (VERMILION, "*", SOLID),
    "paper": (ORANGE, "s", DASHED),
    "former": (PURPLE, "v", DASHDOT),
    "unbalanced": (SKY, "d", DASHED),
    "live": (BLUE, "o", SOLID),
}
SHOWN = {
    "neat": "NEAT",
    "neat_passive": "NEAT (passive)",
    "neat_plus": "NEAT+",
    "random": "random",
    "paper": "batches of B (the paper)",
    "former": "live, formerly",
    "unbalanced": "live, without balance",
    "live": "live (default)",
}
BEFORE_LAST = ("neat_passive", "neat", "neat_plus", "live")  # drawn last: on top
MARKERS = 5  # points of a live run from one marker to the next
WIDTH_INCHES = 3.4
BAND = 0.5  # opacity of all bands together, so that many of them leave the lines to be seen
PANELS = {
    "accuracy": ("Accuracy", metrics.accuracies, 0),
    "precision": ("Precision of the query", metrics.precisions, 1),
    "recall": ("Recall", metrics.recalls, 0),
}


def shown_name(strategy: str) -> str:
    plain = strategy.removeprefix(HYBRID)
    name = SHOWN.get(plain, plain.upper())
    return f"{name} after detection" if strategy.startswith(HYBRID) else name


def _look(strategy: str) -> dict[str, Any]:
    colour, marker, dashes = LOOKS.get(strategy.removeprefix(HYBRID), (BLACK, ".", SOLID))
    main = strategy in ("neat", "neat_plus", "live")
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
    """Figures without a display, with this module's fonts. Raises SettingsError where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise SettingsError(
            "figures need matplotlib, which is not installed here: `pip install matplotlib`, or the extra of this "
            "package that includes it, neat-backend[experiments]"
        ) from error

    with matplotlib.rc_context(
        {
            "font.size": 9,
            "axes.titlesize": 9,
            "axes.labelsize": 9,
            "legend.fontsize": 8,
            "xtick.labelsize": 8,
            "ytick.labelsize": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#E3E3E3",
            "grid.linewidth": 0.6,
            "axes.axisbelow": True,
            "svg.fonttype": "none",
            "svg.hashsalt": "neat-backend",
            "figure.dpi": 100,
            "savefig.dpi": 200,
        }
    ):
        from matplotlib.figure import Figure

        yield Figure


def _save(figure: Any, path: Path) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = [path.with_name(f"{path.name}.{suffix}") for suffix in ("png", "svg")]
    for file in written:
        # No date: the same results give the same file.
        figure.savefig(file, bbox_inches="tight", metadata={"Date": None} if file.suffix == ".svg" else None)
    return written


def curves(folders: Sequence[Path], out: Path, strategies: Sequence[str] | None = None) -> list[Path]:
    """Accuracy, precision and recall by query, means and bands; a row for each experiment.

    Some seeds and known classes are harder than others for every strategy. So a band is one standard deviation after
    subtracting the mean of all strategies with the same seed and classes (Cousineau 2005, with the correction of Morey
    2008); with one strategy, of the values themselves.

    Writes `out`/curves.png and .svg. Raises SettingsError where no run is finished.
    """
    experiments = read_all(folders)
    with _style() as figure_class:
        figure = figure_class(figsize=(WIDTH_INCHES * len(PANELS), 2.9 * len(experiments) + 0.9), layout="constrained")
        axes = figure.subplots(len(experiments), len(PANELS), squeeze=False)
        lines: dict[str, Any] = {}
        for row, experiment in zip(axes, experiments, strict=True):
            names = [name for name in experiment.strategies if strategies is None or name in strategies]
            for axis, (title, figure_of, start) in zip(row, PANELS.values(), strict=True):
                values = {name: _values(experiment.of(name), figure_of) for name in names}
                bands = _bands(values)
                for name in names:
                    longest = max(map(len, values[name].values()))
                    places = np.arange(start, start + longest)
                    lines.setdefault(
                        name, _curve(axis, values[name], bands[name], places, name, BAND / max(4, len(names)))
                    )
                axis.set_title(title if len(experiments) == 1 else f"{_dataset(experiment)}: {title.lower()}")
                axis.set_xlabel("query")
                axis.set_ylabel("%")
                axis.locator_params(axis="x", integer=True)
                axis.margins(x=0.03)
        _legend(figure, lines, strategies)
        return _save(figure, out / "curves")


def live_curves(folders: Sequence[Path], out: Path, orders: Sequence[str] | None = None) -> list[Path]:
    """Accuracy by label, means and bands as in `curves`, a panel for each experiment.

    A curve begins where all runs have an accuracy: with nothing labelled at the start, some labels later. Writes
    `out`/live.png and .svg. Raises SettingsError where no run is finished.
    """
    experiments = read_all(folders, LiveProtocol.kind)
    columns = min(len(experiments), len(PANELS))
    rows = -(-len(experiments) // columns)
    with _style() as figure_class:
        figure = figure_class(figsize=(WIDTH_INCHES * 1.2 * columns, 3.1 * rows + 0.7), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        lines: dict[str, Any] = {}
        for axis, experiment in zip(axes, experiments, strict=False):
            names = [name for name in experiment.strategies if orders is None or name in orders]
            values = {name: _values(experiment.of(name), metrics.accuracies) for name in names}
            every = [cell for cells in values.values() for cell in cells.values()]
            first = int(np.isfinite(_table(every)).all(axis=0).argmax()) if every else 0
            places = np.array([point["labels"] for point in experiment.records[0].rounds])[first:]
            values = {name: {key: cell[first:] for key, cell in cells.items()} for name, cells in values.items()}
            bands = _bands(values)
            for name in names:
                line = _curve(axis, values[name], bands[name], places, name, BAND / max(4, len(names)))
                line.set_markevery(MARKERS)
                lines.setdefault(name, line)
            protocol = experiment.plan.protocol
            axis.set_title(f"{_dataset(experiment)}, {getattr(protocol, 'start', 0)} of each labelled at the start")
            axis.set_xlabel("labels queried")
            axis.set_ylabel("accuracy, %")
        for axis in axes[len(experiments) :]:
            axis.set_visible(False)
        _legend(figure, lines, orders)
        return _save(figure, out / "live")


def _legend(figure: Any, lines: dict[str, Any], wanted: Sequence[str] | None) -> None:
    if not lines:
        raise SettingsError(f"none of {', '.join(wanted or ())} has a finished run")
    figure.legend(
        lines.values(),
        map(shown_name, lines),
        loc="outside lower center",
        ncols=min(6, len(lines)),
        frameon=False,
        handlelength=3.2,
    )


def _dataset(experiment: Experiment) -> str:
    protocol = experiment.plan.protocol
    return f"{protocol.dataset}, {protocol.known} known"


Cells = dict[tuple[Any, ...], NDArray[np.float64]]  # (seed, known classes) → a value for each query, in percent


def _values(records: Sequence[Record], figure_of: Any) -> Cells:
    return {(record.run.seed, record.run.known): 100 * figure_of(record.rounds) for record in records}


def _table(cells: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """[cells, longest], NaN where a pool ran out early."""
    table = np.full((len(cells), max(map(len, cells))), np.nan)
    for row, one in zip(table, cells, strict=True):
        row[: len(one)] = one
    return table


def _bands(values: dict[str, Cells]) -> dict[str, NDArray[np.float64]]:
    """Half the width of each strategy's band, at each query; see `curves`."""
    everywhere = [key for key in next(iter(values.values()), {}) if all(key in cells for cells in values.values())]
    if len(everywhere) < 2 or len(values) < 2:
        return {name: _spread(_table(list(cells.values()))) for name, cells in values.items()}
    longest = min(len(cells[key]) for cells in values.values() for key in everywhere)
    table = np.array([[cells[key][:longest] for key in everywhere] for cells in values.values()])  # [s, cells, T]
    own = (table - table.mean(axis=0)) * np.sqrt(len(table) / (len(table) - 1))
    return {name: _spread(one) for name, one in zip(values, own, strict=True)}


def _spread(table: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.nanstd(table, axis=0, ddof=1) if len(table) > 1 else np.zeros(table.shape[1])


def _curve(
    axis: Any, cells: Cells, half: NDArray[np.float64], places: NDArray[np.int64], name: str, alpha: float
) -> Any:
    mean = np.nanmean(_table(list(cells.values())), axis=0)
    look = _look(name)
    (line,) = axis.plot(places, mean, label=name, **look)
    middle = mean[: len(half)]
    low, high = np.maximum(middle - half, 0), np.minimum(middle + half, 100)  # shares stay within 0 and 100 %
    axis.fill_between(places[: len(half)], low, high, color=look["color"], alpha=alpha, linewidth=0, zorder=1)
    return line


def choices(
    experiment: Experiment,
    features: NDArray[np.float32],
    codes: NDArray[np.int64],
    chosen: dict[str, NDArray[np.int64]],
    query: int,
    out: Path,
    rng: np.random.Generator,
) -> list[Path]:
    """t-SNE of the pool, and in a panel each what strategies chose in one query (the paper's Figure 4).

    features: [n, d] of the pool; codes: [n], true class or INVALID; chosen: strategy → indices [B]. Of the rest of
    the pool 3,000 are drawn at random. Writes `out`/tsne.png and .svg.
    """
    from sklearn.manifold import TSNE

    queried = np.unique(np.concatenate(list(chosen.values())))
    others = rng.permutation(np.setdiff1d(np.arange(len(features)), queried))[:3000]
    rows = np.concatenate([queried, others])
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
                axis.scatter(
                    *points[right].T,
                    s=22,
                    c=BLUE,
                    marker="o",
                    linewidths=0.5,
                    edgecolors="white",
                    label="chosen, of a known class",
                ),
                axis.scatter(
                    *points[~right].T,
                    s=26,
                    c=VERMILION,
                    marker="x",
                    linewidths=1.3,
                    label="chosen, of an unknown class",
                ),
            ]
            axis.set_title(f"{shown_name(name)}, query {query}: {right.sum()} of {len(indices)} known")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(visible=False)
            for spine in axis.spines.values():
                spine.set_visible(True)
                spine.set_color("#BBBBBB")
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, 2 * len(chosen)), frameon=False)
        return _save(figure, out / "tsne")
