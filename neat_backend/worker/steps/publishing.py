"""When to publish what. How it is done is labelstudio/publisher.py's business.

Annotators are served from the *head*, the first 2B of the ranking, in the revision that is switched on.
A new head is published at once if the last one is older than the interval, else when it is over: label
bursts coalesce. What annotators are served stays right without a call to Label Studio while the
published head, less what has been labelled since, is still how the new one begins. Scores for the tail
and the removal of old revisions wait until it is quiet, in a thread of their own.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from neat_backend.errors import LabelStudioUnavailable, LeaseLost, NotFoundInLabelStudio
from neat_backend.labelstudio.publisher import Imported, Prediction, Publisher, reasons, score
from neat_backend.records import Ranked
from neat_backend.store import inbox, prefills, projects, revisions
from neat_backend.worker.steps.context import Context

log = logging.getLogger(__name__)

HOLD_SECONDS = 30.0  # between publications while images are still being embedded
SLOW_SECONDS = 1.0  # a publication that took longer is followed by a rest as long as it took
QUIET_SECONDS = 10.0  # nothing new for so long: time for the tail
TAIL_CHUNK = 1000  # predictions in one background call
MANY_REVISIONS = 10  # so many old ones are removed even when it isn't quiet


@dataclass(frozen=True)
class Order:
    """What annotators should be served: the head of the ranking and what it reflects."""

    head: Sequence[Ranked]  # best first
    event: int  # highest inbox event it reflects
    sampling: str  # the project's sampling: decides which end of the score is served first
    hold: bool = False  # more is coming soon (images being embedded): don't hurry
    version: int | None = None  # the same number: the same tasks in the same order; None = not known


def predictions(
    tasks: Sequence[Ranked], sampling: str, fill: Callable[[Ranked], str | None] = lambda _: None
) -> list[Prediction]:
    """The score orders them; fill: the choice that a task's annotator finds filled in."""
    return [Prediction(t.task, score(t.priority, sampling), fill(t), reasons(t)) for t in tasks]


class Publishing:
    """Keeps one project's order in Label Studio; driven by two threads, one for heads, one for the rest."""

    def __init__(
        self,
        context: Context,
        publisher: Publisher,
        *,
        check_ownership: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        took: Callable[[float], None] = lambda seconds: None,
        fill: Callable[[Ranked], str | None] = lambda _: None,
    ) -> None:
        """check_ownership: called before a revision is switched on; raises when another process owns the project.

        took: told the seconds that each publication took. fill: the choice that is filled in for a task's annotator.
        """
        self.project = context.project
        self._check_ownership, self._took, self._fill = check_ownership, took, fill
        settings = context.settings
        self.interval_seconds, self.batch_size = settings.publish_interval_seconds, settings.batch_size
        self.tail = settings.publish_tail
        self.publisher = publisher
        self.dropped = 0  # predictions that Label Studio refused, since the start
        self.vanished: set[int] = set()  # tasks that turned out to be gone; whoever reads them clears them
        self._database = context.database
        self.forgotten = 0  # how often `forget` was called
        self._clock = clock
        self._tail_lock = threading.Lock()  # what is below is of one version, and two threads look at it
        self._tail_sent: set[int] = set()  # head included
        self._tail_unsure: list[int] = []  # tasks of a call that failed: their scores may have landed
        self._tail_left = 0  # how many more tasks may get a score
        self._lowest = 0.0  # priority that has been written
        self._heeded = False  # the versions that are there already
        self._switched_event = math.inf  # the inbox's last event when a revision was switched on
        self._version = ""  # the revision that is switched on, "" = none by this process yet
        self._switching = ""  # the one that was switched on last, or whose switch has been asked for
        self._served: list[int] = []  # task ids of the published head, best first
        self._left: set[int] = set()  # tasks of that head that have left the pool since
        self._refused: set[int] = set()  # tasks that should have been in that head
        self._served_sampling = ""
        self._found: tuple[int | None, str] = (None, "")  # version and sampling of the order last found served
        self._published_at = float("-inf")
        self._took_seconds = 0.0  # the last publication
        self._event = -1

    def step(self, order: Order, left_pool: Callable[[Sequence[int]], set[int]]) -> bool:
        """Publish the order if it must be and may be now; True when annotators are served this order.

        left_pool: of the tasks given, those that are no longer unlabelled.
        Raises LabelStudioError when Label Studio fails; nothing is switched on half-done. Say `reflects`
        once whoever asks us for the order gets this one too.
        """
        known = (order.version, order.sampling)
        if self._version and order.version is not None and known == self._found and not self._left:
            return True  # nobody has labelled any of them, or a label would have changed the head
        gone = left_pool(self._served)
        self._served = [task for task in self._served if task not in gone]
        # One that comes back (a label taken back) still has its old score: Label Studio would serve it there.
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
        """Whether this process has switched it on, or is about to."""
        return model_version in (self._version, self._switching)

    def is_switched_off(self, model_version: str, event: int) -> bool:
        """Whether the version that this event tells of shows that somebody has taken ours away.

        Events from before ours was switched on may still be on their way then, and name what was on before.
        """
        earlier = revisions.number(model_version)
        ours = earlier is not None and earlier <= (revisions.number(self._version) or 0)
        return bool(self._version) and event > self._switched_event and not ours and not self.is_ours(model_version)

    @property
    def event(self) -> int:
        """The last event that annotators are served from, as far as `reflects` was told; -1 = none."""
        return self._event

    def forget(self) -> None:
        """Something else has been switched on in Label Studio: publish at the next step, whatever is served."""
        self._version = ""
        self.forgotten += 1

    def _serves(self, order: Order) -> bool:
        """Is what is left of the published head how this order begins, and long enough?"""
        ids = [ranked.task for ranked in order.head if ranked.task not in self._refused]
        enough = len(self._served) >= min(self.batch_size, len(ids))
        same = self._served == ids[: len(self._served)]
        return bool(self._version) and self._served_sampling == order.sampling and enough and same

    def _publish(self, order: Order) -> None:
        started = self._clock()
        if not self._heeded:
            there = self.publisher.client.model_versions(self.project)
            with self._database.begin() as conn:
                revisions.heed(conn, self.project, there)
            self._heeded = True
        with self._database.begin() as conn:
            version = revisions.begin(conn, self.project)
        try:
            made = predictions(order.head, order.sampling, self._fill)
            imported = self.publisher.import_revision(version, made)
            self.dropped += len(imported.dropped_tasks)
            self.vanished.update(imported.dropped_tasks)
            if not imported.accepted:
                raise LabelStudioUnavailable(f"Label Studio took none of {len(order.head)} predictions")
            self._check_ownership()  # the import may have taken so long that another worker has published since
            self._switching = version  # from now on Label Studio may say so
            self.publisher.switch(version)
        except BaseException:
            self._switching = ""
            with contextlib.suppress(LeaseLost), self._database.begin() as conn:  # else who loads it next does
                revisions.abandon(conn, self.project, version)
            raise
        with self._database.begin() as conn:
            revisions.switched(conn, self.project, version)
            self._note_filled(conn, made, imported)
            self._switched_event = inbox.received_through(conn, self.project)
        self._refused, self._left = set(imported.dropped_tasks), set()
        self._served = [ranked.task for ranked in order.head if ranked.task not in self._refused]
        self._served_sampling = order.sampling
        self._published_at = self._clock()
        self._took_seconds = self._published_at - started
        self._took(self._took_seconds)
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
        """Keep which choice annotators find in each of these predictions."""
        dropped, empty = set(imported.dropped_tasks), imported.without_choice
        shown = {one.task: None if one.task in empty else one.choice for one in made if one.task not in dropped}
        prefills.publish(conn, self.project, shown)

    def reflects(self, event: int) -> None:
        """Note that what annotators are served reflects the inbox up to this event."""
        if event != self._event:
            with self._database.begin() as conn:
                projects.update(conn, self.project, published_event=event)
            self._event = event

    # the background

    def background_step(self, tail: Callable[[int], Sequence[Ranked]], sampling: str) -> bool:
        """Do one piece of the work that nobody waits for; True when there was any.

        tail: n → the first n tasks of the ranking, best first.
        """
        if not self._version:
            return False  # what is old can't be told before something new is on: a crash may have hidden a switch
        with self._database.read() as conn:
            old = revisions.to_delete(conn, self.project)
        quiet = self._clock() - self._published_at >= QUIET_SECONDS
        if old and (quiet or len(old) > MANY_REVISIONS):
            with contextlib.suppress(NotFoundInLabelStudio):
                self.publisher.delete(old[0])
            with self._database.begin() as conn:
                revisions.deleted(conn, self.project, old[0])
            return True
        if not quiet or sampling != self._served_sampling:
            return False  # where the sampling has changed, a new head is on its way
        return self._send_tail(tail)

    def _send_tail(self, tail: Callable[[int], Sequence[Ranked]]) -> bool:
        """Scores for the next tasks of the order that have none in this version; True when there were any."""
        with self._tail_lock:
            version, unsure, left, lowest = self._version, self._tail_unsure, self._tail_left, self._lowest
            sent, sampling = set(self._tail_sent), self._served_sampling
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
        wanted = [t for t in tail(left + len(sent)) if t.task not in sent][: min(TAIL_CHUNK, max(left, 0))]
        if not wanted:
            with self._tail_lock:
                if version == self._version:
                    self._tail_left = 0
            return False
        if wanted[0].priority >= lowest:  # the head is of another moment; the tail comes after it all the same
            wanted = [replace(t, priority=t.priority * lowest) for t in wanted]
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
        if is_on:  # else these tasks show another version by now
            with self._database.begin() as conn:
                self._note_filled(conn, made, imported)
        return True
