"""Times from labels to the new order and to its being served."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

from neat_backend.store import measures
from neat_backend.store.measures import Measures

MOST_UNSERVED = 10_000  # batches of events that are timed until they are served


class LabelTimes:
    """Times one project's labels; call all but `served` with the engine's lock held."""

    def __init__(self, kept: Measures) -> None:
        self._kept = kept
        self._rerank_seconds = 0.0  # spent on labels since the head was last computed
        self._unserved: deque[tuple[int, datetime]] = deque(maxlen=MOST_UNSERVED)  # events with labels, their arrival

    @contextmanager
    def taking_labels(self) -> Iterator[None]:
        """Time applying labels."""
        began = time.perf_counter()
        yield
        self._rerank_seconds += time.perf_counter() - began

    @contextmanager
    def looking_at_head(self) -> Iterator[None]:
        """Time computing the head after them."""
        began = time.perf_counter()
        yield
        if self._rerank_seconds:
            self._kept.observe(measures.RERANK, self._rerank_seconds + time.perf_counter() - began)
            self._rerank_seconds = 0.0

    def arrived(self, event: int, received_at: datetime) -> None:
        """Record that the engine has the events up to this one; the first with a label arrived at that time."""
        self._unserved.append((event, received_at))

    def served(self, event: int) -> None:
        """Record that the served order reflects the inbox up to this event."""
        now = datetime.now(timezone.utc)
        while self._unserved and self._unserved[0][0] <= event:
            self._kept.observe(measures.SERVE, (now - self._unserved.popleft()[1]).total_seconds())
