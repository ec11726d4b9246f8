"""The current order, for Label Studio and for the web."""

from __future__ import annotations

from collections.abc import Sequence

from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.records import Ranked
from neat_backend.store import projects
from neat_backend.store.snapshots import Head
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.followed import Followed
from neat_backend.worker.steps.learning import LARGE_POOL, Learning
from neat_backend.worker.steps.planning import Planning, Unplanned, in_this_order
from neat_backend.worker.steps.publishing import Order
from neat_backend.worker.steps.query_rounds import Rounds
from neat_backend.worker.steps.shown_state import ShownState


class CurrentOrder:
    """The order to serve: live, by a plan, or with NEAT_RERANK=round the rest of the round's fixed batch.

    Its cost does not depend on the pool's size. Call all methods with the engine's lock held.
    """

    def __init__(
        self,
        context: Context,
        engine: SharedEngine,
        followed: Followed,
        plan: Planning | Unplanned,
        learning: Learning,
        rounds: Rounds,
        state: ShownState,
        batch: Sequence[int] = (),
    ) -> None:
        """batch: the fixed batch of the previous process."""
        self.settings = context.settings
        self._engine, self._followed, self._plan, self._learning = engine, followed, plan, learning
        self._rounds, self._state = rounds, state
        self._batch = list(batch)
        self._batch_of = self._of_batch()

    def state(self) -> tuple[object, ...]:
        """The state that determines an order: the engine's version, the last event applied, and the rest."""
        followed = self._followed
        with self._engine() as engine:
            now = (engine.version, followed.applied, self._plan.version, self._learning.event, self._rounds.ended)
            return (*now, followed.sampling, self._state.bulk)

    def is_connected(self) -> bool:
        """Whether Label Studio has confirmed the connection."""
        return self._followed.connected

    def holds(self) -> bool:
        """Whether to wait: there is nothing to serve yet, or a better order soon."""
        return not self._followed.connected or self._learning.holds()

    def order(self, published: int) -> Order:
        """The order to serve; published: the last event that the served order reflects."""
        with self._engine() as engine:
            head, reflects = self._head(), self._followed.applied
            if self._plan.is_behind():
                reflects = min(reflects, self._plan.event)
            if len(engine) <= LARGE_POOL and self._learning.is_behind():
                reflects = min(reflects, self._learning.event)
            live = self.settings.rerank == "live" and isinstance(self._plan, Unplanned)
            return Order(
                head,
                reflects,
                self._followed.sampling,
                # New images may wait for each other; an answer that is not served yet may not.
                hold=self._state.bulk == projects.EMBEDDING and self._followed.answered <= published,
                version=engine.head_version if live else None,
            )

    def shown(self, order: Order, features: str, left: tuple[int, ...]) -> Head:
        """The order for the web. features: their kind. left: tasks of the written ranking that have left the pool."""
        with self._engine() as engine:
            counts = engine.counts()
            return Head(
                order.head,
                engine.classes,
                counts.known,
                counts.invalid,
                counts.unlabelled,
                self._followed.applied,
                left=left,
                features=features,
                without_label=engine.without_label(),
            )

    def _of_batch(self) -> tuple[object, ...]:
        with self._engine() as engine:
            return self._rounds.ended, engine.classes

    def _head(self) -> list[Ranked]:
        if self.settings.rerank == "live":
            return self._plan.head()
        if self._batch_of != self._of_batch():
            self._batch, self._batch_of = [], self._of_batch()
        with self._engine() as engine:
            left = engine.unlabelled(self._batch)
            self._batch = [task for task in self._batch if task in left]
            if self._batch:
                ranked = engine.ranked(self._batch)
                first = sorted(ranked, key=lambda one: (-one.priority, one.task))
                # Labels change priorities, and Label Studio sorts by them; keep the batch's order after a restart.
                same = first == ranked and isinstance(self._plan, Unplanned)
                return ranked if same else in_this_order(ranked)
            best = self._plan.head()
        if self._state.bulk == projects.READY and not self._plan.is_behind():  # else the batch is not fixed yet
            self._batch = [ranked.task for ranked in best]
        return best
