"""The classifier in force: which one gives probabilities and predicted classes, and why.

`resnet18` is trained after each round (rounds.py). `linear`, logistic regression on the encoder's features, is fitted
here after every label, in milliseconds; it also predicts how likely a task is of a known class at all. Each label of a
known class first tests both, and the neighbours' vote, and is then learnt. `auto` puts the classifier in force that was
right more often on the last labels.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from neat_backend.ranking.engine import Engine
from neat_backend.ranking.linear import fit_head, name_head
from neat_backend.ranking.linear_head import LinearHead
from neat_backend.ranking.method import Method
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.ranking.views import Source
from neat_backend.records import Label
from neat_backend.settings import Settings
from neat_backend.store import prequential
from neat_backend.store.prequential import PREDICTORS, RIGHT, SHOWN_FROM, SILENT, WINDOW, WRONG, Prequential
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.step import Step

log = logging.getLogger(__name__)

LARGE_POOL = 100_000  # tasks; in larger pools a head is fitted as often as SHARE of a core allows
SHARE = 0.1
LONGEST_HOLD_SECONDS = 1.0  # longest wait of an order for the head of its labels
CLEARLY = 2.0  # lead needed to come into force, in standard deviations of a fair coin
NAMES: dict[str, str] = {"resnet18": "ResNet-18", "linear": "the linear classifier", "vote": "the neighbours' vote"}


def source(choice: str, tested: Prequential) -> Source:
    """The classifier in force. choice: NEAT_CLASSIFIER; tested: each classifier's results."""
    named = choice if choice != "auto" else tested.in_force
    return cast(Source, named) if named in ("linear", "resnet18") else "linear"


def head_is_wanted(settings: Settings) -> bool:
    """Whether anything needs the linear head; the paper's order, by ResNet-18, does not."""
    return settings.balanced or settings.classifier != "resnet18"


def engine_settings(settings: Settings, tested: Prequential) -> dict[str, Any]:
    """Keyword arguments of `Engine`, without `large`. tested: results of the classifiers on past labels."""
    return {
        "method": Method(
            settings.k,
            settings.known_rule,
            settings.batch_size,
            settings.seed,
            balance=settings.balanced,
            skip_duplicates=settings.skip_duplicates and settings.duplicate_similarity > 0,
            random_share=settings.random_share,
        ),
        "source": source(settings.classifier, tested),
        "device": settings.device,
    }


class Learning(Step):
    """One project's classifiers. Call `test` before applying labels, with the engine's lock; `step` from one thread.

    wanted: see `head_is_wanted`.
    """

    name = "learn"

    def __init__(
        self,
        context: Context,
        engine: SharedEngine,
        event: Callable[[], int] = lambda: -1,
        network_again: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """event: the last event that the engine has applied. network_again: sets the network's probabilities in the
        engine after the network has come into force; called with the lock held."""
        settings = context.settings
        self.project, self.arrays = context.project, context.arrays
        self._engine, self._applied, self._network_again = engine, event, network_again
        self.choice: Literal["auto", "resnet18", "linear"] = settings.classifier
        self.wanted = head_is_wanted(settings)
        self.event = -1  # the last event that the head reflects
        # Classes, and features [C + 1, d] of their names and of "thing", where the encoder reads text.
        self._names: tuple[tuple[str, ...], Callable[[], NDArray[np.float32] | None]] = (), lambda: None
        self.tested = prequential.read(self.arrays)
        self._clock = clock
        self._written = self.tested
        self._head: tuple[LinearHead | None, ...] = ()  # the head fitted last; empty before the first fit
        self._written_head: tuple[LinearHead | None, ...] = self._head
        self._named = 0  # how often the names have changed
        self._of = (-1, 0)  # versions of the training data and of the names that the head was fitted to
        self._free_at = 0.0
        self._behind_since: float | None = None

    def test(self, engine: Engine, labels: Sequence[Label]) -> None:
        """Test each classifier on new labels. Call it with the engine's lock held, before the engine has them."""
        given = {one.task: one.choice for one in labels if one.choice in engine.classes}
        new = sorted(engine.unlabelled(given))
        if not new:
            return
        truth = np.array([engine.classes.index(given[task] or "") for task in new])
        said = engine.predictions(new)
        columns = [np.where(said[name] < 0, SILENT, np.where(said[name] == truth, RIGHT, WRONG)) for name in PREDICTORS]
        right = np.concatenate([self.tested.right, np.stack(columns, axis=1).astype(np.int8)])[-WINDOW:]
        self.tested = replace(self.tested, right=right, tested=self.tested.tested + len(new))

    def name_classes(self, classes: tuple[str, ...], features: Callable[[], NDArray[np.float32] | None]) -> None:
        """Set the classes' names and what gives their features, which give the order before there are labels."""
        self._names = classes, features
        self._named += 1

    def is_behind(self) -> bool:
        """Whether there are labels that the head was not fitted to."""
        with self._engine() as engine:
            return self.wanted and (engine.training_version, self._named) != self._of

    def is_busy(self) -> bool:
        return self.is_behind()

    def wait_seconds(self, done: bool) -> float:
        return max(0.0, self._free_at - self._clock()) if self.is_behind() else math.inf

    def holds(self) -> bool:
        """Whether the order should wait for a head that is nearly ready."""
        with self._engine() as engine:
            large = len(engine) > LARGE_POOL
        if large or not self.is_behind():
            self._behind_since = None
            return False
        now = self._clock()
        self._behind_since = now if self._behind_since is None else self._behind_since
        return now - self._behind_since < LONGEST_HOLD_SECONDS

    def _work(self) -> bool:
        """Fit the head to new labels, choose the classifier in force, write both; True if anything changed."""
        changed = self.catch_up()
        self._write()  # last: a full disk must not prevent the fit
        return changed

    def catch_up(self) -> bool:
        """As `step`, without writing."""
        changed = self._choose()
        if not self.is_behind() or self._clock() < self._free_at:
            return changed
        began = self._clock()
        self.event = self.fit()
        with self._engine() as engine:
            large = len(engine) > LARGE_POOL
        if large:
            now = self._clock()
            self._free_at = now + (now - began) * (1 / SHARE - 1)
        return True

    def fit(self) -> int:
        """Fit the head to all labels; returns the last event that it reflects."""
        with self._engine() as engine:
            of, reflects = (engine.training_version, self._named), self._applied()
            _, codes, features = engine.training_data()
            classes, (named, names) = engine.classes, self._names
        head = fit_head(features, codes, classes)
        if head is None and named == classes:
            features_of_names = names()  # not before they are needed: the encoder may have to be loaded
            head = None if features_of_names is None else name_head(features_of_names, classes)
        self._apply(head)
        self._head, self._of = (head,), of
        return reflects

    def _apply(self, head: LinearHead | None) -> None:
        """Apply the head a block at a time, so that labels can be applied in between."""
        with self._engine() as engine:
            steps = engine.set_linear(head)
        more = True
        while more:
            with self._engine():
                more = next(steps, steps) is not steps

    def _choose(self) -> bool:
        with self._engine() as engine:
            before = engine.source
            source, why = self._ahead(before)
            if (source, why) != (self.tested.in_force, self.tested.why):
                self.tested = replace(self.tested, in_force=source, why=why)
            if source == before:
                return False
            engine.set_source(source)
            if source == "resnet18":
                self._network_again()
            linear = engine.linear
        log.info("project %d: %s is in force now: %s", self.project, NAMES[source], why)
        if source == "linear":
            self._apply(linear)
        return True

    def _ahead(self, before: Source) -> tuple[Source, str]:
        """The classifier to put in force, and why, in words."""
        tested = self.tested
        counts = {name: tested.counts(name) for name in PREDICTORS}
        score = ", ".join(
            f"{NAMES[name]} on {right} of {of}" for name, (right, of) in counts.items() if of >= SHOWN_FROM
        )
        score = (
            f"on the last labels, before learning them, right were {score}" if score else "too few labels to compare"
        )
        if self.choice != "auto":
            return self.choice, f"NEAT_CLASSIFIER={self.choice}; {score}"
        both = tested.right[(tested.right[:, :2] != SILENT).all(axis=1)]
        network, linear = (int(((both[:, at] == RIGHT) & (both[:, 1 - at] == WRONG)).sum()) for at in (0, 1))
        if len(both) >= SHOWN_FROM and abs(network - linear) > CLEARLY * math.sqrt(network + linear):
            return ("resnet18" if network > linear else "linear"), score
        return before, score

    def _write(self) -> None:
        tested = self.tested
        if tested is not self._written:
            prequential.write(self.arrays, tested)
            self._written = tested
        fitted = self._head
        if fitted is not self._written_head:
            prequential.write_head(self.arrays, None if fitted[0] is None else vars(fitted[0]))
            self._written_head = fitted
