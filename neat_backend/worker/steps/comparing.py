"""Comparing with Label Studio to find changes that no webhook reported: by times of change, then by counters."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from neat_backend.labelstudio.client import ProjectInfo
from neat_backend.store import inbox, tasks
from neat_backend.worker.steps import reading
from neat_backend.worker.steps.context import Context

log = logging.getLogger(__name__)

COUNTER_LOOKS = 3  # reads of Label Studio's counters until they are stable
LATE_COMMITS = timedelta(seconds=120)  # longest delay between a change's time and its visibility
CLOCK_SLACK = timedelta(seconds=2)  # Label Studio gives its time to the second

Counters = tuple[int, int, int]  # tasks, annotations, skips


@dataclass(frozen=True)
class Compared:
    """The result of a comparison; with neither `equal` nor `read_again`, it is too early to tell."""

    equal: bool = False  # the store equals Label Studio
    read_again: bool = False  # the whole project must be read again
    info: ProjectInfo | None = None  # Label Studio's project, where all is equal


@dataclass
class Basis:
    """The starting point of the next comparison; outlives the live project."""

    since: datetime | None = None  # Label Studio's clock; earlier changes are read. None: read the whole project
    unexplained: tuple[Counters, Counters] | None = None  # a difference that remained after reading again


class Served(Protocol):
    """The revision that this backend has switched on in Label Studio."""

    @property
    def version(self) -> str: ...

    def is_ours(self, model_version: str) -> bool: ...


TOO_EARLY = Compared()
READ_AGAIN = Compared(read_again=True)


class Comparing:
    """One project's comparisons with Label Studio.

    on_changed          called with each change that a comparison made in the store
    on_another_version  called when a model version of another backend is switched on
    """

    def __init__(
        self,
        context: Context,
        served: Served,
        on_changed: Callable[[reading.Changed], None],
        on_another_version: Callable[[], None],
        basis: Basis,
    ) -> None:
        self._context, self._served = context, served
        self._project, self._client, self._database = context.project, context.client, context.database
        self._on_changed, self._on_another_version, self.basis = on_changed, on_another_version, basis

    def read_at(self, began: datetime) -> None:
        """Record a reading of the whole project that began at that time of Label Studio's clock."""
        self.basis.since = began - LATE_COMMITS

    def read_missed(self, last: datetime, image_key: str, label_config: str) -> None:
        """Apply changes made while no worker ran, before the whole project is read, which may last minutes.

        For speed only: `last`, the time of the last comparison, is by this host's clock and may be outdated. Reading
        the whole project finds what is missed here. Reads nothing when the label config has changed: images may have
        another key.
        """
        if self._client.project(self._project).label_config == label_config:
            self._read_since(last - LATE_COMMITS, image_key)

    def compare(self, image_key: str, label_config: str, before: ProjectInfo | None = None) -> Compared:
        """Apply changes, then compare the counters. Raises LabelStudioError; changes found so far stay applied.

        before: Label Studio's project as it has just been read, which saves a request.
        """
        looked = self._look_at_counters(image_key, before)
        if isinstance(looked, Compared):
            return looked
        info, theirs, ours = looked
        if ours[0] > theirs[0]:
            for gone in reading.forget_deleted(self._context):
                self._on_changed(reading.Changed(deleted=set(gone)))
            looked = self._look_at_counters(image_key)  # takes minutes with a million tasks
            if isinstance(looked, Compared):
                return looked
            info, theirs, ours = looked
        if (theirs, ours) == self.basis.unexplained:
            return Compared(equal=True)  # the difference remained after reading again: Label Studio counts differently
        self.basis.unexplained = None
        if theirs != ours or info.label_config != label_config:
            log.warning(
                "project %d: Label Studio counts %s tasks, annotations, skips and we %s; reading it again",
                self._project,
                theirs,
                ours,
            )
            self.basis.unexplained = (theirs, ours) if theirs != ours else None
            return READ_AGAIN
        return Compared(equal=True, info=info)

    def _look_at_counters(
        self, image_key: str, before: ProjectInfo | None = None
    ) -> tuple[ProjectInfo, Counters, Counters] | Compared:
        """Label Studio's project, its counters and ours at the same moment, after applying changes.

        The counters must not change meanwhile: while people label, Label Studio may count answers whose webhooks
        are still on their way, and that is no reason to read a large project again. Returns TOO_EARLY when the
        counters keep changing or events wait.
        """
        for _ in range(COUNTER_LOOKS):
            if self._events_wait():
                return TOO_EARLY  # not caught up: nothing to compare yet
            before = before or self._client.project(self._project)
            if not self._read_changes(image_key):
                return READ_AGAIN
            ours, version = self._counts(), self._served.version
            info = self._client.project(self._project)
            if version and version == self._served.version and not self._served.is_ours(info.model_version):
                log.warning("project %d: %r is switched on instead of %r", self._project, info.model_version, version)
                self._on_another_version()
            if _counters(info) == _counters(before):
                return info, _counters(info), ours
            before = info
        return TOO_EARLY

    def _events_wait(self) -> bool:
        with self._database.read() as conn:
            return bool(inbox.pending(conn, self._project, 1))

    def _counts(self) -> Counters:
        with self._database.read() as conn:
            counts = tasks.counts(conn, self._project)
        return counts.tasks, counts.annotations, counts.skips

    def _read_changes(self, image_key: str) -> bool:
        """Read tasks changed since the last comparison, with their annotations; False if the times can't be used."""
        if self.basis.since is None:
            return True
        began = self._client.clock() or self._client.now()  # by an answer of this comparison
        if began < self.basis.since + LATE_COMMITS - CLOCK_SLACK:
            log.warning("project %d: Label Studio's clock has been set back; reading it again", self._project)
            return False
        self._read_since(self.basis.since, image_key)
        self.basis.since = began - LATE_COMMITS
        return True

    def _read_since(self, moment: datetime, image_key: str) -> None:
        """Read the tasks changed after this time of Label Studio's clock."""
        for found in reading.read_changes(self._context, moment, image_key):
            if found:
                log.warning(
                    "project %d: no webhook reported %d tasks with other labels and %d new images; applied",
                    self._project,
                    len(found.relabelled),
                    len(found.new_images),
                )
            self._on_changed(found)


def _counters(info: ProjectInfo) -> Counters:
    return info.task_count, info.annotation_count, info.skipped_count
