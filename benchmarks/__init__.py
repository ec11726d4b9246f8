"""Benchmarks: `python -m benchmarks NAME`. Each compares in one run on one machine and reports ratios.

Compare a figure only with others of the same run: machines and their load differ.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """`app`, the commands; imported when asked for, since `benchmarks.gpu` runs without typer too."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from benchmarks.commands import app

    return app
