"""Commands that may take long: they may, as long as they say something, or something is written to the disk."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.waiting import until


def follow(
    words: Sequence[str], log: Path, env: Mapping[str, str], folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Run a command to its end, its words in `log`. Raises AssertionError for one that fails, or falls silent."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        process = subprocess.Popen(
            words, env=dict(env), cwd=folder, stdout=output, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        until(
            lambda: process.poll() is not None,
            lambda: f"{' '.join(words)} says nothing more: {_end(log, began)}",
            progress=lambda: (log.stat().st_size, shutil.disk_usage(log.parent).free),
            every=0.1,
        )
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 0, f"{' '.join(words)} ended with {process.returncode}: {_end(log, began)}"
    return process


def _end(log: Path, began: int) -> str:
    return log.read_bytes()[began:][-4000:].decode(errors="replace")
