"""One project while it is live: its engine in memory, and what moves it.

    apply   events of the inbox → store and engine, in one transaction with their being marked applied
    bulk    reading the project, embedding images, probabilities of new tasks
    rounds  starts a training when one is due, takes in its result
    learn   fits the linear classifier to new labels, decides which classifier is in force
    plan    the order of a strategy that can't follow each label at once
    publish the order's head → Label Studio; head and ranking → files for the web process
    tidy    the tail's scores, old revisions, the Data Manager's tabs and columns
    insight the map, estimates and likely mistakes that people are shown
    keep    array files → the object store, where there is one

Each is a step that `worker.py` repeats in a thread of its own; all touch the engine under one lock and
for milliseconds. Everything here can be thrown away at any moment: `load` builds it again from the store.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from neat_backend import connection
from neat_backend.compute import Compute, LocalCompute
from neat_backend.errors import BadLabelConfig, DataRefused, Disconnected, LeaseLost, Replaced, StoreError
from neat_backend.labelstudio import events as ls_events
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.labelstudio.publisher import UNCERTAINTY, Publisher
from neat_backend.models.encoders import Encoder
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.neighbors import LargePool
from neat_backend.ranking.prefill import filled_in
from neat_backend.records import Event, MLBackend, Project, Ranked
from neat_backend.settings import Settings
from neat_backend.store import (
    inbox,
    insights,
    measures,
    projects,
    queries,
    revisions,
    snapshots,
    tasks,
)
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.keeper import Keeper
from neat_backend.store.measures import Measures
from neat_backend.store.objects import Objects
from neat_backend.store.owned import OwnedDatabase
from neat_backend.store.selections import Selection
from neat_backend.store.snapshots import Head
from neat_backend.worker import heap
from neat_backend.worker.steps import columns, reading
from neat_backend.worker.steps.comparing import CLOCK_SLACK, Basis, Comparing
from neat_backend.worker.steps.data_manager import MOST_CHECKED, Tabs
from neat_backend.worker.steps.images import PoolImages
from neat_backend.worker.steps.insight import Insights
from neat_backend.worker.steps.learning import LARGE_POOL, Learning
from neat_backend.worker.steps.planning import Planning, in_this_order
from neat_backend.worker.steps.publishing import Order, Publishing
from neat_backend.worker.steps.rounds import Rounds
from neat_backend.worker.steps.shown_state import ShownOrder, ShownState

log = logging.getLogger(__name__)

EVENTS_AT_ONCE = 500
POISON_ATTEMPTS = 3  # an event that fails so often is set aside
POISON_RETRY_SECONDS = 1.0  # before the second try, three times as long before the third
MOST_UNSERVED = 10_000  # batches of events whose way to the annotators is timed


@dataclass
class Effects:
    """What a batch of events did to the store, to be done to the engine."""

    through: int = 0  # highest event id
    received_at: datetime | None = None  # of the first that told of a label
    relabelled: set[int] = field(default_factory=set)
    deleted: set[int] = field(default_factory=set)
    image_changed: set[int] = field(default_factory=set)
    new_images: bool = False
    with_annotations: set[int] = field(default_factory=set)
    project: ls_events.ProjectFields | None = None  # the latest, by Label Studio's clock
    project_event: int = 0  # the event that it came with
    answered: bool = False  # somebody has labelled, changed or taken back something
    train: bool = False
    sync: bool = False
    compare: bool = False


def _is_no_fault_of_an_event(error: Exception) -> bool:
    """The database's troubles last as long as they last: no event is set aside for them."""
    return isinstance(error, (DBAPIError, StoreError)) and not isinstance(error, DataRefused)


class LiveProject:
    """The live state of one project. `load` first; then the steps, each from one thread at a time."""

    def __init__(
        self,
        project: Project,
        owner: str,
        settings: Settings,
        database: Database,
        encoder: Callable[[], Encoder],
        connect: Callable[[Project], LabelStudioClient],
        compute: Callable[[], Compute] = LocalCompute,
        objects: Objects | None = None,
        basis: Basis | None = None,
    ) -> None:
        """objects: where the arrays are kept beyond the data folder, if anywhere.

        basis: how far this process has read the project before; what has changed since is enough then.
        """
        self.id = project.id
        self.owner = owner
        self.settings = settings
        self.database = OwnedDatabase(database, project.id, owner)
        self.arrays = ProjectArrays(settings.data_dir, project.id, fence=self._check_lease)
        self._keeper = None if objects is None else Keeper(objects, self.arrays, project.id, self.database)
        self.keep_seconds = 0.0  # that the last keep_step took
        self.lock = threading.RLock()
        self.stopping = threading.Event()
        self.loaded = threading.Event()
        self.last_used = -math.inf  # time.monotonic()
        self.leased_until = math.inf  # time.monotonic(); beyond it, another worker may be at it
        self._make_encoder, self._connect, self._make_compute = encoder, connect, compute
        self._compute: Compute = LocalCompute()
        self._bulk_wanted = threading.Event()
        self.left: Disconnected | Replaced | None = None  # why Label Studio's project is not ours any more
        self._connected = False  # nothing is published before Label Studio has said that it is
        self._calls = 0  # how often Label Studio has called /setup since the start, as far as events tell
        self._calls_heeded = 0  # so many of them when the connection was last looked at
        self._basis = basis or Basis()
        self._sync_wanted = self._basis.since is None  # whatever happened while nobody looked
        self._compare_wanted = not self._sync_wanted  # now, not only when it is time
        self._missed_wanted = True  # the same, as far as Label Studio's times tell: that is soon read
        self._computed = False  # images have been encoded or classified, which frees much memory
        self._stale = False  # the store may have more than the engine: it failed between the two
        self._annotations_wanted: set[int] = set()
        self._reconcile_at = time.monotonic() + self.settings.reconcile_seconds
        self._state = ShownState(self.id, self._update)
        self._title, self._label_config, self._sampling = project.title, project.label_config, project.sampling
        self._fields_at, self._fields_event = ls_events.EPOCH, 0  # of the latest word on these three
        self._applied = 0
        self._answered = -1  # the last event with an answer of somebody's, since the start
        self._batch: list[int] = []  # NEAT_RERANK=round: the fixed order until the next round
        self._planning = None if settings.strategy == "neat" else Planning(settings.strategy, settings.seed)
        self._batches = 0  # how often a round has ended it
        self._seen: tuple[object, ...] = ()  # what the last publishing step looked at, when it was done with it
        self._looked_at: tuple[object, ...] = ()  # what the order below was made from
        self._order: Order | None = None
        self._shows: Head | None = None
        self._shown = ShownOrder(self.arrays, self.lock, project.model_version)
        self._insights = Insights(self.arrays, self.settings.seed)
        self._measures = Measures(self.arrays)
        self._learning = Learning(self.id, settings, self.arrays)
        self._rerank_seconds = 0.0  # spent on labels since the head was last looked at
        self._unserved: deque[tuple[int, datetime]] = deque(maxlen=MOST_UNSERVED)  # events with labels, their arrival
        self._engine: Engine | None = None
        self._config: LabelConfig | None = None
        self._client: LabelStudioClient | None = None
        self._encoder: Encoder | None = None
        self._publishing: Publishing | None = None
        self._images: PoolImages | None = None
        self._comparing: Comparing | None = None
        self._rounds: Rounds | None = None
        self._tabs: Tabs | None = None
        self._columns: columns.Columns | None = None

    # building it

    def load(self) -> None:
        """Build everything from the store. Raises NeatError, saying what is missing, until it can."""
        with self.database.read() as conn:
            project = projects.get(conn, self.id)
            if project is None:
                raise LeaseLost(f"project {self.id} is not connected any more")
        self._client = self._connect(project)
        if self._keeper is not None:
            self._keeper.take_over()  # before anything reads the arrays
        try:
            config = self._parse(project.label_config)
        except BadLabelConfig as error:  # none yet, or it has been repaired since
            try:
                info, _ = connection.look(self._client, project)
            except Disconnected:
                if project.connection:
                    raise
                raise error from None  # why its connection was refused, and so is not there
            project = replace(project, label_config=info.label_config, sampling=info.sampling)
            self._update(label_config=info.label_config, sampling=info.sampling, title=info.title)
            config = self._parse(project.label_config)
        self._encoder = self._make_encoder()
        self._compute = self._make_compute()
        engine = self._compute.engine(
            self._encoder.dim,
            config.classes,
            k=self.settings.k,
            rule=self.settings.known_rule,
            batch_size=self.settings.batch_size,
            seed=self.settings.seed,
            device=self.settings.device,
            balance=self.settings.balanced,
            source=self._learning.source(),
            large=LargePool(
                self.settings.neighbours,
                self.settings.features_memory,
                self.settings.scratch_dir or self.settings.data_dir / "scratch",
            ),
        )
        with self.lock:
            self._title, self._label_config, self._sampling = project.title, project.label_config, project.sampling
            self._config, self._engine = config, engine
            self._publishing = Publishing(
                self.id,
                Publisher(self._client, self.id, config),
                self.database,
                interval_seconds=self.settings.publish_interval_seconds,
                batch_size=self.settings.batch_size,
                tail=self.settings.publish_tail,
                still_ours=self._still_ours,
                took=lambda seconds: self._measures.observe(measures.PUBLISH, seconds),
                fill=lambda task: filled_in(
                    task, self.settings.prefill, self._learning.tested.leader_counts, self.settings.k
                ),
            )
            self._images = PoolImages(
                self.id,
                self.settings,
                self.database,
                self.arrays,
                self._client,
                self._compute,
                self._encoder,
                engine,
                self.lock,
                self._relabel,
            )
            self._comparing = Comparing(
                self.id,
                self._client,
                self.database,
                self._publishing,
                self._take_in_changed,
                self._publish_anew,
                self._basis,
            )
            self._rounds = Rounds(
                self.id,
                self.settings,
                self.database,
                self.arrays,
                getattr(self._compute, "address", ""),
                lambda: self._learning.tested.counts("linear"),
            )
            self._tabs = Tabs(self.id, self._client, self.arrays, by_suspicion=self.settings.task_columns)
            self._columns = columns.Columns(self.id, self._client, self.arrays)
            self._name_classes()
            self._refresh()
            self._rounds.load(engine)
            if self._keeper is not None and self._rounds.lacks_classifier():  # the owner before us could not put it
                self._rounds.request()
            with self.database.begin() as conn:
                for version in revisions.importing(conn, self.id):  # begun by a process that was killed
                    revisions.abandon(conn, self.id, version)
            self._catch_up()
            self._learn(self._learning.catch_up)  # before anything is served; on a full disk, too
            if self.settings.rerank == "round":  # the batch outlives the process, as the round does
                shown = snapshots.read_head(self.arrays)
                self._batch = [] if shown is None else [ranked.task for ranked in shown.tasks]
        self.arrays.clear_stale()
        self.loaded.set()
        log.info("project %d: loaded, %d tasks with features", self.id, len(engine))

    def _parse(self, xml: str) -> LabelConfig:
        return label_config.parse(xml, self.settings.invalid_choices, self.settings.control)

    def _refresh(self) -> None:
        """Bring the engine in line with the store: tasks, features, labels."""
        assert self._images is not None
        assert self._engine is not None
        assert self._config is not None
        with self.lock:  # before reading: what an event deletes meanwhile would come back
            with self.database.read() as conn:
                images = tasks.task_images(conn, self.id)
            usable = {t: ref for t, ref, state in images if state == "ready"}
            there = {t for t, _, _ in images}
            gone = [t for t in self._engine.labels() if t not in there]  # labelled, their images perhaps never read
            self._engine.remove_tasks([*gone, *(t for t in self._engine.tasks() if t not in usable)])
            missing = [(t, ref) for t, ref in usable.items() if t not in self._engine]
            lost = {t for t, _ in missing} - self._images.take_stored(missing)
            if lost:  # marked as ready, but the arrays were lost or are of another encoder
                with self.database.begin() as conn:
                    tasks.set_image_state(conn, self.id, lost, "pending")
            self._engine.set_labels(reading.resolve_labels(self.database, self.id, self._config))
            self._shown.is_another()

    def _catch_up(self) -> None:
        """Note which event the store, and so the engine, has come to."""
        with self.database.read() as conn:
            waiting = inbox.pending(conn, self.id, 1)
            self._applied = waiting[0].id - 1 if waiting else inbox.received_through(conn, self.id)

    def _still_ours(self) -> None:
        """Raise LeaseLost unless this worker owns the project and has not been asked to put it away."""
        self._check_lease()
        with self.database.read() as conn:
            owner = projects.lease_owner(conn, self.id)
        if owner != self.owner or self.stopping.is_set():
            raise LeaseLost(f"project {self.id} belongs to another worker now, or is being put away")

    def _check_lease(self) -> None:
        if self._may_be_taken():
            raise StoreError("The lease could not be renewed in time: nothing is published until it is")

    def _may_be_taken(self) -> bool:
        return time.monotonic() > self.leased_until

    def keep_step(self) -> bool:
        """Put array files that have changed on the object store, where there is one; True if there were any."""
        if self._keeper is None:
            return False
        began = time.monotonic()
        try:
            return self._keeper.keep()
        finally:
            self.keep_seconds = time.monotonic() - began

    # events

    def apply_step(self) -> bool:
        """Take in what has piled up in the inbox; True if there was anything."""
        if self._stale:
            with self.lock:
                self._refresh()
                self._catch_up()
            self._stale = False
        with self.database.read() as conn:
            waiting = inbox.pending(conn, self.id, EVENTS_AT_ONCE)
        if not waiting:
            return False
        self.last_used = time.monotonic()
        try:
            self._apply(waiting)
        except LeaseLost:
            raise
        except Exception as error:
            if self._stale or _is_no_fault_of_an_event(error):
                raise  # it is in the store already, so no event is to blame
            log.exception("project %d: a batch of %d events failed, taking them one by one", self.id, len(waiting))
            self._apply_one_by_one(waiting)
        return True

    def _apply(self, waiting: Sequence[Event]) -> None:
        try:
            effects = self._store(waiting)
        except DataRefused:
            raise
        except StoreError:
            self._be_stale()  # it may have failed after the commit
            raise
        try:
            self._take_in(effects)
        except BaseException:
            self._be_stale()
            raise

    def _be_stale(self) -> None:
        self._stale = self._sync_wanted = True
        self._bulk_wanted.set()

    def _store(self, waiting: Sequence[Event]) -> Effects:
        """Events → store, in one transaction with their being marked applied."""
        assert self._config is not None
        effects = Effects()
        changes = [(event, self._in_time(ls_events.changes(event, self._config.image_key))) for event in waiting]
        answered = {answer.task for _, change in changes for answer in change.annotations}
        chosen = self._chosen(answered)  # before the transaction: nobody may wait for our lock inside one
        with self.database.begin() as conn:
            for event, change in changes:
                self._store_event(conn, event, change, effects)
            reading.note_chosen(conn, self.id, self._config, chosen)
            inbox.mark_applied(conn, [event.id for event in waiting])
            projects.update(conn, self.id, applied_event=waiting[-1].id, **self._news(effects))
        effects.through = waiting[-1].id
        for event in waiting:
            log.debug("project %d: event %d, %s, applied", self.id, event.id, event.action)
        return effects

    def _in_time(self, change: ls_events.Changes) -> ls_events.Changes:
        """The change, without times that are ahead of Label Studio's clock."""
        now = self._api.clock()
        return change if now is None else ls_events.no_later_than(change, now + CLOCK_SLACK)

    def _apply_one_by_one(self, waiting: Sequence[Event]) -> None:
        """The same for a batch with a bad event in it: that one is tried again, then set aside."""
        for event in waiting:
            try:
                self._apply([event])
            except LeaseLost:
                raise
            except Exception as error:
                if self._stale or _is_no_fault_of_an_event(error):
                    raise
                reason = f"{type(error).__name__}: {error}"
                with self.database.begin() as conn:
                    attempts = inbox.record_attempt(conn, event.id, reason)
                    if attempts >= POISON_ATTEMPTS:
                        inbox.set_aside(conn, event.id, reason)
                if attempts < POISON_ATTEMPTS:
                    self.stopping.wait(POISON_RETRY_SECONDS * 3 ** (attempts - 1))
                    return  # the order is kept: what follows waits for its next try
                log.error("project %d: event %d (%s) set aside: %s", self.id, event.id, event.action, reason)
                with self.lock:
                    self._applied = max(self._applied, event.id)

    def _chosen(self, answered: Iterable[int]) -> dict[int, Selection]:
        """Where those of the answered tasks that are in the pool stand in the order that is served."""
        assert self._engine is not None
        with self.lock:
            pool = self._engine.unlabelled(answered)
            head = self._shown.head
        if not pool:
            return {}
        places = snapshots.places(self.arrays, head or snapshots.read_head(self.arrays), pool)
        return {task: Selection(one.rank, one.inconsistency) for task, one in places.items()}

    def _note_chosen(self, answered: Iterable[int]) -> None:
        """The same for answers that no event has told of: what was served since is still in the order."""
        assert self._config is not None
        chosen = self._chosen(answered)
        if chosen:
            with self.database.begin() as conn:
                reading.note_chosen(conn, self.id, self._config, chosen)

    def _store_event(self, conn: Connection, event: Event, change: ls_events.Changes, effects: Effects) -> None:
        if change.tasks:
            done = tasks.upsert_tasks(conn, self.id, change.tasks, event.id)
            effects.image_changed.update(done.image_changed)
            effects.relabelled.update(done.new, done.revived, done.image_changed)
            effects.new_images |= bool(done.new or done.revived or done.image_changed)
            effects.deleted.difference_update(done.new, done.revived)
            effects.with_annotations.update(t.id for t in change.tasks if t.has_annotations)
        if change.deleted_tasks:
            effects.deleted.update(tasks.delete_tasks(conn, self.id, change.deleted_tasks, event.id))
        if (change.annotations or change.deleted_annotations) and effects.received_at is None:
            effects.received_at = event.received_at
        effects.answered |= bool(change.annotations or change.deleted_annotations)
        if change.annotations:
            effects.relabelled |= tasks.upsert_annotations(conn, self.id, change.annotations, event.id)
        if change.deleted_annotations:
            effects.relabelled |= tasks.delete_annotations(conn, self.id, change.deleted_annotations, event.id)
        if change.retry_images:
            effects.new_images |= bool(tasks.retry_failed(conn, self.id))
        if change.project is not None and (
            effects.project is None or change.project.updated_at >= effects.project.updated_at
        ):
            effects.project, effects.project_event = change.project, event.id
        effects.train |= change.train
        effects.sync |= change.sync
        effects.compare |= change.compare

    def _take_in(self, effects: Effects) -> None:
        """What the store has taken in, for the engine too."""
        assert self._engine is not None
        assert self._config is not None
        assert self._rounds is not None
        # What can't fail comes first.
        self._annotations_wanted |= effects.with_annotations
        if effects.sync:
            self._sync_wanted = True
        if effects.compare:
            self._calls += 1
            self._compare_wanted = True
        with self.lock:
            self._engine.remove_tasks(effects.deleted | effects.image_changed)
            self._shown.moved(effects.deleted | effects.relabelled | effects.image_changed)
            if effects.train:
                self._rounds.request()
            relabelled = effects.relabelled - effects.deleted
            if relabelled:
                began = time.perf_counter()
                labels = reading.resolve_labels(self.database, self.id, self._config, relabelled)
                self._learning.test(self._engine, labels)
                self._engine.set_labels(labels)
                self._rerank_seconds += time.perf_counter() - began
            if effects.received_at is not None:
                self._unserved.append((effects.through, effects.received_at))
            self._follow_project(self._news(effects), effects)
            self._applied = max(self._applied, effects.through)
            if effects.answered:
                self._answered = self._applied
        if effects.new_images or effects.sync or effects.compare or effects.with_annotations:
            self._bulk_wanted.set()

    def _news(self, effects: Effects) -> dict[str, str]:
        """Which of the project's settings the events change.

        Nearly every event carries the settings of its moment, and they overtake each other: those of an
        event that was there before the project was last read, or older ones, change nothing.
        """
        fields = effects.project
        if fields is None or fields.updated_at < self._fields_at or effects.project_event <= self._fields_event:
            return {}
        ours = {"title": self._title, "label_config": self._label_config, "sampling": self._sampling}
        theirs = {name: getattr(fields, name) for name in ours}
        return {name: value for name, value in theirs.items() if value and value != ours[name]}

    def _follow_project(self, changed: dict[str, str], effects: Effects) -> None:
        """The project's settings came with an event: follow what changed."""
        assert self._publishing is not None
        if effects.project is not None:
            self._fields_at = max(self._fields_at, effects.project.updated_at)
            version = effects.project.model_version
            if version is not None and self._publishing.is_switched_off(version, effects.project_event):
                log.warning("project %d: the model version was set to %r; publishing anew", self.id, version)
                self._publish_anew()
        if changed:
            self._fields_event = effects.project_event
        self._title = changed.get("title", self._title)
        if "sampling" in changed:
            self._sampling = changed["sampling"]
            log.info("project %d: sampling is now %r", self.id, self._sampling)
        if "label_config" in changed:
            self._label_config = changed["label_config"]
            self._use_label_config(self._label_config)

    def _use_label_config(self, xml: str) -> None:
        """Switch to another label config; one that can't be used is said, and the old one stays."""
        assert self._engine is not None
        assert self._publishing is not None
        assert self._rounds is not None
        try:
            config = self._parse(xml)
        except BadLabelConfig as error:
            self.problem("label config", projects.BLOCKED, str(error))
            return
        self.solved("label config")
        before, self._config = self._config, config
        if config == before:
            return
        log.info("project %d: classes are now %s", self.id, ", ".join(config.classes))
        self._publishing.publisher = Publisher(self._publishing.publisher.client, self.id, config)
        if config.classes != self._engine.classes:
            self._engine.set_classes(config.classes)
            self._rounds.follow_classes(self._engine)
            self._name_classes()
            self._rounds.request("classes")
            self._batch = []
        elif before is not None and config.texts != before.texts:
            self._name_classes()
        self._engine.set_labels(reading.resolve_labels(self.database, self.id, config))
        self._shown.is_another()
        if before is not None and config.image_key != before.image_key:
            self._sync_wanted = True  # other images: read the tasks again
            self._bulk_wanted.set()

    # reading and embedding

    def bulk_step(self) -> bool:
        """One piece of the work that takes long; True if there was any."""
        assert self._images is not None
        self._bulk_wanted.clear()  # first: what is wanted from now on is not overlooked
        if self._sync_wanted:
            try:
                self._sync()
            except BaseException:  # whatever it was, it is still to be done
                self._sync_wanted = True
                raise
        elif self._annotations_wanted:
            wanted, self._annotations_wanted = self._annotations_wanted, set()
            try:
                reading.read_annotations(self.id, sorted(wanted), self._api, self.database)
                self._relabel(wanted)
            except BaseException:
                self._annotations_wanted |= wanted
                raise
        elif self._images.embed(self._state, self.stopping.is_set) or self._fill_probabilities():
            self._computed = True
        elif self._reconcile_due():
            self._reconcile()
        else:
            if self._computed:
                heap.give_back()
                self._computed = False
            self._state.at(projects.READY)
            return False
        return True

    def wait_for_bulk(self, seconds: float) -> None:
        self._bulk_wanted.wait(seconds)

    @property
    def _api(self) -> LabelStudioClient:
        assert self._client is not None
        return self._client

    def _sync(self) -> None:
        assert self._comparing is not None
        self._state.at(projects.SYNCING)
        project, backend = self._hold_connection()
        self._ensure_webhook(backend)
        if self._missed_wanted and project.compared_at is not None:
            assert self._config is not None
            self._comparing.read_missed(project.compared_at, self._config.image_key, self._label_config)
        self._missed_wanted = False
        self._sync_wanted = False  # before reading: what asks for it from now on is not overlooked
        began = self._api.now()
        found = reading.read_project(self.id, self.settings, self._api, self.database, self._state.progress)
        self._note_chosen(found.relabelled)
        with self.lock:
            if self._fields_event <= found.seen:
                info, self._fields_event = found.info, found.seen
                self._fields_at = min(self._fields_at, began)
                self._title, self._label_config, self._sampling = info.title, info.label_config, info.sampling
            # Else an event that came while the project was read knows better.
            self._update(title=self._title, label_config=self._label_config, sampling=self._sampling)
            self._use_label_config(self._label_config)
            self._refresh()
        self._comparing.read_at(began)
        now = datetime.now(timezone.utc)
        self._update(synced_at=now, compared_at=now)
        # Label Studio makes its own webhook after /setup was answered: look again now.
        self._ensure_webhook(backend)

    def _ensure_webhook(self, backend: MLBackend) -> None:
        self._state.notice(connection.ensure_webhook(self.id, backend, self.settings, self._api))

    def _hold_connection(self) -> tuple[Project, MLBackend]:
        """See that Label Studio still has our project and a connection to us; a new one is configured.

        Raises Disconnected, Replaced, LabelStudioError; LeaseLost where the connection has other extra params than
        this was made with.
        """
        with self.database.read() as conn:
            project = projects.get(conn, self.id)
        if project is None:
            raise LeaseLost(f"project {self.id} is not connected any more")
        calls = self._calls
        try:
            info, backend = connection.look(self._api, project, called=calls > self._calls_heeded)
        except Disconnected:
            if calls == self._calls:
                raise
            return self._hold_connection()  # Label Studio calls /setup first and then makes the connection
        self._calls_heeded = calls
        if backend.extra_params != project.extra_params:
            self._update(extra_params=dict(backend.extra_params))
            raise LeaseLost(f"project {self.id}: its connection has other extra params, it is started anew")
        if backend.key != project.connection:
            is_new = project.connection is not None or project.synced_at is None
            if is_new and self.settings.configure_project:
                assert self._tabs is not None
                reading.configure(self.id, self._api, self.database, self._tabs)
                self._sampling = UNCERTAINTY
            self._update(connection=backend.key, created_at=info.created_at)
        self._connected = True
        return project, backend

    def _relabel(self, of_tasks: Iterable[int]) -> None:
        assert self._engine is not None
        assert self._config is not None
        with self.lock:
            self._engine.set_labels(reading.resolve_labels(self.database, self.id, self._config, of_tasks))

    def _fill_probabilities(self) -> bool:
        """Class probabilities for tasks that were embedded after the last round."""
        assert self._engine is not None
        assert self._rounds is not None
        with self.lock:
            missing = self._engine.untrained()
        return bool(missing) and self._rounds.fill(self._engine, self.lock, missing)

    def _reconcile_due(self) -> bool:
        due = self.settings.reconcile_seconds > 0 and time.monotonic() >= self._reconcile_at
        return due or self._compare_wanted

    def _reconcile(self) -> None:
        """Find what no webhook has told, or one that was lost."""
        assert self._comparing is not None
        assert self._config is not None
        asked = self._compare_wanted  # by /setup: Label Studio may have made a webhook since
        self._compare_wanted = False  # before looking: what asks for it from now on is not overlooked
        try:
            project, backend = self._hold_connection()
            if asked or backend.key != project.connection:
                self._ensure_webhook(backend)
            compared = self._comparing.compare(self._config.image_key, self._label_config)
        except BaseException:
            self._compare_wanted = True  # it is made as soon as Label Studio is back
            raise
        if compared.read_again:
            self._sync_wanted = True
        if compared.info is not None and compared.info.sampling != self._sampling:
            with self.lock:
                self._sampling = compared.info.sampling
            self._update(sampling=compared.info.sampling)
        self._reconcile_at = time.monotonic() + self.settings.reconcile_seconds
        if compared.equal:
            self._update(compared_at=datetime.now(timezone.utc))

    def _publish_anew(self) -> None:
        assert self._publishing is not None
        with self.lock:
            self._publishing.forget()
            self._seen = ()

    def _take_in_changed(self, found: reading.Changed) -> None:
        if found:
            self._note_chosen(found.relabelled)
            self.count_found(found)
            effects = Effects(
                relabelled=found.relabelled | found.new_images,
                deleted=found.deleted,
                image_changed=found.image_changed,
                new_images=bool(found.new_images),
            )
            try:
                self._take_in(effects)
            except BaseException:
                self._be_stale()  # the store has it, the engine may not
                raise

    def count_found(self, found: reading.Changed) -> None:
        """A comparison has found this."""
        self._measures.found(measures.LABELS, len(found.relabelled))
        self._measures.found(measures.IMAGES, len(found.new_images))
        self._measures.found(measures.DELETED, len(found.deleted))

    def _name_classes(self) -> None:
        """A strategy may begin with the classes' names, where the encoder reads text."""
        assert self._engine is not None
        assert self._encoder is not None
        assert self._config is not None
        classes = self._engine.classes
        if self._planning is not None:
            self._engine.class_features = self._encoder.encode_names(classes)
        self._learning.name(classes, self._encoder.encode_names([*self._config.texts, "thing"]))

    # rounds

    def rounds_step(self) -> bool:
        """Take in a finished training, start one that is due; True if anything happened."""
        assert self._images is not None
        assert self._engine is not None
        assert self._rounds is not None
        finished = self._rounds.finish(self._engine, self.lock)
        if finished:
            self._images.miss()  # the training has read them all
            self._bulk_wanted.set()
            self._end_batch()
        begun = self._rounds.start(self._engine, self.lock, idle=self._state.bulk == projects.READY)
        if begun and self.settings.classifier == "linear":  # such a round ends as it begins
            self._end_batch()
        return begun or finished

    def _end_batch(self) -> None:
        """The next one is chosen from the order as it is now."""
        with self.lock:
            self._batch = []
            self._batches += 1

    def learn_step(self) -> bool:
        """Bring the linear classifier in line with the labels; True if anything changed."""
        return self._learn(self._learning.step)

    def _learn(self, step: Callable[..., bool]) -> bool:
        assert self._engine is not None
        assert self._rounds is not None
        engine, network = self._engine, self._rounds
        return step(engine, self.lock, lambda: self._applied, lambda: network.follow_classes(engine))

    # publishing

    def plan_step(self) -> bool:
        """Bring the strategy's order up to date; True if there was anything to do."""
        assert self._engine is not None
        if self._planning is None or self._learning.is_behind(self._engine):
            return False
        made = self._planning.step(self._engine, self.lock, lambda: self._applied, self._queries)
        if made:
            self.stopping.wait(self._planning.rest_seconds)
        return made

    def _queries(self) -> list[list[int]]:
        with self.database.read() as conn:
            return queries.answered(conn, self.id, least=-(-self.settings.batch_size // 2))

    def publish_step(self) -> bool:
        """Make the present order the one that is served and shown; True if nothing is left to do for it."""
        assert self._engine is not None
        assert self._publishing is not None
        if not self._connected:
            return False
        with self.lock:
            if self._learning.holds(self._engine):
                return False
            plan = self._planning.version if self._planning else 0
            seen = (
                self._engine.version,
                self._applied,
                self._sampling,
                self._state.bulk,
                self._batches,
                plan,
                self._learning.event,
            )
            if seen == self._seen and self._shown.is_written(self._engine.version):
                return True
            if seen != self._looked_at:  # else it waits for its turn
                self._order, self._shows = self._look()
                self._looked_at = seen
            order, shows = self._order, self._shows
        assert order is not None
        assert shows is not None
        served, ours, waits = seen == self._seen, True, False
        try:
            served = served or self._publishing.step(order, self._left_pool)
            # Labels are shown at once; what else changes the order, a round, is shown when it is served, which is soon.
            waits = not served and not order.hold and self._shown.reflects(shows.event)
        except LeaseLost:
            ours = False  # what is shown is another worker's word by now
            raise
        finally:
            if ours and not waits and not self._may_be_taken():
                self._shown.show(shows, self._publishing.version, self._engine)
            if self._publishing.vanished:
                self._publishing.vanished.clear()
                self._sync_wanted = True
                self._bulk_wanted.set()
        if served:
            self._publishing.reflects(order.event)
            self._note_served(order.event)
            self._seen = seen
        return served and self._shown.is_written(seen[0])

    def _look(self) -> tuple[Order, Head]:
        """The order of this moment, for Label Studio and for the web; costs the same in a pool of any size."""
        assert self._images is not None
        assert self._engine is not None
        began = time.perf_counter()
        head, counts = self._head(), self._engine.counts()
        if self._rerank_seconds:
            self._measures.observe(measures.RERANK, self._rerank_seconds + time.perf_counter() - began)
            self._rerank_seconds = 0.0
        live = self.settings.rerank == "live" and self._planning is None
        reflects = self._applied
        if self._planning is not None and self._planning.is_behind(self._engine):
            reflects = min(reflects, self._planning.event)
        if self._learning.is_behind(self._engine) and len(self._engine) <= LARGE_POOL:
            reflects = min(reflects, self._learning.event)
        assert self._publishing is not None
        # Images that come in may wait for each other, an answer that nobody is served from yet may not.
        hold = self._state.bulk == projects.EMBEDDING and self._answered <= self._publishing.event
        order = Order(
            head,
            reflects,
            self._sampling,
            hold=hold,
            version=self._engine.head_version if live else None,
        )
        shows = Head(
            head,
            self._engine.classes,
            counts.known,
            counts.invalid,
            counts.unlabelled,
            self._applied,
            left=self._shown.left(self._engine),
            features=self._images.kind,
            without_label=self._engine.without_label(),
        )
        return order, shows

    def _head(self) -> list[Ranked]:
        """What to serve, best first: live, or what is left of the round's fixed batch."""
        assert self._engine is not None
        if self.settings.rerank == "live":
            return self._best()
        left = self._engine.unlabelled(self._batch)
        self._batch = [task for task in self._batch if task in left]
        if self._batch:
            ranked = self._engine.ranked(self._batch)
            first = sorted(ranked, key=lambda one: (-one.priority, one.task))
            # Labels move priorities, and Label Studio sorts by them: after a restart by those of that moment.
            return ranked if first == ranked and not self._planning else in_this_order(ranked)
        best = self._best()
        behind = self._planning is not None and self._planning.is_behind(self._engine)
        if self._state.bulk == projects.READY and not behind:  # else nothing is fixed yet
            self._batch = [ranked.task for ranked in best]
        return best

    def _best(self) -> list[Ranked]:
        """The first 2B of this moment, by the strategy."""
        assert self._engine is not None
        if self._planning is not None:
            return self._planning.head(self._engine)
        return self._engine.ranked(self._engine.head())

    def _left_pool(self, served: Sequence[int]) -> set[int]:
        assert self._engine is not None
        with self.lock:
            return set(served) - self._engine.unlabelled(served)

    def _note_served(self, event: int) -> None:
        """Annotators are served what the inbox told up to this event."""
        now = datetime.now(timezone.utc)
        while self._unserved and self._unserved[0][0] <= event:
            self._measures.observe(measures.SERVE, (now - self._unserved.popleft()[1]).total_seconds())

    def tidy_step(self) -> bool:
        """One piece of publishing that nobody waits for; True if there was any."""
        assert self._publishing is not None
        self._measures.save()
        # Tabs and columns wait after failures by themselves; what raises comes last, so that it alone is what counts.
        done = self._keep_tabs() | self._write_columns()
        return self._publishing.background_step(self._first, self._sampling) or done

    def _write_columns(self) -> bool:
        if not self.settings.task_columns or self._order is None:
            return False
        assert self._columns is not None
        assert self._config is not None
        return self._config.image_key not in columns.NAMES and self._columns.step(
            self._order.head, self._insights.mistakes()[:MOST_CHECKED]
        )

    def _keep_tabs(self) -> bool:
        """Make again the tabs that are gone, turn the one round with the sampling, list the labels to check."""
        assert self._tabs is not None
        assert self._comparing is not None
        if not self.settings.configure_project or not self._comparing.has_read:  # not before the first reading
            return False
        with self.database.read() as conn:
            to_check = insights.unconfirmed(conn, self.id, self._insights.mistakes())
        return self._tabs.step(self._sampling, to_check)

    def insight_step(self) -> bool:
        """One piece of what people are shown beside the order; True if there was any."""
        assert self._engine is not None
        assert self._images is not None
        settled = self._state.bulk == projects.READY
        return self._insights.step(self._engine, self.lock, self._images.kind, settled=settled)

    def _first(self, n: int) -> list[Ranked]:
        assert self._engine is not None
        with self.lock:
            return self._engine.ranked(self._engine.head(n))

    # what people see

    def problem(self, where: str, state: str, detail: str) -> None:
        """Something keeps a part from working: show it until it is solved."""
        self._state.problem(where, state, detail)

    def solved(self, where: str) -> None:
        self._state.solved(where)

    def _update(self, **fields: object) -> None:
        with self.database.begin() as conn:
            projects.update(conn, self.id, **fields)

    @property
    def basis(self) -> Basis:
        """What the next worker's thread to look after the project begins from."""
        return Basis(None, self._basis.unexplained) if self._sync_wanted or self._stale else self._basis

    def look_again(self) -> None:
        """Something is gone from Label Studio: perhaps the project itself, or the connection."""
        self._compare_wanted = True
        self._bulk_wanted.set()

    def is_busy(self) -> bool:
        """Is there anything that would be interrupted by putting the project away?"""
        return (
            not self.loaded.is_set()
            or self._sync_wanted
            or self._compare_wanted
            or self._state.bulk != projects.READY
            or (self._images is not None and self._images.is_retrying())
            or (self._engine is not None and self._seen[:2] != (self._engine.version, self._applied))
            or (self._engine is not None and self._learning.is_behind(self._engine))
            or (self._engine is not None and self._planning is not None and self._planning.is_behind(self._engine))
            or (self._engine is not None and not self._shown.is_written(self._engine.version))
            or (self._rounds is not None and self._rounds.is_training)
        )

    def stuck_seconds(self) -> float:
        """For how long something has kept a part from working; 0 = nothing does."""
        return self._state.stuck_seconds()

    def stop(self) -> None:
        self.stopping.set()
        self._bulk_wanted.set()
        if self._rounds is not None:
            self._rounds.stop()
