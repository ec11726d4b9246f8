"""The engine as several threads use it: whoever reads or changes it holds its lock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from neat_backend.ranking.engine import Engine


class SharedEngine:
    """`with shared() as engine:` is the only way to the engine; it is held for milliseconds, and by one thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.RLock()

    @contextmanager
    def __call__(self) -> Iterator[Engine]:
        with self._lock:
            yield self._engine
