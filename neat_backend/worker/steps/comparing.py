"""Finding what no webhook has told, or one that was lost: by the times of change, then by comparing counters."""

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

COUNTER_LOOKS = 3  # at Label Studio's counters, until they stand still
LATE_COMMITS = timedelta(seconds=120)  # a change may become visible so much later than its time says
CLOCK_SLACK = timedelta(seconds=2)  # Label Studio tells its time to the second

Counters = tuple[int, int, int]  # tasks, annotations, skips


@dataclass(frozen=True)
class Compared:
    """What a comparison has come to. Neither equal nor to be read again: it is too early to say."""

    equal: bool = False  # all is known to be as Label Studio has it now
    read_again: bool = False  # the whole project
    info: ProjectInfo | None = None  # Label Studio's word, where all is equal


@dataclass
class Basis:
    """What the next comparison begins from; outlives the live project."""

    since: datetime | None = None  # Label Studio's clock; all before has been read. None: read the whole project first
    unexplained: tuple[Counters, Counters] | None = None  # a difference that reading again has not cured


class Served(Protocol):
    """What this backend has switched on in Label Studio."""

    @property
    def version(self) -> str: ...

    def is_ours(self, model_version: str) -> bool: ...


TOO_EARLY = Compared()
READ_AGAIN = Compared(read_again=True)


class Comparing:
    """One project's comparisons with Label Studio.

    take_in             told what each has changed in the store
    on_another_version  called when another model version is switched on than ours
    """

    def __init__(
        self,
        context: Context,
        served: Served,
        take_in: Callable[[reading.Changed], None],
        on_another_version: Callable[[], None],
        basis: Basis,
    ) -> None:
        self._context, self._served = context, served
        self._project, self._client, self._database = context.project, context.client, context.database
        self._take_in, self._on_another_version, self.basis = take_in, on_another_version, basis

    def read_at(self, began: datetime) -> None:
        """The whole project has been read, beginning at that time of Label Studio's clock."""
        self.basis.since = began - LATE_COMMITS

    def read_missed(self, last: datetime, image_key: str, label_config: str) -> None:
        """What people did while no worker ran is taken in before the whole project is read, which may last minutes.

        Only for speed: `last`, the moment of the last comparison, is told by our clock, and its note may be an old
        one. Whatever is missed here is found by reading all. By another label config than the project's nothing can
        be read: images may have another key.
        """
        if self._client.project(self._project).label_config == label_config:
            self._read_since(last - LATE_COMMITS, image_key)

    def compare(self, image_key: str, label_config: str) -> Compared:
        """Take in what has changed, and compare the counters. Raises LabelStudioError; what was found so far stays."""
        looked = self._look_at_counters(image_key)
        if isinstance(looked, Compared):
            return looked
        info, theirs, ours = looked
        if ours[0] > theirs[0]:
            for gone in reading.forget_deleted(self._context):
                self._take_in(reading.Changed(deleted=set(gone)))
            looked = self._look_at_counters(image_key)  # that takes minutes where there are a million tasks
            if isinstance(looked, Compared):
                return looked
            info, theirs, ours = looked
        if (theirs, ours) == self.basis.unexplained:
            return Compared(equal=True)  # read again since, and it is still so: they count something else than we
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

    def _look_at_counters(self, image_key: str) -> tuple[ProjectInfo, Counters, Counters] | Compared:
        """Label Studio's word and our counts of the same moment, what has changed since the last look taken in.

        Its counters must stand still meanwhile: where people are at work, what they have done may be counted there
        and still be on its way to us, which is no reason to read a large project again. TOO_EARLY when they never do,
        or when events wait.
        """
        before = None
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
        """Tasks that have changed since the last look, with their annotations; False if the times tell nothing."""
        if self.basis.since is None:
            return True
        began = self._client.now()
        if began < self.basis.since + LATE_COMMITS - CLOCK_SLACK:
            log.warning("project %d: Label Studio's clock has been set back; reading it again", self._project)
            return False
        self._read_since(self.basis.since, image_key)
        self.basis.since = began - LATE_COMMITS
        return True

    def _read_since(self, moment: datetime, image_key: str) -> None:
        """Take in the tasks that Label Studio has changed since then, by its clock."""
        for found in reading.read_changes(self._context, moment, image_key):
            if found:
                log.warning(
                    "project %d: no webhook had told of %d tasks with other labels and %d new images; taken in",
                    self._project,
                    len(found.relabelled),
                    len(found.new_images),
                )
            self._take_in(found)


def _counters(info: ProjectInfo) -> Counters:
    return info.task_count, info.annotation_count, info.skipped_count
