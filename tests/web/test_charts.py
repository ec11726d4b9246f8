"""Charts as numbers: what is drawn where, checked by eye on small ones."""

from __future__ import annotations

from typing import Any

import pytest

from neat_backend.web.charts import BOTTOM, LEFT, RIGHT, TOP, accuracy, histogram, precision


def batch(number: int, share: float | None, random: float | None = None) -> dict[str, Any]:
    baseline = None if random is None else {"share": random, "low": random - 0.1, "high": random + 0.1}
    return {"round": number, "precision": share, "random": baseline}


def measured(number: int, right: int, of: int) -> dict[str, Any]:
    share = right / of if of else None
    return {"number": number, "held_out": of, "held_out_accuracy": share, "accuracy_interval": (40, 60) if of else None}


def test_a_batchs_column_is_as_high_as_its_share_and_randoms_range_lies_across() -> None:
    chart = precision([batch(1, 0.5, 0.3), batch(2, None), batch(3, 1.0)])
    assert chart is not None
    first, second = chart["columns"]
    assert first["top"] == (TOP + BOTTOM) / 2
    assert second["top"] == TOP
    assert first["random"]["top"] < first["random"]["line"] < first["random"]["top"] + first["random"]["height"]
    assert second["random"] is None
    assert (first["percent"], first["random"]["percent"], second["round"]) == (50, 30, 3)


def test_accuracy_has_its_interval_around_it_and_is_joined() -> None:
    chart = accuracy([measured(1, 0, 0), measured(2, 5, 10), measured(3, 6, 10)])
    assert chart is not None
    first, _ = chart["points"]
    assert first["high"] < first["y"] < first["low"], "upwards is less"
    assert chart["line"].startswith(f"{first['middle']},{first['y']} ")


@pytest.mark.parametrize("count", [1, 3, 8, 9, 30, 100])
def test_columns_stay_inside_and_so_many_are_named_as_fit(count: int) -> None:
    chart = precision([batch(number, 0.5) for number in range(1, count + 1)])
    assert chart is not None
    assert all(one["x"] >= LEFT and one["x"] + one["width"] <= RIGHT for one in chart["columns"])
    named = [one["name"] for one in chart["columns"] if one["name"]]
    assert len(named) <= 8
    assert named[-1] == count, "the latest round is always named"


def test_one_task_is_seen_beside_a_hundred_thousand() -> None:
    chart = histogram({"candidates": [0, 0, 1, 100_000], "others": [7, 0, 0, 0]})
    assert chart is not None
    heights = {one["count"]: one["height"] for one in chart["bars"]}
    assert 5 < heights[1] < heights[7] < heights[100_000] <= BOTTOM - TOP
    assert {one["kind"]: one["count"] for one in chart["bars"]} == {"candidate": 100_000, "other": 7}
    assert (chart["candidates"], chart["others"]) == (100_001, 7)
    assert all(TOP - 1 <= one["y"] <= BOTTOM for one in chart["ticks"])


def test_nothing_is_no_chart() -> None:
    assert precision([batch(1, None)]) is None
    assert accuracy([measured(1, 0, 0)]) is None
    assert histogram({"candidates": [], "others": []}) is None
    assert histogram({"candidates": [0], "others": [0]}) is None
