"""Coordinates of charts for templates, which draw them as small SVGs without a script.

Coordinates are in units of the viewBox, 0 0 WIDTH HEIGHT, y downwards. A table or a sentence beside each chart has the
same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 340, 196
LEFT, RIGHT, TOP, BOTTOM = 46.0, 334.0, 12.0, 164.0  # of the plot area
MOST_NAMES = 8  # along the x axis
WIDEST_COLUMN = 34.0


def precision(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A column for each batch's share of known classes, and the range of a random batch across it; None of none."""
    shown = [one for one in batches if one["precision"] is not None]
    if not shown:
        return None
    columns = []
    for place, one in _places(shown):
        column = {
            **place,
            "round": one["round"],
            "name": one["round"] if place["named"] else "",
            "percent": round(100 * one["precision"]),
            "top": _y(one["precision"]),
            "random": None,
        }
        if one["random"] is not None:
            low, high = _y(one["random"]["low"]), _y(one["random"]["high"])
            column["random"] = {
                "line": _y(one["random"]["share"]),
                "top": high,
                "height": max(low - high, 1.0),
                "percent": round(100 * one["random"]["share"]),
            }
        columns.append(column)
    return {"columns": columns, "ticks": _percents(), "random": any(one["random"] for one in columns)}


def accuracy(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A point for each round's held-out accuracy, its 95 % interval as a line through it; None of none."""
    shown = [one for one in rounds if one["held_out"]]
    if not shown:
        return None
    points = [
        {
            **place,
            "round": one["number"],
            "name": one["number"] if place["named"] else "",
            "y": _y(one["held_out_accuracy"]),
            "percent": round(100 * one["held_out_accuracy"]),
            "low": _y(one["accuracy_interval"][0] / 100),
            "high": _y(one["accuracy_interval"][1] / 100),
            "interval": one["accuracy_interval"],
        }
        for place, one in _places(shown)
    ]
    line = " ".join(f"{one['middle']},{one['y']}" for one in points)
    return {"points": points, "line": line, "ticks": _percents()}


def days(counts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A column for the labels of each day, the day of the month below it; None of none."""
    if not counts:
        return None
    step = _step(max(one["labels"] for one in counts))
    top = step * max(1, math.ceil(max(one["labels"] for one in counts) / step))
    columns = [
        {
            **place,
            "day": one["day"],
            "name": one["day"][5:] if place["named"] else "",
            "labels": one["labels"],
            "top": _y(one["labels"] / top),
        }
        for place, one in _places(counts)
    ]
    ticks = [{"y": _y(value / top), "name": f"{value:,}"} for value in range(0, top + 1, step)]
    return {"columns": columns, "ticks": ticks}


def _step(most: int) -> int:
    """The distance of ticks: 1, 2 or 5 times a power of ten, for at most five ticks above 0."""
    power = 10 ** max(0, math.floor(math.log10(max(most, 1))) - 1)
    return int(next(power * times for times in (1, 2, 5, 10, 20, 50) if power * times * 5 >= most))


def histogram(scores: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
    """Number of tasks by priority; heights are logarithmic, so that small numbers beside large ones are visible."""
    candidates, others = scores["candidates"], scores["others"]
    most = max([*candidates, *others, 0])
    if not most:
        return None
    top = max(1, math.ceil(math.log10(most + 1)))

    def y(count: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * math.log10(count + 1) / top, 1)

    width = (RIGHT - LEFT) / len(candidates)
    bars = [
        {
            "x": round(LEFT + at * width + 1, 1),
            "width": round(width - 2, 1),
            "top": y(count),
            "height": round(BOTTOM - y(count), 1),
            "kind": kind,
            "count": count,
            "from": at / len(candidates),
            "to": (at + 1) / len(candidates),
        }
        for kind, counts in (("candidate", candidates), ("other", others))
        for at, count in enumerate(counts)
        if count
    ]
    ticks: list[dict[str, Any]] = [
        {"y": y(value), "name": f"{value:,}"} for value in (0, *(10**power for power in range(top + 1)))
    ]
    return {
        "bars": bars,
        "ticks": [one for one in ticks if one["y"] >= TOP - 1],
        "names": [{"x": LEFT + (RIGHT - LEFT) * at / 4, "name": f"{at / 4:g}"} for at in range(5)],
        "candidates": sum(candidates),
        "others": sum(others),
    }


def classes(counts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A bar for each class: labelled tasks, and with those left, as shares of the largest."""
    most = max((one["labels"] + (one["left"] or 0) for one in counts), default=0)
    return [
        {
            **one,
            "left": None if one["left"] is None else round(one["left"]),
            "labelled_share": one["labels"] / most if most else 0.0,
            "share": (one["labels"] + (one["left"] or 0)) / most if most else 0.0,
        }
        for one in counts
    ]


def _y(share: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * share, 1)


def _percents() -> list[dict[str, Any]]:
    return [{"y": _y(at / 4), "name": f"{25 * at} %"} for at in range(5)]


def _places(shown: Sequence[Mapping[str, Any]]) -> list[tuple[dict[str, Any], Mapping[str, Any]]]:
    """Each item with its column along the x axis; as many are named as fit."""
    step = (RIGHT - LEFT) / len(shown)
    width = min(0.7 * step, WIDEST_COLUMN)
    every = math.ceil(len(shown) / MOST_NAMES)
    return [
        (
            {
                "x": round(LEFT + step * (at + 0.5) - width / 2, 1),
                "width": round(width, 1),
                "middle": round(LEFT + step * (at + 0.5), 1),
                "named": (len(shown) - 1 - at) % every == 0,
            },
            one,
        )
        for at, one in enumerate(shown)
    ]
