"""The demo's loop with several versions of Label Studio, each in an environment of its own: `make compatibility`.

For each version: install it, connect a project, label 20 tasks, and count how often the task that Label Studio served
was the one ranked first. Environments are deleted afterwards, but with --keep.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from neat_backend.labelstudio.inspection import SEEN_TO_WORK
from tools.install_matrix import uv

LABELS, IMAGES = 20, 60
LIMIT_SECONDS = 1800.0
# Old releases (1.13.1 for one) import pkg_resources, which newer setuptools no longer has, without a bound on it.
OLD, WITH_OLD = (1, 20), ("setuptools<81",)


@dataclass
class Row:
    """Results of one version."""

    version: str
    served_first: int = 0
    labels: int = 0
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error and self.served_first == self.labels == LABELS


def try_out(version: str, python: str, folder: Path) -> Row:
    """folder: keeps the environment."""
    row = Row(version)
    environment = folder / version / "venv"
    program = environment / "bin/label-studio"
    try:
        if not program.is_file():
            _run([uv(), "venv", "--quiet", "--python", python, str(environment)])
            is_old = tuple(map(int, version.split(".")[:2])) < OLD
            packages = (f"label-studio=={version}", *(WITH_OLD if is_old else ()))
            _run([uv(), "pip", "install", "--quiet", "--python", str(environment / "bin/python"), *packages])
        with tempfile.TemporaryDirectory() as place:
            words = ["demo", "--images", str(IMAGES), "--annotate", str(LABELS), "--exit", "--json", "--folder", place]
            said = _run([sys.executable, "-m", "neat_backend.cli", *words], NEAT_LABEL_STUDIO=str(program))
        shown = json.loads(said)
        row.labels, row.served_first = shown["annotations"], shown["served_first"]
    except subprocess.CalledProcessError as error:
        row.error = f"{error.cmd[0]}: status {error.returncode}: {error.stderr[-1500:].strip()}"
    except subprocess.TimeoutExpired as error:
        row.error = f"{error.cmd[0]}: not done after {LIMIT_SECONDS:.0f} s"
    return row


def _run(words: Sequence[str], **variables: str) -> str:
    """Run a command; returns its output."""
    done = subprocess.run(
        words, env=os.environ | variables, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=True
    )
    return done.stdout


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.compatibility", description=__doc__.split("\n")[0])
    parser.add_argument("--versions", default=",".join(SEEN_TO_WORK))
    parser.add_argument("--python", default=sys.executable, help="what Label Studio's environments are made with")
    parser.add_argument("--keep", type=Path, help="a folder for the environments, used again the next time")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(words)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="compatibility-"))
    rows = []
    try:
        for version in options.versions.split(","):
            rows.append(try_out(version, options.python, folder.absolute()))
            said = rows[-1].error or f"{rows[-1].served_first} of {rows[-1].labels} served were the first of the order"
            print(f"Label Studio {version}: {said}", file=sys.stderr, flush=True)
            if options.keep is None:
                shutil.rmtree(folder / version, ignore_errors=True)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps([asdict(row) | {"ok": row.ok} for row in rows], indent=2))
    return 0 if all(row.ok for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
