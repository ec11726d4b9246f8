"""An exported model's folder, used where this package isn't."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from neat_backend.exports import export_model
from tests.exports.labelled import PROJECT, Labelled
from tests.waiting import HANGS

# Runs a script with this package, and whatever else is named first, out of reach.
ALONE = """
import runpy, sys
sys.modules |= dict.fromkeys(["neat_backend", *sys.argv[1].split()])
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def take_out(labelled: Labelled, target: Path, **given: Any) -> dict[str, Any]:
    return export_model(labelled.settings, labelled.database, PROJECT, target, **given)


def alone(folder: Path, *command: str, without: str = "") -> str:
    """A fresh Python process somewhere else, in which neither this package nor those named can be imported."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, without, *command],
        cwd=folder,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def content(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
