"""The classifier in force: tested by each label before it learns it, fitted after it, chosen by what the tests say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from neat_backend.errors import StoreError
from neat_backend.grid import to_grid
from neat_backend.ranking import cover
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.scores import INVALID
from neat_backend.ranking.shared import SharedEngine
from neat_backend.records import Label, Ranked, Round
from neat_backend.store import prequential, rounds
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.prequential import RIGHT, SILENT, WINDOW, WRONG
from neat_backend.strategies import neat
from neat_backend.worker.live import LiveProject
from neat_backend.worker.steps import learning as learning_module
from neat_backend.worker.steps.learning import LONGEST_HOLD_SECONDS, SHARE, Learning, source
from tests.conftest import Clock
from tests.fake_label_studio import FakeLabelStudio
from tests.living import PROJECT, Backend, FakeTraining, context_of, engine_of, label_studio_of, settle, state, take_in

CLASSES = ("cat", "dog")
DIM = 8


def leading(learning: Learning) -> str:
    return source(learning.choice, learning.tested)


class Made:
    """An engine and what learns beside it: task t is a cat, a dog or neither by t % 3."""

    def __init__(self, folder: Path, clock: Clock, n: int = 60, **fields: Any) -> None:
        context = context_of(folder, **fields)
        self.arrays, balanced = context.arrays, context.settings.balanced
        rng = np.random.default_rng(0)
        leads = source(context.settings.classifier, prequential.read(self.arrays))
        self.engine = Engine(DIM, CLASSES, k=3, batch_size=4, balance=balanced, source=leads)
        self.shared = SharedEngine(self.engine)
        self.learning = Learning(context, self.shared, lambda: self.event, self._network_again, clock)
        self.engine.add_tasks(range(n), to_grid(np.eye(DIM)[np.arange(n) % 3] + 0.1 * rng.normal(size=(n, DIM))))
        self.network: NDArray[np.float32] = np.zeros((0, 2), np.float32)  # of each task
        self.event = 0

    def label(self, *tasks: int, choice: str = "") -> None:
        """As they are, or all like that."""
        self.take([Label(t, *truth(t)) if not choice else Label(t, choice) for t in tasks])

    def take(self, labels: Sequence[Label]) -> None:
        with self.shared():
            self.learning.test(self.engine, labels)
            self.engine.set_labels(labels)
            self.event += 1

    def step(self) -> bool:
        return self.learning.step()

    def train(self, predicted: Sequence[int]) -> None:
        """The network's round is over: it is 90 % sure of these classes."""
        self.network = np.where(np.eye(2)[list(predicted)] > 0, 0.9, 0.1).astype(np.float32)
        self._network_again()

    def _network_again(self) -> None:
        self.engine.set_probabilities(range(len(self.network)), self.network, CLASSES)

    def predicted(self) -> list[int]:
        return self.engine.ranking().predicted.tolist()


def truth(task: int) -> tuple[str | None, bool]:
    return (CLASSES[task % 3], False) if task % 3 < 2 else (None, True)


@pytest.fixture
def made(tmp_path: Path, clock: Clock) -> Made:
    return Made(tmp_path, clock)


# predict, then learn


def test_a_label_tests_each_before_any_of_them_learns_it(made: Made) -> None:
    made.step()
    made.label(0)
    assert made.learning.tested.right.tolist() == [[SILENT, SILENT, SILENT]]  # nothing is known yet
    made.label(2)
    made.step()  # cats and what is neither: a head
    assert made.engine.says([1])["linear"].tolist() == [CLASSES.index("cat")]
    made.label(1)  # the first dog: its neighbours are labelled cat and neither
    assert made.learning.tested.right[-1].tolist() == [SILENT, WRONG, WRONG]
    made.step()
    assert made.engine.says([4])["linear"].tolist() == [CLASSES.index("dog")]
    made.train([CLASSES.index("dog")] * 60)
    made.label(4)
    assert made.learning.tested.right[-1].tolist() == [RIGHT, RIGHT, WRONG]  # a cat, a dog: a tie is the first one's
    made.label(3)
    assert made.learning.tested.right[-1, :2].tolist() == [WRONG, RIGHT]
    assert made.learning.tested.tested == 4
    assert [made.learning.tested.counts(name) for name in ("resnet18", "linear")] == [(1, 2), (2, 3)]


def test_labels_that_come_together_are_all_tested_before_the_first_is_learnt(made: Made) -> None:
    made.label(0, 2)
    made.step()
    made.label(1, 4, 7)
    assert made.learning.tested.right[-3:, 1:].tolist() == [[WRONG, WRONG]] * 3
    assert made.engine.says([10])["vote"].tolist() == [CLASSES.index("dog")]


def test_what_is_no_new_label_of_a_known_class_tests_nothing(made: Made) -> None:
    made.label(0, 1, 3, 4)
    made.step()
    before = made.learning.tested
    made.label(2, 5)  # invalid
    made.label(0, 1)  # said again
    made.label(0, choice="dog")  # changed
    made.take([Label(6, set_aside="skipped")])  # skipped
    made.take([Label(7, "owl")])  # none of the classes
    made.take([Label(1000, "cat")])  # not embedded yet
    made.take([Label(3)])  # taken back
    assert made.learning.tested is before
    assert (before.tested, len(before.right)) == (4, 4)


def test_the_last_hundred_count(tmp_path: Path, clock: Clock) -> None:
    made = Made(tmp_path, clock, n=200)
    made.train((np.arange(200) % 2).tolist())  # right on about half of them
    given = [task for task in np.random.default_rng(1).permutation(200).tolist() if task % 3 < 2]
    expected = []
    for number, task in enumerate(given):
        said = {name: values[0] for name, values in made.engine.says([task]).items()}
        expected.append([SILENT if at < 0 else int(at == task % 3) for at in said.values()])
        made.label(task)
        if number % 10 == 0:
            made.step()
    assert made.learning.tested.right.tolist() == expected[-WINDOW:]
    assert made.learning.tested.tested == len(given) > WINDOW == 100


def test_what_was_tested_outlives_a_restart(made: Made, tmp_path: Path, clock: Clock) -> None:
    made.label(*range(40))
    made.step()
    again = Made(tmp_path, clock).learning
    np.testing.assert_array_equal(again.tested.right, made.learning.tested.right)
    assert replace(again.tested, right=made.learning.tested.right) == made.learning.tested
    assert leading(again) == leading(made.learning) == "linear"


def test_a_head_that_was_fitted_is_there_for_others_to_read(made: Made) -> None:
    made.step()
    assert prequential.read_head(made.arrays) is None
    made.label(*range(20))
    made.step()
    found = prequential.read_head(made.arrays)
    assert found is not None
    assert made.engine.linear is not None
    assert found["classes"] == CLASSES
    np.testing.assert_array_equal(found["weights"], made.engine.linear.weights)


# which one leads


def results(network: int = 0, linear: int = 0, both: int = 0, neither: int = 0, silent: int = 0) -> NDArray[np.int8]:
    """Labels on which the network alone was right, the linear classifier alone, …; silent: without a network."""
    rows = [(RIGHT, WRONG)] * network + [(WRONG, RIGHT)] * linear + [(RIGHT, RIGHT)] * both
    rows += [(WRONG, WRONG)] * neither + [(SILENT, RIGHT)] * silent
    return np.array([(*row, SILENT) for row in rows], np.int8).reshape(-1, 3)


def in_force(made: Made, **counts: int) -> str:
    """Which classifier leads after one look at such tests."""
    made.learning.tested = replace(made.learning.tested, right=results(**counts))
    made.step()
    assert made.engine.source == made.learning.tested.in_force == leading(made.learning)
    return made.engine.source


def test_auto_begins_with_the_linear_one_and_goes_over_to_one_that_is_clearly_ahead(made: Made) -> None:
    made.train([1] * 60)
    assert in_force(made) == "linear"
    assert in_force(made, network=5, both=14) == "linear", "19 labels are too few"
    assert in_force(made, network=4, both=40) == "linear", "4 is not more than twice the root of 4"
    assert in_force(made, network=9, linear=3, both=40) == "linear", "nor 6 than twice the root of 12"
    assert in_force(made, network=10, both=9, silent=60) == "linear", "what one did not speak on is no comparison"
    assert in_force(made, network=5, both=15) == "resnet18"
    assert in_force(made, neither=80) == "resnet18", "nothing speaks for a change"
    assert in_force(made, linear=9, network=3, both=40) == "resnet18", "nor this, not clearly"
    assert in_force(made, linear=12, network=3, both=40) == "linear"


def test_two_that_are_equally_good_do_not_take_turns(made: Made) -> None:
    rng = np.random.default_rng(0)
    right = np.where(rng.random((1500, 2)) < 0.75, RIGHT, WRONG)
    right = np.column_stack([right, np.full(1500, SILENT)]).astype(np.int8)
    made.train([1] * 60)
    seen, ahead = [], []
    for end in range(20, 1500):
        last = right[max(0, end - WINDOW) : end]
        made.learning.tested = replace(made.learning.tested, right=last)
        made.step()
        seen.append(made.engine.source)
        ahead.append(last[:, 0].sum() > last[:, 1].sum())
    assert np.count_nonzero(np.diff(ahead)) > 50, "whoever has more changes all the time"
    assert sum(one != two for one, two in pairwise(seen)) <= 5


def test_the_one_in_force_gives_probabilities_and_predicted_classes(made: Made) -> None:
    made.train([1] * 60)
    made.label(*range(6))
    assert in_force(made) == "linear"
    linear = made.predicted()
    assert set(linear) == {0, 1}
    chance = made.engine.ranking().known_chance
    assert in_force(made, network=20) == "resnet18"
    assert made.predicted() == [1] * 54
    np.testing.assert_array_equal(made.engine.ranking().known_chance, chance, "the head says that, whoever leads")
    assert in_force(made, linear=20) == "linear"
    assert made.predicted() == linear


@pytest.mark.parametrize(("choice", "better"), [("resnet18", {"linear": 50}), ("linear", {"network": 50})])
def test_a_choice_in_the_settings_is_obeyed_whoever_is_better(
    choice: str, better: dict[str, int], tmp_path: Path, clock: Clock
) -> None:
    made = Made(tmp_path, clock, classifier=choice)
    made.train([1] * 60)
    made.label(*range(6))
    assert in_force(made, **better) == choice
    assert (set(made.predicted()) == {1}) == (choice == "resnet18")
    assert made.learning.tested.why.startswith(f"NEAT_CLASSIFIER={choice}; ")


def test_why_says_it_in_words(made: Made) -> None:
    made.train([1] * 60)
    made.step()
    assert made.learning.tested.why == "too few labels to compare"
    assert in_force(made, network=12, both=10, neither=3, silent=5) == "resnet18"
    assert made.learning.tested.why == (
        "on the last labels, before learning them, right were ResNet-18 on 22 of 25, the linear classifier on 15 of 30"
    )


def test_a_choice_that_was_taken_back_leaves_the_one_that_was_in_force(tmp_path: Path, clock: Clock) -> None:
    Made(tmp_path, clock, classifier="resnet18").step()
    assert Made(tmp_path, clock).engine.source == "resnet18"  # until the tests say otherwise


# the head


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


# in a live project


@pytest.fixture
def server() -> FakeLabelStudio:
    return label_studio_of(40)


def backend_of(tmp_path: Path, server: FakeLabelStudio, **fields: Any) -> Any:
    return closing(Backend(tmp_path, server, **fields))


@pytest.fixture
def backend(tmp_path: Path, server: FakeLabelStudio) -> Iterator[Backend]:
    with backend_of(tmp_path, server) as made:
        yield made


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[FakeTraining]:
    monkeypatch.setattr("neat_backend.worker.steps.rounds.TrainingProcess", FakeTraining)
    FakeTraining.running.clear()
    return FakeTraining.running


def settled(backend: Backend) -> LiveProject:
    live = backend.live()
    settle(live)
    return live


def label(backend: Backend, live: LiveProject, *choices: str, first: int = 1) -> int:
    """The last event."""
    for task, choice in enumerate(choices, first):
        event = backend.deliver(backend.server.annotate(task, choice))
    take_in(live)
    return event


def recorded(backend: Backend) -> list[Round]:
    with backend.database.read() as conn:
        return rounds.all(conn, PROJECT)


def test_each_webhook_is_a_test_before_it_is_learnt_and_a_restart_knows_of_it(
    backend: Backend, trainings: list[FakeTraining]
) -> None:
    live = settled(backend)
    label(backend, live, "dog", "cat", "invalid", "dog")
    live.rounds.step()
    trainings[0].succeed()
    live.rounds.step()
    for task, choice in ((5, "cat"), (6, "dog"), (7, "invalid"), (8, "cat")):
        said = engine_of(live).says([task])
        before = live.learning.tested
        label(backend, live, choice, first=task)
        if choice == "invalid":
            assert live.learning.tested is before
        else:
            at = engine_of(live).classes.index(choice)
            assert live.learning.tested.right[-1].tolist() == [int(one[0] == at) for one in said.values()]
    again = backend.live()
    assert again.learning.tested.right.tolist() == live.learning.tested.right.tolist()
    assert again.learning.tested.tested == 6
    take_in(again)
    assert again.learning.tested.tested == 6, "labels that are read again are not new"
    assert state(again) == state(live)


def test_labels_that_were_there_at_the_first_reading_test_nothing(tmp_path: Path) -> None:
    server = label_studio_of(20, annotated=["dog", "cat", "dog", "invalid"])
    with backend_of(tmp_path, server) as backend:
        assert settled(backend).learning.tested.tested == 0


@pytest.mark.parametrize("leads", ["linear", "resnet18"])
def test_a_restart_gives_the_order_of_the_one_that_was_in_force(
    backend: Backend, trainings: list[FakeTraining], leads: str
) -> None:
    live = settled(backend)
    label(backend, live, "dog", "cat", "invalid", "dog")
    live.rounds.step()
    trainings[0].succeed()
    live.rounds.step()
    right = results(**{"network" if leads == "resnet18" else "linear": 30})
    live.learning.tested = replace(live.learning.tested, right=right)
    take_in(live)
    settle(live)
    assert engine_of(live).source == leads
    again = backend.live()
    assert engine_of(again).source == leads
    assert state(again) == state(live)
    take_in(again)
    assert state(again) == state(live)


def test_with_the_linear_one_nothing_is_trained_and_rounds_count_all_the_same(
    tmp_path: Path, server: FakeLabelStudio, trainings: list[FakeTraining]
) -> None:
    with backend_of(tmp_path, server, classifier="linear") as backend:
        live = settled(backend)
        label(backend, live, "dog", "cat", "invalid", "dog")
        assert live.rounds.step()
        assert not live.rounds.step()
        label(backend, live, "cat", "dog", "dog", "cat", first=5)
        right, of = live.learning.tested.counts("linear")
        assert of > 0
        assert live.rounds.step()
        assert trainings == []
        assert not live.rounds.is_busy()
        one, two = recorded(backend)
        assert (one.state, one.trigger, one.known, one.invalid, one.queried, one.queried_known) == (
            "done",
            "batch",
            3,
            1,
            4,
            3,
        )
        assert (two.state, two.known, two.invalid, two.queried, two.queried_known) == ("done", 7, 1, 4, 4)
        assert (two.held_out, two.held_out_correct) == (of, right)
        assert two.held_out_accuracy == right / of
        settle(live)
        assert not live.is_busy()
        again = settled(backend)
        assert not again.rounds.step()
        assert state(again) == state(live)


def test_a_round_that_the_database_refused_is_not_half_on_record(
    tmp_path: Path, server: FakeLabelStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    with backend_of(tmp_path, server, classifier="linear") as backend:
        live = settled(backend)
        label(backend, live, "dog", "cat", "invalid", "dog")

        def full(*_: object, **__: object) -> None:
            raise StoreError("the database is full")

        with monkeypatch.context() as patch:
            patch.setattr("neat_backend.worker.steps.rounds.rounds.finish", full)
            with pytest.raises(StoreError):
                live.rounds.step()
        assert recorded(backend) == []
        assert live.rounds.step()
        assert [r.state for r in recorded(backend)] == ["done"]


def test_in_round_mode_a_round_of_the_linear_one_ends_the_batch(
    tmp_path: Path, server: FakeLabelStudio, trainings: list[FakeTraining]
) -> None:
    with backend_of(tmp_path, server, classifier="linear", rerank="round") as backend:
        live = settled(backend)
        batch = server.served(PROJECT)
        assert len(batch) == 8
        for number, task in enumerate(batch[:4]):
            backend.deliver(server.annotate(task, ("dog", "cat", "invalid")[number % 3]))
            settle(live)
            assert server.served(PROJECT) == batch[number + 1 :]
        assert live.rounds.step()
        settle(live)
        assert server.served(PROJECT) == engine_of(live).head() != batch[4:]


# the paper, to the letter


def paper_order(engine: Engine) -> dict[int, tuple[int, float, float]]:
    """What sorts the unlabelled tasks: Eq. 5 among those whose K nearest labels are all known, then known neighbours.

    Eq. 5 to six digits: equal ones may come in any order.
    """
    ids = sorted(engine.tasks())
    features = engine.features(ids).astype(np.float64)
    labels, c = engine.labels(), len(engine.classes)
    at = [place for place, task in enumerate(ids) if task in labels]
    codes = [
        INVALID if labels[ids[place]].invalid else engine.classes.index(labels[ids[place]].choice or "") for place in at
    ]
    found = {}
    for place, task in enumerate(ids):
        if task in labels:
            continue
        near = np.argsort(-(features[at] @ features[place]), kind="stable")[: engine.k]
        votes = np.zeros(c)
        for code in (codes[one] for one in near):
            if code >= 0:
                votes[code] += 1
        said = engine._probabilities[engine._table.rows([task])[0]].astype(np.float64)
        inconsistency = -(said * np.log(np.exp(votes) / np.exp(votes).sum())).sum()
        is_candidate = votes.sum() == engine.k
        known = 0 if is_candidate else -float(votes.sum())
        found[task] = (-1 if is_candidate else 0, known, -round(float(inconsistency), 6))
    return found


def test_a_fixed_batch_by_resnet18_is_the_papers(
    tmp_path: Path, server: FakeLabelStudio, trainings: list[FakeTraining], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("nothing is fitted")

    monkeypatch.setattr(learning_module, "fit_head", never)
    choices = ("dog", "cat", "dog", "cat", "invalid", "dog", "cat", "dog", "invalid", "cat", "dog", "cat")
    with backend_of(tmp_path, server, rerank="round", classifier="resnet18", k=3) as backend:
        live = settled(backend)
        label(backend, live, *choices)
        live.rounds.step()
        trainings[0].succeed()
        live.rounds.step()
        settle(live)
        engine = engine_of(live)
        keys, order = paper_order(engine), engine.head(100)
        assert sorted(order) == sorted(keys)
        assert [keys[task] for task in order] == sorted(keys.values())
        assert server.served(PROJECT) == order[: 2 * engine.batch_size]
        assert prequential.read_head(live.context.arrays) is None
        ranking = engine.ranking()
        assert 0 < ranking.candidate.sum() < len(ranking.ids)
        assert (ranking.queue == -1).all()
        assert (ranking.known_chance == 1).all()

        ids, pool = engine.pool(10**6)
        assert pool is not None
        chosen = ids[neat.select(pool, len(order), np.random.default_rng(0))].tolist()
        assert [keys[task] for task in chosen] == sorted(keys.values())
        assert len(set(keys.values())) > len(keys) / 2


# publishing


def test_publishing_waits_for_the_head_but_not_for_ever(backend: Backend, clock: Clock) -> None:
    live = settled(backend)
    live.learning._clock = clock
    published = len(backend.server.called("import_predictions"))
    task = backend.server.served(PROJECT)[1]
    event = backend.deliver(backend.server.annotate(task, "dog"))
    live.apply.step()
    for _ in range(3):
        assert not live.publish.step()
        clock.now += LONGEST_HOLD_SECONDS / 3 - 0.01
    assert len(backend.server.called("import_predictions")) == published
    assert live.is_busy()
    clock.now += 0.1
    live.publish.step()
    served = backend.server.served(PROJECT)
    assert task not in served
    assert served[:4] == engine_of(live).head()[: len(served)][:4]
    assert backend.project().published_event != event, "that order is not of the label yet"
    assert live.learning.step()
    assert live.publish.step()
    assert backend.project().published_event == event
    assert not live.is_busy()


def test_a_head_that_is_fitted_after_all_is_told_of_though_the_order_was_published_meanwhile(
    backend: Backend, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the head's last word on the tasks and the note that it was the last."""
    live = settled(backend)
    live.learning._clock = clock
    event = backend.deliver(backend.server.annotate(1, "dog"))
    live.apply.step()
    assert not live.publish.step()
    clock.now += 10
    apply = live.learning._apply

    def meanwhile(*args: Any) -> None:
        apply(*args)
        live.publish.step()

    with monkeypatch.context() as patch:
        patch.setattr(live.learning, "_apply", meanwhile)
        live.learning.step()
    assert backend.project().published_event < event
    assert live.publish.step()
    assert backend.project().published_event == event


def test_what_is_shown_and_written_rests_when_all_is_learnt(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    live = settled(backend)
    label(backend, live, "dog", "cat", "invalid")
    settle(live)

    def never(*_: object) -> None:
        raise AssertionError("there was nothing to write")

    monkeypatch.setattr(live.context.arrays, "write_snapshot", never)
    for _ in range(3):
        assert not live.learning.step()
        assert live.publish.step()


# the first order


class Reader:
    """What stands for an encoder's reading: a text is like the picture of a task, as little as they are."""

    def __init__(self, live: LiveProject, pictures: dict[str, int]) -> None:
        self.pictures, self.engine = pictures, engine_of(live)
        self.asked: list[list[str]] = []

    def __call__(self, names: Sequence[str]) -> NDArray[np.float32]:
        self.asked.append(list(names))
        anything = np.zeros(self.engine.features([1]).shape[1], np.float32)
        like = [self.engine.features([self.pictures[n]])[0] if n in self.pictures else anything for n in names]
        return np.float32(0.05) * np.stack(like)


def with_hints(dog: str, cat: str) -> str:
    return (
        '<View><Image name="image" value="$image"/><Choices name="class" toName="image">'
        f'<Choice value="dog" hint="{dog}"/><Choice value="cat" hint="{cat}"/><Choice value="invalid"/>'
        "</Choices></View>"
    )


def ranked(live: LiveProject) -> list[Ranked]:
    return engine_of(live).ranked(engine_of(live).head(100))


def test_names_lead_the_first_order_and_a_hint_stands_in_for_a_name(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cover, "MOST", 2)  # of 40 tasks, two are there to find what no name tells of
    live = settled(backend)
    reader = Reader(live, {"dog": 5, "cat": 9, "a hound": 21, "owl": 30})
    monkeypatch.setattr(backend.encoder, "encode_names", reader)
    again = settled(backend)
    assert reader.asked[-1] == ["dog", "cat", "thing"]

    def first(choice: str) -> Ranked:
        return next(one for one in ranked(again) if one.queue == choice)

    assert (first("dog").task, first("cat").task) == (5, 9)
    assert first("dog").predicted == "dog"
    chances = {one.task: one.known_chance for one in ranked(again)}
    assert min(chances[5], chances[9]) > np.median(list(chances.values()))
    assert set(backend.server.served(PROJECT)[:4]) >= {5, 9}

    backend.deliver(backend.server.change_project(PROJECT, label_config=with_hints("a hound", "")))
    settle(again)
    assert reader.asked[-1] == ["a hound", "cat", "thing"]
    assert (first("dog").task, first("cat").task) == (21, 9)
    assert state(settled(backend)) == state(again)


def test_labels_have_the_word_as_soon_as_they_tell_anything_apart(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = settled(backend)
    monkeypatch.setattr(backend.encoder, "encode_names", Reader(live, {"dog": 5, "cat": 9}))
    live = settled(backend)
    named = engine_of(live).linear
    assert named is not None
    label(backend, live, "cat")
    assert engine_of(live).linear is not None
    np.testing.assert_array_equal(engine_of(live).linear.weights, named.weights)
    label(backend, live, "dog", first=2)
    assert engine_of(live).linear is not None
    assert engine_of(live).linear.unknown is False  # fitted to a cat and a dog


def test_without_names_the_first_order_is_spread_over_the_pool_whatever_it_is_sorted_by(backend: Backend) -> None:
    live = settled(backend)
    engine = engine_of(live)
    assert engine.linear is None
    ids = np.array(sorted(engine.tasks()))
    assert engine.head(40) == engine.spread(ids, engine.features).tolist()
    assert {one.queue for one in ranked(live)} == {None}
