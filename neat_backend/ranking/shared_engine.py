"""An engine shared by several threads: reading or changing it takes its lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from neat_backend.ranking.engine import Engine


class SharedEngine:
    """Gives one thread at a time access to the engine: `with shared() as engine:`. Hold it for milliseconds only.

    on_change: called after an access that has changed the engine, with the lock held.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.RLock()
        self._depth = 0  # of accesses within each other
        self._seen = self._versions()
        self.on_change: Callable[[], None] = lambda: None

    @contextmanager
    def __call__(self) -> Iterator[Engine]:
        with self._lock:
            self._depth += 1
            try:
                yield self._engine
            finally:
                self._depth -= 1
                if self._depth == 0:
                    self._tell()

    def _tell(self) -> None:
        versions = self._versions()
        if versions != self._seen:
            self._seen = versions
            self.on_change()

    def _versions(self) -> tuple[int, int, int]:
        engine = self._engine
        return engine.version, engine.training_version, engine.pool_version
