"""Query strategies: one file with one function `select` for each.

    select(pool, batch_size, rng) → int64 [min(batch_size, offered)], indices of offered samples, best first

The same pool, size and generator state give the same answer; nothing given is changed. `hybrid:NAME` is NEAT's
known-class detection followed by any of them; `NAME-PART-…` leaves parts out of one that has a function `without`
(neat_plus). A strategy may also have `generate(pool, chosen, rng)`, which
makes further training samples of the ones just answered (BGADL).

A strategy of another distribution is used by the name of its entry point in the group `neat_backend.strategies`, which
names a function `select` or a module with one; `neat_backend.testing.StrategyContract` tests it as these are tested.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

from neat_backend import plugins
from neat_backend.errors import SettingsError
from neat_backend.ranking.pool import Select

STRATEGIES = (
    "random",
    "uncertainty",
    "certainty",
    "coreset",
    "bgadl",
    "openmax",
    "badge",
    "mqnet",
    "lfosa",
    "eoal",
    "bual",
    "eaoa",
    "e2oal",
    "neat",
    "neat_passive",
    "neat_plus",
)
HYBRID = "hybrid:"


def module(name: str) -> Any:
    """What has the strategy's `select`, that after `hybrid:` for a hybrid. Raises SettingsError for an unknown name."""
    plain = name.removeprefix(HYBRID).partition("-")[0]
    if plain in STRATEGIES:
        return import_module(f"neat_backend.strategies.{plain}")  # at use: some import torch
    found = plugins.load(plugins.STRATEGIES, plain)
    if found is None:
        accepted = ", ".join((*STRATEGIES, *plugins.names(plugins.STRATEGIES)))
        raise SettingsError(f"strategy {name!r}: must be one of {accepted}, or {HYBRID}NAME")
    return found if hasattr(found, "select") else SimpleNamespace(select=found)


def following(name: str) -> Select:
    """The same for one pool again and again while it is labelled: it may keep what labels don't change.

    `strategy(name)` gives the same answers. Samples are told apart by the pool's keys.
    """
    found = module(name)
    select: Select = found.Following() if hasattr(found, "Following") and name.isidentifier() else strategy(name)
    return select


def strategy(name: str) -> Select:
    """The `select` of a strategy or of a hybrid. Raises SettingsError for an unknown name or part."""
    found = module(name)
    select: Select = found.select
    parts = name.split("-")[1:]
    if parts:
        if not hasattr(found, "without"):
            raise SettingsError(f"strategy {name!r}: only neat_plus has parts that can be left out")
        select = found.without(parts)
    if not name.startswith(HYBRID):
        return select
    from neat_backend.strategies.detection import after_detection

    return after_detection(select)
