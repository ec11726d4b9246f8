"""Strategies and encoders of other distributions, found by their entry points; loaded only when used.

    [project.entry-points."neat_backend.strategies"]
    smallest_margin = "margin_strategy"

This package's own names take precedence.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from neat_backend.errors import SettingsError

STRATEGIES, ENCODERS = "neat_backend.strategies", "neat_backend.encoders"


def names(group: str) -> tuple[str, ...]:
    """The installed names of a group, in alphabetical order."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


def load(group: str, name: str) -> Any:
    """The object of the entry point, None where there is none. Raises SettingsError where it can't be imported."""
    for point in entry_points(group=group, name=name):
        try:
            return point.load()
        except Exception as error:  # another's code
            raise SettingsError(
                f"{name!r} of {point.dist.name if point.dist else point.value} can't be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
    return None
