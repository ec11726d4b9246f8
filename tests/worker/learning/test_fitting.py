"""When the linear head is fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neat_backend.errors import StoreError
from neat_backend.records import Label
from neat_backend.store import prequential
from neat_backend.store.arrays import ProjectArrays
from neat_backend.worker.steps import learning as learning_module
from neat_backend.worker.steps.learning import LONGEST_HOLD_SECONDS, SHARE
from tests.conftest import Clock
from tests.living import Backend, engine_of, label, settled, state
from tests.worker.learning.made import CLASSES, Made


def fits(patch: pytest.MonkeyPatch, clock: Clock | None = None, seconds: float = 0.0) -> list[int]:
    """How many labels each head was fitted to; each fit takes so long."""
    seen: list[int] = []
    fit = learning_module.fit_head

    def counted(features: Any, codes: Any, classes: Any) -> Any:
        seen.append(len(codes))
        if clock is not None:
            clock.now += seconds
        return fit(features, codes, classes)

    patch.setattr(learning_module, "fit_head", counted)
    return seen


def test_a_head_is_fitted_once_to_what_is_new(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = fits(monkeypatch)
    assert made.step()
    assert not made.step()
    made.label(0, 1, 2)
    assert made.learning.is_behind()
    assert made.step()
    assert (made.learning.event, made.learning.is_behind()) == (1, False)
    made.take([Label(9, set_aside="skipped")])  # no label
    made.take([Label(0, "cat")])  # nor a new one
    assert not made.step()
    made.take([Label(0)])
    assert made.step()
    made.engine.remove_tasks([1, 30])
    assert made.step()
    assert seen == [0, 3, 2, 1]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, True),
        ({"classifier": "resnet18"}, True),  # the balance asks how likely a task is of a known class
        ({"classifier": "resnet18", "balance": False}, False),
        ({"classifier": "resnet18", "rerank": "round"}, False),
        ({"rerank": "round"}, True),
        ({"classifier": "linear", "balance": False}, True),
    ],
)
def test_no_head_is_fitted_where_nothing_asks_for_it(
    fields: dict[str, Any], wanted: bool, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, seen = Made(tmp_path, clock, **fields), fits(monkeypatch)
    made.label(0, 1, 2)
    made.step()
    made.label(3)
    assert made.learning.is_behind() == made.learning.holds() == wanted
    made.step()
    assert seen == ([3, 4] if wanted else [])
    assert (made.engine.linear is not None) == wanted
    assert len(made.learning.tested.right) == 3  # the labels are tests all the same


def test_in_a_large_pool_fitting_takes_a_tenth_of_a_core(
    made: Made, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning_module, "LARGE_POOL", 59)
    seen = fits(monkeypatch, clock, seconds=2.0)
    clock.now = 100.0
    began, task = clock.now, 0
    while clock.now < began + 200:
        made.label(task % 50, choice=CLASSES[task // 50 % 2])
        assert not made.learning.holds()  # nobody waits for it
        made.step()
        clock.now += 0.25
        task += 1
    spent = 2.0 * len(seen) / (clock.now - began)
    assert SHARE * 0.9 <= spent <= SHARE * 1.1
    clock.now += 20
    assert made.step()
    assert not made.learning.is_behind(), "the last labels are not forgotten"


def test_a_pool_that_is_not_large_is_learnt_at_once(made: Made, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_module, "LARGE_POOL", 60)
    seen = fits(monkeypatch, clock, seconds=2.0)
    for task in range(5):
        made.label(task)
        assert made.step()
    assert seen == [1, 2, 3, 4, 5]


def test_an_order_waits_for_the_head_of_its_labels_but_not_for_ever(made: Made, clock: Clock) -> None:
    made.step()
    assert not made.learning.holds()
    made.label(0)
    assert made.learning.holds()
    clock.now += LONGEST_HOLD_SECONDS - 0.01
    made.label(1)  # another label doesn't make it longer
    assert made.learning.holds()
    clock.now += 0.01
    assert not made.learning.holds()
    for task in range(2, 6):
        made.label(task)
        clock.now += 0.3
        assert not made.learning.holds(), "and goes on while the head is behind"
    made.step()
    assert not made.learning.holds()
    clock.now += 100
    made.label(6)
    assert made.learning.holds(), "anew once it has caught up"


def test_a_disk_that_is_full_keeps_nothing_from_being_learnt(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StoreError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(made.arrays, "write_snapshot", full)
        for task in range(6):
            made.label(task)
            with pytest.raises(StoreError):
                made.step()
            assert not made.learning.is_behind()
    assert made.engine.linear is not None
    assert not made.step()  # but what was not written is
    head = prequential.read_head(made.arrays)
    assert head is not None
    np.testing.assert_array_equal(head["weights"], made.engine.linear.weights)
    assert prequential.read(made.arrays).tested == made.learning.tested.tested == 4


def test_a_project_is_taken_up_on_a_disk_that_is_full(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    live = settled(backend)
    label(backend, live, "dog", "cat", "invalid")

    def full(*_: object) -> None:
        raise StoreError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(ProjectArrays, "write_snapshot", full)
        again = backend.live()
    assert engine_of(again).linear is not None
    assert state(again) == state(live)


def test_a_head_is_no_longer_in_force_when_its_labels_are_taken_back(made: Made) -> None:
    before = made.engine.ranking()
    made.label(0, 1, 2)
    made.step()
    made.take([Label(task) for task in range(3)])
    made.step()
    after = made.engine.ranking()
    for name in vars(before):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name), err_msg=name)
