"""Numbers of the service as sentences for people."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def to_go(pace: Mapping[str, Any], no_estimate: str) -> list[str]:
    """What is left to the target, in labels, work and days; pace as of service.lead, no_estimate: why there is none."""
    needed, hours, days = pace["labels_needed"], pace["hours_needed"], pace["days_needed"]
    if needed is None:
        return [no_estimate or "No estimate yet."]
    if needed["high"] < 1:
        return ["The target is reached."]
    said = [f"About {_range(needed, 'labels')} more labels."]
    if hours is None:
        said.append("The time for that is estimated after ten labels given one after the other.")
    else:
        rate = f"{_rounded(pace['per_hour'])} labels an hour"
        said.append(f"Work for one person: about {duration(hours)}, at {rate}.")
    if days is not None:
        said.append(f"At {_rounded(pace['per_day'])} labels a day, as lately: about {_range(days, 'time')} days.")
    return said


def duration(hours: Mapping[str, float]) -> str:
    """ "6 hours (3 to 13)"; minutes where even the longest is below two hours."""
    if hours["high"] >= 2:
        return f"{_rounded(hours['time'])} hours ({_rounded(hours['low'])} to {_rounded(hours['high'])})"
    minutes = {name: 60 * value for name, value in hours.items()}
    return f"{_rounded(minutes['time'])} minutes ({_rounded(minutes['low'])} to {_rounded(minutes['high'])})"


def _range(found: Mapping[str, float], name: str) -> str:
    return f"{_rounded(found[name])} ({_rounded(found['low'])} to {_rounded(found['high'])})"


def _rounded(value: float) -> str:
    """To two digits, as no estimate is surer; whole numbers from ten on."""
    if value < 10:
        return f"{value:.1f}".removesuffix(".0")
    unit = 10 ** max(0, math.floor(math.log10(value)) - 1)
    return f"{round(value / unit) * unit:,}"
