"""When a step is due again: no moment is lost that passes while the step works, or before it is asked."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from neat_backend.labelstudio.publisher import UNCERTAINTY
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.method import Method
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.records import Ranked
from neat_backend.store.arrays import ProjectArrays
from neat_backend.worker.steps.columns import SHORTEST_REST_SECONDS, Columns
from neat_backend.worker.steps.data_manager import LOOK_SECONDS, Tabs
from neat_backend.worker.steps.insight import Insights
from neat_backend.worker.steps.step import Step
from tests.conftest import Clock
from tests.living import context_of, label_studio_of

Moments = Callable[[], Iterable[float]]
HEAD = [Ranked(1, 0, 0.9, 6.3, 2, True, "dog"), Ranked(2, 0, 0.8, 6.1, 2, True, "cat")]


class Only(Step):
    """A step of this one work."""

    def __init__(self, work: Callable[[], bool], moments: Moments, clock: Clock) -> None:
        self._does, self._at, self._clock = work, moments, clock

    def _work(self) -> bool:
        return self._does()

    def moments(self) -> Iterable[float]:
        return self._at()


@pytest.mark.parametrize(
    ("now", "moments", "seconds"),
    [
        (10.0, (), math.inf),
        (10.0, (9.0, 10.0), math.inf),  # the step has seen these
        (10.0, (12.0, 11.0, 9.0), 1.0),
        (11.5, (9.0, 11.0, 12.0), 0.0),  # 11 has passed since
    ],
)
def test_the_first_moment_after_the_decision_counts(
    clock: Clock, now: float, moments: tuple[float, ...], seconds: float
) -> None:
    clock.now = 10.0
    step = Only(lambda: False, lambda: moments, clock)
    assert not step.step()
    clock.now = now
    assert step.wait_seconds(False) == seconds
    assert step.wait_seconds(True) == 0


def test_a_change_of_the_tabs_that_had_to_wait_is_due_though_its_time_came_after_the_look(
    tmp_path: Path, clock: Clock
) -> None:
    tabs = Tabs(context_of(tmp_path, label_studio_of()), clock)
    tabs.step(UNCERTAINTY, [])
    step = Only(lambda: tabs.step(UNCERTAINTY, [3]), tabs.moments, clock)
    assert not step.step()
    assert 0 < step.wait_seconds(False) < LOOK_SECONDS
    clock.now += step.wait_seconds(False)
    assert step.wait_seconds(False) == 0
    assert step.step()


def test_a_column_that_had_to_wait_is_due_though_its_time_came_after_the_look(tmp_path: Path, clock: Clock) -> None:
    columns = Columns(context_of(tmp_path, label_studio_of()), clock)
    step = Only(lambda: columns.step(HEAD), columns.moments, clock)
    assert step.step()
    assert not step.step()
    clock.now += SHORTEST_REST_SECONDS
    assert step.wait_seconds(False) == 0
    assert step.step()


def test_a_view_waits_for_the_rest_of_no_other_one(tmp_path: Path) -> None:
    class SlowClock(Clock):
        """Each look at it takes a second, so each view rests for many."""

        def __call__(self) -> float:
            self.now += 1
            return self.now

    clock = SlowClock()
    engine = Engine(8, ("dog", "cat"), Method(k=5, batch_size=10))
    engine.add_tasks(np.arange(1, 41), np.eye(8, dtype=np.float32)[np.arange(40) % 8])
    made = Insights(ProjectArrays(tmp_path, 7), SharedEngine(engine), "features/test", 0, clock=clock)
    written = 0
    while made.step():
        written += 1
        assert made.wait_seconds(True) == 0
    assert written >= 2
    assert made.wait_seconds(False) > 1
