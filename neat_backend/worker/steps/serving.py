"""Publishing the order's head to Label Studio, and writing head and ranking for the web process."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from neat_backend.errors import LeaseLost
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.store.snapshots import Head
from neat_backend.worker.steps.publishing import Order, Publishing
from neat_backend.worker.steps.reranking import CurrentOrder
from neat_backend.worker.steps.shown_state import ShownOrder
from neat_backend.worker.steps.step import Step
from neat_backend.worker.steps.timing import LabelTimes
from neat_backend.worker.steps.wanted import Wanted

CONNECT_SECONDS = 0.5  # between checks whether the connection has been confirmed


class Serving(Step):
    """Publishes one project's order; `step` from one thread."""

    name = "publish"
    again_at_once = False

    def __init__(
        self,
        engine: SharedEngine,
        current: CurrentOrder,
        publishing: Publishing,
        shown: ShownOrder,
        times: LabelTimes,
        wanted: Wanted,
        features: str,
        lease_may_be_over: Callable[[], bool],
    ) -> None:
        """features: the kind of their arrays."""
        self._engine, self._current, self._publishing = engine, current, publishing
        self._shown, self._times, self._wanted = shown, times, wanted
        self._features, self._lease_may_be_over = features, lease_may_be_over
        self._done: tuple[object, ...] = ()  # the state that the last step completed
        self._looked_at: tuple[object, ...] = ()  # the state that the two fields below were computed from
        self.order = Order([], -1, "")
        self._shows = Head([], (), 0, 0, 0, -1)
        self._wait_seconds = 0.0  # until what is left may be done

    def _work(self) -> bool:
        """Publish and show the present order; True if nothing is left to do for it."""
        self._wait_seconds = 0.0
        with self._engine() as engine:
            if self._current.holds():
                self._wait_seconds = 0.0 if self._current.is_connected() else CONNECT_SECONDS
                return False
            version, state = engine.version, self._state()
            if state == self._done and self._shown.is_written(version):
                return True
            if state != self._looked_at:  # else this order waits for its time
                with self._times.looking_at_head():
                    self.order = self._current.order(self._publishing.event)
                    self._shows = self._current.shown(self.order, self._features, self._shown.left())
                self._looked_at = state
            order, shows = self.order, self._shows
        served = self._serve(order, shows, state == self._done)
        if served:
            self._publishing.reflects(order.event)
            self._times.served(order.event)
            self._done = state
        return served and self._shown.is_written(version)

    def wait_seconds(self, done: bool) -> float:
        return math.inf if done else self._wait_seconds

    def changes_files(self, done: bool) -> bool:
        return True

    def is_busy(self) -> bool:
        with self._engine() as engine:
            return self._done[:2] != self._state()[:2] or not self._shown.is_written(engine.version)

    def _state(self) -> tuple[object, ...]:
        return (*self._current.state(), self._publishing.forgotten)

    def _serve(self, order: Order, shows: Head, served: bool) -> bool:
        """Publish the order, unless it is served already, and show it; True if it is served."""
        ours, waits = True, False
        try:
            served = served or self._publishing.step(order, self._left_pool)
            # Labels are shown at once; other changes (a round) are shown when they are served, which is soon.
            waits = not served and not order.hold and self._shown.reflects(shows.event)
        except LeaseLost:
            ours = False  # another worker writes the shown order now
            raise
        finally:
            if ours and not waits and not self._lease_may_be_over():
                self._shown.show(shows, self._publishing.version)
            if self._publishing.vanished:
                self._publishing.vanished.clear()
                self._wanted.read_again()
        return served

    def _left_pool(self, served: Sequence[int]) -> set[int]:
        with self._engine() as engine:
            return set(served) - engine.unlabelled(served)
