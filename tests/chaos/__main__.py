"""`make chaos`, or `python -m tests.chaos --seed 1 --minutes 9 --kills 200 --events 5000 --database postgresql`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):  # a forked process has none of its parent's threads
    os.environ[variable] = "1"

POSTGRES = os.environ.get("NEAT_TEST_POSTGRES_URL", "postgresql+psycopg://root@127.0.0.1:5432/test")


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))
    from tests.chaos.nursery import Nursery, preload

    preload()
    nursery = Nursery()  # before anything here has a thread
    from tests.chaos.campaign import Plan, remove, run

    began = time.monotonic()

    def say(words: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {words}", file=sys.stderr, flush=True)

    folder = Path(options.folder or tempfile.mkdtemp(prefix="neat-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    plan = Plan(**{name: value for name, value in vars(options).items() if name in Plan.__dataclass_fields__})
    report = run(plan, nursery, folder, POSTGRES, say)
    nursery.close()
    print(report.to_json() if options.json else _in_words(report))
    if report.passed and not options.folder:
        remove(folder)
    else:
        say(f"log and data are in {folder}")
    return 0 if report.passed else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=8.0, help="that the events are spread over; add the waiting")
    parser.add_argument("--events", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--faults", type=int, help="default: a fifth of the kills")
    parser.add_argument("--stretches", type=int, default=5, help="each ends with a comparison")
    parser.add_argument("--tasks", type=int, default=400, help="in the project when it is connected")
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--late", type=float, default=12.0, help="seconds that a webhook is late at most")
    parser.add_argument("--no-trainings", dest="trainings", action="store_false", help="they take most of the time")
    parser.add_argument("--folder", help="for log and data, kept; default: a temporary one, kept if it fails")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.faults is None:
        options.faults = options.kills // 5
    return options


def _in_words(report: object) -> str:
    from dataclasses import asdict

    lines = []
    for name, value in asdict(report).items():  # type: ignore[call-overload]
        if isinstance(value, dict):
            total = f"{sum(value.values())}: " if name not in ("plan", "starts") else ""
            value = total + ", ".join(
                f"{count} {what}" if total else f"{what} {count}" for what, count in value.items()
            )
        elif isinstance(value, list):
            value = "; ".join(map(str, value)) or "none"
        lines.append(f"{name.replace('_', ' '):18} {value}")
    lines.append("passed" if report.passed else "FAILED")  # type: ignore[attr-defined]
    return "\n".join(lines)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the thread pools of what was preloaded may keep a process from ending
