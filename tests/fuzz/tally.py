"""What was sent, what came back, and how long it took at most."""

from __future__ import annotations

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
LIMIT_SECONDS = 10.0  # of a processor, for one request, label config or image
SHOWN = 20  # failures


@dataclass
class Tally:
    """Counts by kind and outcome; failures are what must not be."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    slowest: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    failures: list[str] = field(default_factory=list)

    def count(self, kind: str, outcome: str) -> None:
        self.counts[kind][outcome] += 1

    def fail(self, words: str) -> None:
        self.failures.append(words)

    def timed(self, kind: str, what: Callable[[], object], do: Callable[[], T]) -> T:
        """Run `do`; more than LIMIT_SECONDS of this thread's processor time is a failure."""
        began = time.thread_time()
        try:
            return do()
        finally:
            took = time.thread_time() - began
            self.slowest[kind] = max(self.slowest[kind], took)
            if took > LIMIT_SECONDS:
                self.fail(f"{kind}: {took:.1f} s for {what()!r:.500}")

    def answered(self, kind: str, status: int, what: str) -> None:
        """Count an answer. 5xx is a failure."""
        self.count(kind, f"{status // 100}xx")
        if status >= 500:
            self.fail(f"{kind}: {status} for {what:.2000}")

    def summary(self) -> str:
        lines = []
        for kind, counted in self.counts.items():
            outcomes = ", ".join(f"{outcome} {counted[outcome]:,}" for outcome in sorted(counted))
            lines.append(f"{kind}: {counted.total():,} ({outcomes}); slowest {self.slowest[kind] * 1000:.0f} ms")
        answers = [counted for kind, counted in self.counts.items() if kind.startswith("requests")]
        requests, faults = sum(one.total() for one in answers), sum(one["5xx"] for one in answers)
        lines.append(f"requests in all: {requests:,}, 5xx = {faults}; failures = {len(self.failures)}")
        lines += [f"  {words}" for words in self.failures[:SHOWN]]
        return "\n".join(lines)


@contextmanager
def tracebacks(tally: Tally, of: str) -> Iterator[None]:
    """A traceback in the log of this package is a failure of ours, whatever was answered."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:
                text = logging.Formatter().formatException(record.exc_info)
                tally.fail(f"{of}: {record.getMessage()}: …{text[-1500:]}")

    handler, log = Handler(), logging.getLogger("neat_backend")
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
