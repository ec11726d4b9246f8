"""The forms of tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from neat_backend.errors import SettingsError
from neat_backend.experiments import live_tables, tables
from neat_backend.experiments.checkpoints import read_plan
from neat_backend.experiments.protocols import LiveProtocol, Protocol
from neat_backend.experiments.tables import ABLATIONS, Table

BY_FOLDERS: dict[str, Callable[[Sequence[Path], str | None], Table]] = {
    "strategies": tables.strategies_table,
    "differences": tables.differences_table,
    "queries": tables.queries_table,
    "timings": tables.timings_table,
    "live": live_tables.live_table,
    "served": live_tables.served_table,
    "prefill": live_tables.prefill_table,
}
FORMS = (*BY_FOLDERS, "price", *ABLATIONS)
CLASS_SECONDS, NONE_SECONDS = 3.0, 1.5  # of an annotator, for a label of a class and for "none of these"
DEFAULTS = {Protocol.kind: "strategies", LiveProtocol.kind: "live"}


def table(
    form: str | None,
    folders: Sequence[Path],
    *,
    strategy: str = "neat",
    against: str | None = None,
    class_seconds: float = CLASS_SECONDS,
    none_seconds: float = NONE_SECONDS,
) -> Table:
    """The table of that form over these experiments; None = the first of their protocol's.

    Raises SettingsError for an unknown form, for no results, and where the protocol is to be guessed from both kinds.
    """
    if form is None:
        kinds = {read_plan(folder).protocol.kind for folder in folders}
        if len(kinds) > 1:
            raise SettingsError(
                "these are experiments of the batch and of the live protocol; add --form, or name folders"
            )
        form = DEFAULTS[kinds.pop()]
    if form in BY_FOLDERS:
        return BY_FOLDERS[form](folders, against)
    if form == "price":
        return tables.price_table(folders, class_seconds, none_seconds)
    if form not in ABLATIONS:
        raise SettingsError(f"--form {form!r}: must be one of {', '.join(FORMS)}")
    return tables.ablation_table(form, folders, strategy)
