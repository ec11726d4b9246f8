"""`python -m benchmarks gpu`: all that is claimed of a GPU, in one command of bounded time.

`python -m benchmarks.gpu` is the same where typer is missing. Each part is a process of its own, which keeps what it
has measured in a file; a part that fails, hangs or lacks a library does not end the others.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SHARES = {"machine": 6, "rerank": 14, "encode": 12, "faiss": 5, "train": 25, "paper": 38}  # of the time
KEPT_SECONDS = 5  # of a part's time for its end
AIMS = {
    "machine": "",
    "rerank": "no neighbour missed; a label in about the time of one half-precision product",
    "encode": "ours at least 0.8 of the bare model in half precision at its best batch",
    "faiss": "the same neighbours as an exact search",
    "train": "at least 8 times the plain loop on the same GPU, same accuracy",
    "paper": "at most 3 minutes",
}


class Part:
    """One part while it runs: its sizes, its time, and what it has measured."""

    def __init__(self, name: str, file: Path, *, small: bool, seconds: float, device: str) -> None:
        self.small, self.device = small, device
        self._file, self._ends = file, time.monotonic() + seconds - KEPT_SECONDS
        self._found: dict[str, Any] = {"status": "cut", "aim": AIMS[name]}
        self.note({})

    def left(self) -> float:
        """Seconds left for measuring."""
        return self._ends - time.monotonic()

    def note(self, figures: Mapping[str, Any]) -> None:
        """Keep figures in the file at once, whatever happens next."""
        self._found |= figures
        write(self._file, self._found)

    def noted(self, name: str) -> Any:
        """What was kept under a name."""
        return self._found.get(name)

    def try_to_note(self, name: str, measure: Callable[[], Any], least_seconds: float = 0.0) -> None:
        """Keep what `measure` gives; or why it gives nothing: too little time, a missing library, an error."""
        if self.left() < least_seconds:
            self.note({name: f"skipped: {self.left():.0f} s are left, it needs {least_seconds:.0f}"})
            return
        try:
            found = measure()
        except ImportError as error:
            found = f"skipped: {error}"
        except Exception as error:  # the next measurement may do
            traceback.print_exc()
            found = f"failed: {reason(error)}"
        self.note({name: found})


def gpu(
    parts: str = ",".join(SHARES),
    small: bool = False,
    minutes: float = 8.0,
    out: str = "",
    device: str = "auto",
) -> None:
    """All benchmarks that want a GPU, within some minutes, each against the plain alternative on the same GPU.

    Figures go to `gpu.json` in the folder `--out` (default: the variable OUT, else `data`), part by part: `machine`
    (what is there and what is missing), `rerank`, `encode`, `faiss`, `train`, `paper`. `--minutes` are divided over
    the parts; one that takes longer is ended and keeps what it has measured. A part whose libraries are missing says so
    and is left out. `--small` tries all of it on a CPU in minutes; its figures mean nothing.

    Without typer: `python -m benchmarks.gpu`, with the same options.

    Example: python -m benchmarks gpu --small --minutes 5 --out /tmp/tried
    """
    wanted = [name.strip() for name in parts.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in SHARES]
    if unknown or not wanted:
        raise SystemExit(f"--parts {parts!r}: some of {', '.join(SHARES)}")
    folder = Path(out or os.environ.get("OUT") or "data")
    folder.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * minutes
    done: dict[str, Any] = {"bench": "gpu", "small": small, "minutes": minutes, "parts": {}}
    for number, name in enumerate(wanted):
        share = SHARES[name] / sum(SHARES[each] for each in wanted[number:])
        seconds = (ends - time.monotonic()) * share
        began = time.monotonic()
        figures = _in_a_process(name, folder, small, seconds, device)
        figures["seconds"] = round(time.monotonic() - began, 1)
        done["parts"][name] = figures
        write(folder / "gpu.json", done)
        print(f"\n{name}: {json.dumps(figures, indent=2)}", flush=True)
    print(f"\n{folder / 'gpu.json'}", flush=True)


def _in_a_process(name: str, folder: Path, small: bool, seconds: float, device: str) -> dict[str, Any]:
    file = folder / f"gpu-{name}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--one", name, "--out", str(folder), "--device", device]
    command += ["--seconds", str(seconds), *(["--small"] if small else [])]
    # A session of its own, so that the processes that a part starts end with it.
    process = subprocess.Popen(command, start_new_session=True)
    ended = ""
    try:
        code = process.wait(max(seconds, 1.0))
        ended = f"ended with status {code}" if code else ""
    except subprocess.TimeoutExpired:
        ended = f"cut after {seconds:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        found = {"aim": AIMS[name]}
    if ended:
        found["status"] = ended
    file.unlink(missing_ok=True)
    return found


def _one(name: str, folder: Path, *, small: bool, seconds: float, device: str) -> None:
    """Measure one part, in this process."""
    part = Part(name, folder / f"gpu-{name}.json", small=small, seconds=seconds, device=device)
    try:
        from benchmarks.gpu_parts import PARTS

        PARTS[name](part)
    except ImportError as error:
        part.note({"status": f"skipped: {error}"})
    except Exception as error:
        traceback.print_exc()
        part.note({"status": f"failed: {reason(error)}"})
    else:
        part.note({"status": "done"})


def reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def write(file: Path, found: Mapping[str, Any]) -> None:
    """Write JSON so that a reader never sees a part of it."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=2) + "\n")
    os.replace(temporary, file)


def main() -> None:
    """The command line without typer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(gpu.__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", default=",".join(SHARES))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", default="")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--one", choices=list(SHARES), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        folder = Path(given.out)
        _one(given.one, folder, small=given.small, seconds=given.seconds, device=given.device)
    else:
        gpu(given.parts, given.small, given.minutes, given.out, given.device)


if __name__ == "__main__":
    main()
