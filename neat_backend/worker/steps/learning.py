"""The classifier in force: which one gives probabilities and predicted classes, and why.

`resnet18` is trained after each round (rounds.py). `linear`, logistic regression on the encoder's features, is fitted
here after every label, in milliseconds, and says besides how likely a task is of a known class at all. Each label of a
known class is a test of both, and of the neighbours' vote, before any of them learns it; `auto` has the one in force
that was right more often on the last labels.
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
from neat_backend.ranking.shared import SharedEngine
from neat_backend.ranking.views import Source
from neat_backend.records import Label
from neat_backend.settings import Settings
from neat_backend.store import prequential
from neat_backend.store.prequential import RIGHT, SHOWN_FROM, SILENT, SPEAKERS, WINDOW, WRONG, Prequential
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.step import Step

log = logging.getLogger(__name__)

LARGE_POOL = 100_000  # tasks; beyond them a head is fitted as often as SHARE of a core allows
SHARE = 0.1
LONGEST_HOLD_SECONDS = 1.0  # that an order may wait for the head of its labels
CLEARLY = 2.0  # standard deviations of a fair coin that one has to be ahead by, to come into force
NAMES: dict[str, str] = {"resnet18": "ResNet-18", "linear": "the linear classifier", "vote": "the neighbours' vote"}


def source(choice: str, tested: Prequential) -> Source:
    """The classifier in force. choice: NEAT_CLASSIFIER; tested: what each was right on."""
    named = choice if choice != "auto" else tested.in_force
    return cast(Source, named) if named in ("linear", "resnet18") else "linear"


def head_is_wanted(settings: Settings) -> bool:
    """Whether anything needs the linear head; the paper's own order, by ResNet-18, does not."""
    return settings.balanced or settings.classifier != "resnet18"


def method(settings: Settings, tested: Prequential) -> dict[str, Any]:
    """The settings of an engine that decide its order, as `Engine` takes them. tested: what each was right on."""
    return {
        "k": settings.k,
        "rule": settings.known_rule,
        "batch_size": settings.batch_size,
        "seed": settings.seed,
        "device": settings.device,
        "balance": settings.balanced,
        "source": source(settings.classifier, tested),
    }


class Learning(Step):
    """Of one project. `test` before labels are taken in, with the engine's lock held; `step` from one thread.

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
        """event: the last one that the engine has taken in. network_again: gives the engine the network's
        probabilities, with the lock held, after it has come into force."""
        settings = context.settings
        self.project, self.arrays = context.project, context.arrays
        self._engine, self._applied, self._network_again = engine, event, network_again
        self.choice: Literal["auto", "resnet18", "linear"] = settings.classifier
        self.wanted = head_is_wanted(settings)
        self.event = -1  # the last one that the head reflects
        # Classes, and features [C + 1, d] of their names and of "thing", where the encoder reads text.
        self._names: tuple[tuple[str, ...], NDArray[np.float32] | None] = ((), None)
        self.tested = prequential.read(self.arrays)
        self._clock = clock
        self._written = self.tested
        self._head: tuple[LinearHead | None, ...] = ()  # the one that was fitted last, once there was a fit
        self._written_head: tuple[LinearHead | None, ...] = self._head
        self._named = 0  # how often the names have changed
        self._of = (-1, 0)  # what the engine had been taught, and the names, when the head was fitted
        self._free_at = 0.0
        self._behind_since: float | None = None

    def test(self, engine: Engine, labels: Sequence[Label]) -> None:
        """What each would have said of the labels that are new. Hold the engine's lock, before it takes them."""
        given = {one.task: one.choice for one in labels if one.choice in engine.classes}
        new = sorted(engine.unlabelled(given))
        if not new:
            return
        truth = np.array([engine.classes.index(given[task] or "") for task in new])
        said = engine.says(new)
        columns = [np.where(said[name] < 0, SILENT, np.where(said[name] == truth, RIGHT, WRONG)) for name in SPEAKERS]
        right = np.concatenate([self.tested.right, np.stack(columns, axis=1).astype(np.int8)])[-WINDOW:]
        self.tested = replace(self.tested, right=right, tested=self.tested.tested + len(new))

    def name_classes(self, classes: tuple[str, ...], features: NDArray[np.float32] | None) -> None:
        """What the classes are called, which leads the order before there are labels."""
        self._names = classes, features
        self._named += 1

    def is_behind(self) -> bool:
        """Whether there are labels that the head has not learnt."""
        with self._engine() as engine:
            return self.wanted and (engine.taught_version, self._named) != self._of

    def is_busy(self) -> bool:
        return self.is_behind()

    def holds(self) -> bool:
        """Whether the order should wait for the head, which is nearly ready."""
        with self._engine() as engine:
            large = len(engine) > LARGE_POOL
        if large or not self.is_behind():
            self._behind_since = None
            return False
        now = self._clock()
        self._behind_since = now if self._behind_since is None else self._behind_since
        return now - self._behind_since < LONGEST_HOLD_SECONDS

    def step(self) -> bool:
        """Fit the head to new labels, see who is ahead, write both down; True if anything changed."""
        changed = self.catch_up()
        self._write()  # last: a full disk keeps nothing from being learnt
        return changed

    def catch_up(self) -> bool:
        """The same, but nothing is written."""
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
        """Fit the head to all labels that there are; returns the last event that it reflects."""
        with self._engine() as engine:
            of, reflects = (engine.taught_version, self._named), self._applied()
            _, codes, features = engine.taught()
            classes, (named, names) = engine.classes, self._names
        head = fit_head(features, codes, classes)
        if head is None and names is not None and named == classes:
            head = name_head(names, classes)
        self._apply(head)
        self._head, self._of = (head,), of
        return reflects

    def _apply(self, head: LinearHead | None) -> None:
        """A piece at a time, so that labels come in between."""
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
        """Who is to be in force, and why, in words."""
        told = self.tested
        counts = {name: told.counts(name) for name in SPEAKERS}
        score = ", ".join(
            f"{NAMES[name]} on {right} of {of}" for name, (right, of) in counts.items() if of >= SHOWN_FROM
        )
        score = (
            f"on the last labels, before learning them, right were {score}" if score else "too few labels to compare"
        )
        if self.choice != "auto":
            return self.choice, f"NEAT_CLASSIFIER={self.choice}; {score}"
        both = told.right[(told.right[:, :2] != SILENT).all(axis=1)]
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
