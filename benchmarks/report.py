"""Output of benchmarks: JSON for programs, a table for people."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
progress = Console(stderr=True, highlight=False)


def report(
    title: str, figures: Mapping[str, Any], as_json: bool, rows: Sequence[Mapping[str, Any]] = (), of: str = ""
) -> None:
    """Print `figures`, and one column for each of `rows`, which have the same keys; `of` is the key they differ in."""
    if as_json:
        more = {"rows": list(rows)} if rows else {}
        print(json.dumps({"bench": title, "cores": cores(), **figures, **more}, indent=2))
        return
    out = Console()
    if rows:
        each = Table(of, *(_text(row[of]) for row in rows), title=title)
        for name in rows[0]:
            if name != of:
                each.add_row(name, *(_text(row[name]) for row in rows))
        out.print(each)
    table = Table("figure", title)
    for name, value in figures.items():
        table.add_row(name, _text(value))
    out.print(table)


def _text(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share))


def numbers(text: str, option: str, least: int = 1) -> list[int]:
    """`1000,10000` → [1000, 10000]. Raises typer.BadParameter in plain words."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{option} {text!r}: whole numbers, separated by commas") from None
    if min(found) < least:
        raise typer.BadParameter(f"{option} {text!r}: each must be at least {least}")
    return found


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: Any) -> str:
    """A torch device as people know it."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
