"""Decides when to publish; labelstudio/publisher.py does it.

Annotators are served from the *head*, the first 2B of the ranking, in the revision that is switched on. A new head is
published at once if the last one is older than the interval, else at the end of the interval, so bursts of labels
coalesce. No call is needed while the published head, without tasks labelled since, is still a prefix of the new one. A
thread of its own deletes old revisions while people label, and writes scores for the tail when it is quiet.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from neat_backend.errors import LabelStudioUnavailable, LeaseLost, NotFoundInLabelStudio
from neat_backend.labelstudio.publisher import Imported, Prediction, Publisher, reasons, score
from neat_backend.records import Ranked
from neat_backend.store import inbox, prefills, projects, revisions
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.suspicions import Suspicions

log = logging.getLogger(__name__)

HOLD_SECONDS = 30.0  # between publications while images are still being embedded
SLOW_SECONDS = 1.0  # after a longer publication, rest as long as it took
QUIET_SECONDS = 10.0  # without news for the tail to be written
SETTLED_SECONDS = 1.0  # without news for old revisions to be deleted
SPARED_REVISIONS = 1  # old revisions that wait for that


@dataclass(frozen=True)
class Order:
    """The order to serve: the head of the ranking and the event that it reflects."""

    head: Sequence[Ranked]  # best first
    event: int  # highest inbox event it reflects
    sampling: str  # the project's sampling: decides which end of the score is served first
    hold: bool = False  # more changes come soon (images being embedded): publish less often
    version: int | None = None  # equal numbers: the same tasks in the same order; None = unknown


def predictions(
    tasks: Sequence[Ranked], sampling: str, fill: Callable[[Ranked], str | None] = lambda _: None
) -> list[Prediction]:
    """Predictions with scores that sort them; fill: a task's pre-filled choice."""
    return [Prediction(t.task, score(t.priority, sampling), fill(t), reasons(t)) for t in tasks]


class Publishing:
    """Publishes one project's order in Label Studio; used by two threads, one for heads, one for the rest."""

    def __init__(
        self,
        context: Context,
        publisher: Publisher,
        suspicions: Suspicions,
        *,
        check_ownership: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        on_published: Callable[[float], None] = lambda seconds: None,
        fill: Callable[[Ranked], str | None] = lambda _: None,
    ) -> None:
        """check_ownership: called before Label Studio is changed; raises when another process owns the project.

        on_published: called with the seconds that a publication took. fill: a task's pre-filled choice.
        """
        self.project = context.project
        self._check_ownership, self._on_published, self._fill = check_ownership, on_published, fill
        settings = context.settings
        self.interval_seconds, self.batch_size = settings.publish_interval_seconds, settings.batch_size
        self.tail = settings.publish_tail
        self.publisher, self._suspicions = publisher, suspicions
        self.dropped = 0  # predictions that Label Studio refused, since the start
        self.vanished: set[int] = set()  # tasks found to be missing; the reader clears the set
        self._database = context.database
        self.forgotten = 0  # how often `forget` was called
        self._clock = clock
        self._tail_lock = threading.Lock()  # guards the fields below, used by two threads
        self._tail_sent: set[int] = set()  # tasks with a score, the head's included
        self._tail_unsure: list[int] = []  # tasks of a failed call: their scores may have been written
        self._tail_left = 0  # how many more tasks may get a score
        self._lowest = 0.0  # the lowest priority written
        self._skipped_versions = False  # whether `revisions.skip_to` has been called
        self._switched_event = math.inf  # the inbox's last event at the last switch
        self._version = ""  # the revision that is switched on, "" = none by this process yet
        self._switching = ""  # the revision switched on last, or being switched on
        self._served: list[int] = []  # task ids of the published head, best first
        self._left: set[int] = set()  # tasks of that head that have left the pool since
        self._refused: set[int] = set()  # tasks of that head that Label Studio refused
        self._served_sampling = ""
        self._found: tuple[int | None, str] = (None, "")  # version and sampling of the order last found served
        self._published_at = float("-inf")
        self._took_seconds = 0.0  # the last publication
        self._event = -1

    def step(self, order: Order, left_pool: Callable[[Sequence[int]], set[int]]) -> bool:
        """Publish the order if it must be and may be now; True when annotators are served this order.

        left_pool: of the tasks given, those that are no longer unlabelled.
        Raises LabelStudioError when Label Studio fails; a partly imported revision is not switched on. Call `reflects`
        once the web shows this order too.
        """
        known = (order.version, order.sampling)
        if self._version and order.version is not None and known == self._found and not self._left:
            return True  # no label has changed the head since
        gone = left_pool(self._served)
        self._served = [task for task in self._served if task not in gone]
        # A task that returns (its label was deleted) still has its old score, and Label Studio would serve it by that.
        self._left |= gone
        returned = self._left - left_pool(sorted(self._left))
        if returned or not self._serves(order):
            rest = self._took_seconds if self._took_seconds > SLOW_SECONDS else 0
            pause = max(self.interval_seconds, rest, HOLD_SECONDS if order.hold else 0)
            if self._clock() - self._published_at < pause:
                return False
            if order.head:
                self._publish(order)
        self._found = known
        return True

    @property
    def version(self) -> str:
        """The revision that this process has switched on last, "" = none yet."""
        return self._version

    def is_ours(self, model_version: str) -> bool:
        """Whether this process has switched on this version, or is about to."""
        return model_version in (self._version, self._switching)

    def is_switched_off(self, model_version: str, event: int) -> bool:
        """Whether the version in this event shows that another one has replaced this backend's.

        Events from before the last switch may still arrive, and name the version before it.
        """
        earlier = revisions.number(model_version)
        ours = earlier is not None and earlier <= (revisions.number(self._version) or 0)
        return bool(self._version) and event > self._switched_event and not ours and not self.is_ours(model_version)

    @property
    def event(self) -> int:
        """The last event that the served order reflects, as set by `reflects`; -1 = none."""
        return self._event

    def forget(self) -> None:
        """Publish at the next step: another version has been switched on in Label Studio."""
        self._version = ""
        self.forgotten += 1

    def _serves(self, order: Order) -> bool:
        """Whether the rest of the published head is a prefix of this order, and long enough."""
        ids = [ranked.task for ranked in order.head if ranked.task not in self._refused]
        enough = len(self._served) >= min(self.batch_size, len(ids))
        same = self._served == ids[: len(self._served)]
        return bool(self._version) and self._served_sampling == order.sampling and enough and same

    def _publish(self, order: Order) -> None:
        started = self._clock()
        if not self._skipped_versions:
            there = self.publisher.client.model_versions(self.project)
            with self._database.begin() as conn:
                revisions.skip_to(conn, self.project, there)
            self._skipped_versions = True
        with self._database.begin() as conn:
            version = revisions.begin(conn, self.project)
        try:
            made = predictions(order.head, order.sampling, self._fill)
            checks = self._suspicions.predictions([one.task for one in made])
            imported = self.publisher.import_revision(version, [*made, *checks])
            dropped = set(imported.dropped_tasks)
            self.dropped += len(dropped)
            self.vanished |= dropped
            if all(one.task in dropped for one in made):
                raise LabelStudioUnavailable(f"Label Studio took none of {len(order.head)} predictions")
            self._check_ownership()  # during a long import, another worker may have published
            self._switching = version  # from now on events may name it
            self.publisher.switch(version)
        except BaseException:
            self._switching = ""
            with contextlib.suppress(LeaseLost), self._database.begin() as conn:  # else the next owner does
                revisions.abandon(conn, self.project, version)
            raise
        with self._database.begin() as conn:
            revisions.switched(conn, self.project, version)
            self._note_filled(conn, made, imported)
            self._switched_event = inbox.received_through(conn, self.project)
        self._suspicions.published(version, [one for one in checks if one.task not in dropped])
        self._refused, self._left = dropped.intersection(one.task for one in made), set()
        self._served = [ranked.task for ranked in order.head if ranked.task not in self._refused]
        self._served_sampling = order.sampling
        self._published_at = self._clock()
        self._took_seconds = self._published_at - started
        self._on_published(self._took_seconds)
        with self._tail_lock:
            self._version = version
            self._tail_sent, self._tail_unsure, self._tail_left = set(self._served), [], self.tail
            self._lowest = min(ranked.priority for ranked in order.head)
        log.info(
            "project %d: %s on, %d tasks in order, event %d, %.2f s",
            self.project,
            version,
            len(self._served),
            order.event,
            self._clock() - started,
        )

    def _note_filled(self, conn: Connection, made: Sequence[Prediction], imported: Imported) -> None:
        """Store the pre-filled choice of each of these predictions."""
        dropped, empty = set(imported.dropped_tasks), imported.without_choice
        shown = {one.task: None if one.task in empty else one.choice for one in made if one.task not in dropped}
        prefills.publish(conn, self.project, shown)

    def reflects(self, event: int) -> None:
        """Record that the served order reflects the inbox up to this event."""
        if event != self._event:
            with self._database.begin() as conn:
                projects.update(conn, self.project, published_event=event)
            self._event = event

    # the background

    def background_step(self, tail: Callable[[int], Sequence[Ranked]], sampling: str) -> bool:
        """Do one piece of background work; True when there was any.

        tail: n → the first n tasks of the ranking, best first.
        """
        if not self._version:
            return False  # old revisions are known only after a switch: a crash may have hidden the last one
        with self._database.read() as conn:
            old = revisions.to_delete(conn, self.project)
        calm_seconds = self._clock() - self._published_at
        if old and (calm_seconds >= SETTLED_SECONDS or len(old) > SPARED_REVISIONS):
            self._check_ownership()
            gone: str | None = old[0]
            with contextlib.suppress(NotFoundInLabelStudio):  # the project
                gone = self.publisher.delete_some(old)
            if gone is not None:
                with self._database.begin() as conn:
                    revisions.deleted(conn, self.project, gone)
            return True
        if calm_seconds < QUIET_SECONDS or sampling != self._served_sampling:
            return False  # where the sampling has changed, a new head is on its way
        return self._send_tail(tail)

    def moments(self) -> Iterable[float]:
        """When there may be background work, if nothing is published before."""
        return (self._published_at + seconds for seconds in (SETTLED_SECONDS, QUIET_SECONDS))

    def _send_tail(self, tail: Callable[[int], Sequence[Ranked]]) -> bool:
        """Write scores for the next tasks of the order without one in this version; True when there were any."""
        with self._tail_lock:
            version, unsure, left, lowest = self._version, self._tail_unsure, self._tail_left, self._lowest
            sent, sampling = self._tail_sent | self._suspicions.tasks(), self._served_sampling
        if left <= 0:
            return False
        if unsure:
            landed = self.publisher.client.tasks_with_prediction(self.project, version, unsure)
            left -= len(landed)
            with self._tail_lock:
                if version != self._version:
                    return True
                self._tail_sent |= landed
                self._tail_unsure, self._tail_left = [], left
            sent |= landed
        wanted = [t for t in tail(left + len(sent)) if t.task not in sent][: min(self.publisher.at_once, max(left, 0))]
        if not wanted:
            with self._tail_lock:
                if version == self._version:
                    self._tail_left = 0
            return False
        if wanted[0].priority >= lowest:  # the head is older; the tail must still come after it
            wanted = [replace(t, priority=t.priority * lowest) for t in wanted]
        self._check_ownership()
        try:
            made = predictions(wanted, sampling, self._fill)
            imported = self.publisher.import_revision(version, made)
        except BaseException:
            with self._tail_lock:
                if version == self._version:
                    self._tail_unsure, self._lowest = [t.task for t in wanted], min(lowest, wanted[-1].priority)
            raise
        self.dropped += len(imported.dropped_tasks)
        with self._tail_lock:
            is_on = version == self._version
            if is_on:
                self._tail_sent.update(t.task for t in wanted)
                self._tail_left = left - len(wanted)
                self._lowest = min(lowest, wanted[-1].priority)
        if is_on:  # else these tasks show a newer version
            with self._database.begin() as conn:
                self._note_filled(conn, made, imported)
        return True
