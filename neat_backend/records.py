"""Frozen records that packages exchange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

# Actions that this backend files itself, beside those that Label Studio sends.
SYNC = "NEAT_SYNC"  # read the whole project from Label Studio
TRAIN = "START_TRAINING"  # Label Studio's own name for it
RETRY_IMAGES = "NEAT_RETRY_IMAGES"  # try the failed images again
COMPARE = "NEAT_COMPARE"  # Label Studio has called /setup: check the connection, and read changes

# Why a task that somebody has answered has no label.
NOT_IN_CONFIG = "not in config"  # the choice is none of the label config's
SEVERAL = "several"  # more than one choice
EMPTY = "empty"  # nothing is chosen
UNREADABLE = "unreadable"  # not what Label Studio's own pages store
SKIPPED = "skipped"
MOST_LISTED = 8  # reasons in one sentence

Choice = str | tuple[str, ...]  # in a result: a nested one as its path, the headings first


@dataclass(frozen=True)
class Task:
    """One task of a Label Studio project."""

    id: int
    image: str | None  # the value of the image key, as Label Studio gives it; None = missing
    updated_at: datetime  # timezone-aware, Label Studio's clock
    has_annotations: bool = False  # Label Studio counts annotations or skips on it


@dataclass(frozen=True)
class Annotation:
    """One annotator's answer on one task; a skip is an annotation that was cancelled."""

    id: int
    task: int
    annotator: int | None
    choices: Mapping[str, tuple[Choice, ...] | None]  # control name → choices of its results; None = unreadable
    was_cancelled: bool
    ground_truth: bool
    updated_at: datetime  # timezone-aware, Label Studio's clock


@dataclass(frozen=True)
class Label:
    """A task's label by all its annotations.

    Known: `choice` is the class. Invalid: `invalid` is true, `choice` is None. Neither: unlabelled.
    """

    task: int
    choice: str | None = None
    invalid: bool = False
    set_aside: str = ""  # why it is unlabelled although somebody has answered: it comes last
    answer: str = ""  # the choice of such an answer, if the label config lacks it


@dataclass(frozen=True)
class WithoutLabel:
    """Answered tasks without a label, of one reason and answer."""

    reason: str  # as in Label.set_aside
    answer: str  # as in Label.answer
    tasks: int

    def __str__(self) -> str:
        return f"{self.tasks:,} {because(self.reason, self.answer)}"


def because(reason: str, answer: str) -> str:
    """Why an answer gives no label, in words; arguments as in Label.set_aside and Label.answer."""
    if reason == NOT_IN_CONFIG:
        if not answer:
            return "with other answers that are not in the label config"
        return f"answered {answer!r}, which is not in the label config"
    words = {
        SEVERAL: "with several choices",
        EMPTY: "without a choice",
        UNREADABLE: "with an answer that can't be read",
    }
    return words.get(reason, reason)


def in_words(found: Sequence[WithoutLabel]) -> str:
    """Answered tasks that have no label, in one sentence; "" = there are none."""
    if not found:
        return ""
    count, listed = sum(one.tasks for one in found), [str(one) for one in found[:MOST_LISTED]]
    if len(found) > MOST_LISTED:
        listed.append(f"{sum(one.tasks for one in found[MOST_LISTED:]):,} otherwise")
    return f"{count:,} annotated task{' has' if count == 1 else 's have'} no label: {'; '.join(listed)}"


@dataclass(frozen=True)
class Event:
    """One row of the inbox: something that happened in Label Studio, or a person's request."""

    id: int
    project: int
    action: str
    payload: Mapping[str, Any]  # the body as it came, JSON
    received_at: datetime
    attempts: int = 0


@dataclass(frozen=True)
class Ranked:
    """One unlabelled task with the numbers behind its place in the order."""

    task: int
    rank: int  # 0 = label this one next
    priority: float  # in [0, 1], higher = label first
    inconsistency: float  # Eq. 5
    known_neighbours: int  # how many of the K nearest labelled tasks are of a known class
    candidate: bool  # held for a known class by the known rule
    predicted: str | None  # the classifier's class, None before the first round
    vote: str | None = None  # the class that most of its known neighbours have; None = no known ones, or not given
    votes: int = 0  # how many have it
    known_chance: float = 1.0  # probability that it is of a known class, by the linear head; 1 without one
    queue: str | None = None  # the class whose tasks it waits with; None = of a class not seen yet, or no balance
    place: int = 0  # how many of these come before it
    drawn: bool = False  # asked for at random (`ranking.draws`): it waits in no queue


@dataclass(frozen=True)
class Round:
    """One query round: the labels since the last one, and the classifier trained after them."""

    number: int
    trigger: str  # "batch", "requested", "classes"
    state: str  # "running", "done", "failed"
    known: int  # labelled tasks of known classes when it began
    invalid: int
    unlabelled: int
    queried: int = 0  # newly labelled since the round before
    queried_known: int = 0
    classes: tuple[str, ...] = ()
    started_at: datetime | None = None
    finished_at: datetime | None = None
    seconds: float | None = None
    held_out: int = 0  # labelled tasks kept out of training to measure
    held_out_correct: int = 0
    error: str | None = None

    @property
    def precision(self) -> float | None:
        """Share of the queried tasks that were of known classes (Eq. 6); None if none were queried."""
        return self.queried_known / self.queried if self.queried else None

    @property
    def held_out_accuracy(self) -> float | None:
        return self.held_out_correct / self.held_out if self.held_out else None


@dataclass(frozen=True)
class MLBackend:
    """A project's connection to an ML backend, as Label Studio lists it; it need not be this backend."""

    id: int
    url: str
    extra_params: Mapping[str, Any]
    key: str  # unique, also where ids are used again


@dataclass(frozen=True)
class Project:
    """One connected project in the store."""

    id: int
    title: str = ""
    label_config: str = ""
    sampling: str = ""  # Label Studio's name, e.g. "Uncertainty sampling"
    extra_params: Mapping[str, Any] = field(default_factory=dict)
    label_studio_url: str = ""  # from /setup; the setting takes precedence
    access_token: str = field(default="", repr=False)  # from /setup; the setting takes precedence
    backend_url: str = ""  # this backend's address for Label Studio: prefix of its webhook's URL
    state: str = "connecting"  # see store/projects.py
    detail: str = ""  # the state in words, with the remedy where one is needed
    progress_done: int = 0
    progress_total: int = 0
    progress_eta_seconds: float | None = None
    revision: int = 0  # last revision of predictions begun
    model_version: str = ""  # the revision that is switched on in Label Studio
    applied_event: int = 0  # highest inbox id that the engine has applied
    published_event: int = 0  # highest inbox id that the served order reflects
    synced_at: datetime | None = None
    compared_at: datetime | None = None  # last found, or made, equal to Label Studio's data
    created_at: datetime | None = None  # by Label Studio's clock; it identifies the project among those of its number
    target: float | None = None  # share of the known images that the lead wants found; None = the default
    connection: str | None = ""  # key of this backend's connection, "" = none yet; None = of an earlier version
