"""An engine shared by several threads: reading or changing it takes its lock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from neat_backend.ranking.engine import Engine


class SharedEngine:
    """Gives one thread at a time access to the engine: `with shared() as engine:`. Hold it for milliseconds only."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.RLock()

    @contextmanager
    def __call__(self) -> Iterator[Engine]:
        with self._lock:
            yield self._engine
