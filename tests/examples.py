"""The distributions of examples/, installed for a test: built, unpacked, and first on the path."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.waiting import HANGS

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def built(source: Path, kind: str, out: Path) -> Path:
    """The archive that `kind`, a hook such as build_wheel, makes of a source folder, which it leaves files in."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(out)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=HANGS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


def install(name: str, folder: Path) -> Path:
    """Make a folder for the path with what `pip install examples/NAME` would put into an environment."""
    source = shutil.copytree(EXAMPLES / name, folder / "source" / name)
    site = folder / "site"
    with zipfile.ZipFile(built(source, "build_wheel", folder)) as wheel:
        wheel.extractall(site)
    return site
