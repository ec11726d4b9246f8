"""How long labels take, to the new order and to the annotators."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone

from neat_backend.store import measures
from neat_backend.store.measures import Measures

MOST_UNSERVED = 10_000  # batches of events whose way to the annotators is timed


class LabelTimes:
    """Of one project; with the engine's lock held, `served` apart."""

    def __init__(self, kept: Measures) -> None:
        self._kept = kept
        self._rerank_seconds = 0.0  # spent on labels since the head was last looked at
        self._unserved: deque[tuple[int, datetime]] = deque(maxlen=MOST_UNSERVED)  # events with labels, their arrival

    @contextmanager
    def taking_labels(self) -> Iterator[None]:
        """Meanwhile labels are taken in."""
        began = time.perf_counter()
        yield
        self._rerank_seconds += time.perf_counter() - began

    @contextmanager
    def looking_at_head(self) -> Iterator[None]:
        """Meanwhile the head is worked out that follows from them."""
        began = time.perf_counter()
        yield
        if self._rerank_seconds:
            self._kept.observe(measures.RERANK, self._rerank_seconds + time.perf_counter() - began)
            self._rerank_seconds = 0.0

    def arrived(self, event: int, received_at: datetime) -> None:
        """The events up to this one are in the engine; the first that told of a label came at that time."""
        self._unserved.append((event, received_at))

    def served(self, event: int) -> None:
        """Annotators are served what the inbox told up to this event."""
        now = datetime.now(timezone.utc)
        while self._unserved and self._unserved[0][0] <= event:
            self._kept.observe(measures.SERVE, (now - self._unserved.popleft()[1]).total_seconds())
