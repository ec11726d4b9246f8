"""When a step is due again: no moment is lost that passes while the step works, or before it is asked."""

from __future__ import annotations

import math
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
from neat_backend.worker.steps.step import until_first
from tests.conftest import Clock
from tests.living import context_of, label_studio_of

HEAD = [Ranked(1, 0, 0.9, 6.3, 2, True, "dog"), Ranked(2, 0, 0.8, 6.1, 2, True, "cat")]


@pytest.mark.parametrize(
    ("now", "moments", "seconds"),
    [
        (10.0, (), math.inf),
        (10.0, (9.0, 10.0), math.inf),  # the step has seen these
        (10.0, (12.0, 11.0, 9.0), 1.0),
        (11.5, (9.0, 11.0, 12.0), 0.0),  # 11 has passed since
    ],
)
def test_the_first_moment_after_the_decision_counts(now: float, moments: tuple[float, ...], seconds: float) -> None:
    assert until_first(10.0, now, *moments) == seconds


def test_a_change_of_the_tabs_that_had_to_wait_is_due_though_its_time_came_after_the_look(
    tmp_path: Path, clock: Clock
) -> None:
    tabs = Tabs(context_of(tmp_path, label_studio_of()), clock)
    tabs.step(UNCERTAINTY, [])
    assert not tabs.step(UNCERTAINTY, [3])
    assert 0 < tabs.due_seconds() < LOOK_SECONDS
    clock.now += tabs.due_seconds()
    assert tabs.due_seconds() == 0
    assert tabs.step(UNCERTAINTY, [3])


def test_a_column_that_had_to_wait_is_due_though_its_time_came_after_the_look(tmp_path: Path, clock: Clock) -> None:
    columns = Columns(context_of(tmp_path, label_studio_of()), clock)
    assert columns.step(HEAD)
    assert not columns.step(HEAD)
    clock.now += SHORTEST_REST_SECONDS
    assert columns.due_seconds() == 0
    assert columns.step(HEAD)


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
