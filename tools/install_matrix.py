"""Install the wheel in a fresh environment for each Python and installer, and use it there: `make install-matrix`.

Each environment is deleted before the next is made. What is checked in one:

- `neat-backend --version` says the version of this source;
- `neat-backend demo` with a real Label Studio: `serve` answers /health, ranks the images, takes the webhook of a
  label, and Label Studio serves the task that the new ranking has first;
- the environment's size on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from neat_backend import __version__

ROOT = Path(__file__).parents[1]
LABEL_STUDIO = ROOT / ".label-studio/venv/bin/label-studio"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
LIMIT_SECONDS = 3600.0
IMAGES = 50


@dataclass
class Row:
    """Results of one environment."""

    python: str  # as the interpreter says it
    installer: str
    install_seconds: float = 0.0
    megabytes: int = 0  # on disk, with Python's own environment
    version: str = ""
    served_first: bool = False  # after a webhook, Label Studio serves what the ranking has first
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error and self.version == __version__ and self.served_first


def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.is_file() else shutil.which("uv") or "uv"


def with_pip(python: str, package: Path, folder: Path) -> Path:
    _run([python, "-m", "venv", str(folder)])
    _run([str(folder / "bin/python"), "-m", "pip", "install", "--quiet", str(package)])
    return folder / "bin"


def with_uv(python: str, package: Path, folder: Path) -> Path:
    _run([uv(), "venv", "--quiet", "--python", python, str(folder)])
    _run([uv(), "pip", "install", "--quiet", "--python", str(folder / "bin/python"), str(package)])
    return folder / "bin"


def with_uv_tool(python: str, package: Path, folder: Path) -> Path:
    places = {"UV_TOOL_DIR": str(folder / "tools"), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    _run([uv(), "tool", "install", "--quiet", "--python", python, str(package)], **places)
    return folder / "bin"


INSTALLERS: dict[str, Callable[[str, Path, Path], Path]] = {"pip": with_pip, "uv": with_uv, "uv-tool": with_uv_tool}


def try_out(python: str, installer: str, package: Path, label_studio: Path) -> Row:
    """python: an interpreter's path."""
    row = Row(_run([python, "-c", "import platform; print(platform.python_version())"]), installer)
    with tempfile.TemporaryDirectory(prefix="install-matrix-") as place:
        folder = Path(place, "environment")
        try:
            began = time.monotonic()
            program = str(INSTALLERS[installer](python, package.absolute(), folder) / "neat-backend")
            row.install_seconds = round(time.monotonic() - began, 1)
            row.megabytes = int(_run(["du", "-sm", str(folder)]).split()[0])
            row.version = _run([program, "--version"])
            words = [
                program,
                "demo",
                "--pictures",
                "digits",
                "--images",
                str(IMAGES),
                "--annotate",
                "1",
                "--exit",
                "--json",
            ]
            shown = json.loads(_run(words, cwd=place, NEAT_LABEL_STUDIO=str(label_studio.absolute())))
            row.served_first = shown["annotations"] == 1 and shown["order_ok"]
        except subprocess.CalledProcessError as error:
            row.error = f"{error.cmd[0]}: status {error.returncode}: {error.stderr[-800:].strip()}"
        except subprocess.TimeoutExpired as error:
            row.error = f"{error.cmd[0]}: not done after {LIMIT_SECONDS:.0f} s"
    return row


def _run(words: Sequence[str], cwd: str | None = None, **variables: str) -> str:
    """Run a command without variables that would let it import from this source tree; returns its output."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        words, cwd=cwd, env=kept | variables, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=True
    )
    return done.stdout.strip()


def as_table(rows: Sequence[Row]) -> str:
    lines = ["| Python | installer | MB on disk | seconds to install | works |", "|---|---|---:|---:|---|"]
    for row in rows:
        works = "yes" if row.ok else row.error or "no"
        lines.append(f"| {row.python} | {row.installer} | {row.megabytes:,} | {row.install_seconds:.0f} | {works} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.install_matrix", description=__doc__.split("\n")[0])
    parser.add_argument("--package", type=Path, help="wheel or source archive; default: a wheel is built")
    parser.add_argument("--pythons", default=",".join(PYTHONS), help="versions, found on the PATH or by uv")
    parser.add_argument("--installers", default=",".join(INSTALLERS), help="some of pip, uv, uv-tool")
    parser.add_argument("--label-studio", type=Path, default=LABEL_STUDIO, help="its `label-studio` program")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(words)
    rows = []
    with tempfile.TemporaryDirectory() as out:
        package = options.package
        if package is None:
            _run([uv(), "build", "--quiet", "--wheel", "--out-dir", out, str(ROOT)])
            (package,) = Path(out).glob("*.whl")
        for version in options.pythons.split(","):
            python = find_python(version)
            if python is None:
                print(f"Python {version}: not on this machine, left out", file=sys.stderr)
                continue
            for installer in options.installers.split(","):
                rows.append(try_out(python, installer, package, options.label_studio))
                print(as_table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(json.dumps([asdict(row) | {"ok": row.ok} for row in rows], indent=2) if options.json else as_table(rows))
    return 0 if rows and all(row.ok for row in rows) else 1


def find_python(version: str) -> str | None:
    """The path of an interpreter of that version, or None; none is downloaded."""
    found = shutil.which(f"python{version}")
    if found:
        return found
    try:
        return _run([uv(), "python", "find", "--no-python-downloads", version])
    except subprocess.CalledProcessError:
        return None


if __name__ == "__main__":
    sys.exit(main())
