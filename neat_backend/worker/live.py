"""A live project: the engine in memory, and the steps that keep it and Label Studio up to date.

    apply    events of the inbox → store and engine; one transaction stores them and marks them applied
    bulk     reading the project, embedding images, probabilities of new tasks, comparing
    learn    fits the linear classifier to new labels, decides which classifier is in force
    plan     the order of a strategy that can't follow each label at once; only with such a strategy
    rounds   starts a training when one is due, stores its result
    publish  the order's head → Label Studio; head and ranking → files for the web process
    tidy     the tail's scores, old revisions, the Data Manager's tabs and columns
    insight  the map, estimates and likely mistakes for the web
    keep     array files → the object store; only where there is one

Each is a job of its own (running_project.py), which runs after changes in the project, or when its own time comes.
All use the engine through `LiveProject.engine`, for milliseconds.
Nothing here is persistent: `load` rebuilds it from the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from neat_backend import connection
from neat_backend.compute import Compute, LocalCompute
from neat_backend.compute.embedding import ReadingEncoder
from neat_backend.compute.inference_process import InferenceProcess
from neat_backend.errors import BadLabelConfig, Disconnected, LeaseLost
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.client import LabelStudioClient
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.labelstudio.publisher import Publisher
from neat_backend.models.backends import backend_of, with_backend
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.neighbors import LargePool
from neat_backend.ranking.prefill import filled_in
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.records import Project
from neat_backend.store import kinds, measures, prequential, projects, queries, revisions, snapshots
from neat_backend.store.measures import Measures
from neat_backend.worker.owned_project import OwnedProject
from neat_backend.worker.steps.annotator_figures import People
from neat_backend.worker.steps.answering import Answering
from neat_backend.worker.steps.applying import Applying
from neat_backend.worker.steps.bulk import Bulk
from neat_backend.worker.steps.comparing import Basis, Comparing
from neat_backend.worker.steps.connection_watch import Connecting
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.data_manager import DataManager, Tabs
from neat_backend.worker.steps.duplicate_groups import Duplicates
from neat_backend.worker.steps.event_following import Following
from neat_backend.worker.steps.followed import Followed
from neat_backend.worker.steps.image_fetching import PoolImages
from neat_backend.worker.steps.insight import Insights
from neat_backend.worker.steps.intake import Intake
from neat_backend.worker.steps.keeping import Keeping
from neat_backend.worker.steps.label_schema import Schema
from neat_backend.worker.steps.labelling import Labelling
from neat_backend.worker.steps.learning import Learning, engine_settings
from neat_backend.worker.steps.planning import Planning, Unplanned
from neat_backend.worker.steps.publishing import Publishing
from neat_backend.worker.steps.query_rounds import Classify, Rounds
from neat_backend.worker.steps.reading import Changed
from neat_backend.worker.steps.reranking import CurrentOrder
from neat_backend.worker.steps.serving import Serving
from neat_backend.worker.steps.shown_state import ShownOrder
from neat_backend.worker.steps.step import Step
from neat_backend.worker.steps.suspicions import Suspicions
from neat_backend.worker.steps.syncing import Syncing
from neat_backend.worker.steps.tidying import Tidying
from neat_backend.worker.steps.timing import LabelTimes
from neat_backend.worker.steps.wanted import Wanted

if TYPE_CHECKING:
    from neat_backend.models.encoders import Encoder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resources:
    """Resources that the projects of a process share; each is made at first use."""

    encoder: Callable[[], Encoder | InferenceProcess]
    connect: Callable[[Project], LabelStudioClient]
    compute: Callable[[], Compute] = LocalCompute
    classify: Classify | None = None  # as for `Rounds`


class LiveProject:
    """The live state of one project; only `load` makes one."""

    def __init__(
        self, owned: OwnedProject, project: Project, config: LabelConfig, context: Context, shared: Resources
    ) -> None:
        """Builds the parts; `load` fills them."""
        settings, state, stopping = context.settings, owned.state, owned.stopping
        compute = shared.compute()
        encoder = _encoder(context, shared.encoder())
        self.id, self.owned, self.context = project.id, owned, context
        self.engine = engine = SharedEngine(_engine(context, config, encoder, compute))
        self.followed = followed = Followed(project)
        self.wanted = wanted = Wanted(read=owned.basis.since is None)
        self.measures = kept = Measures(context.arrays)
        times, features = LabelTimes(kept), kinds.features_kind(encoder.key)

        def applied() -> int:
            return followed.applied

        def settled() -> bool:
            return state.bulk == projects.READY

        def trained() -> None:
            self.images.requeue_lost()  # the training has read them all
            wanted.wake()

        self.rounds = Rounds(
            context,
            engine,
            ray_address=getattr(compute, "address", ""),
            tested=lambda: self.learning.tested.counts("linear"),
            settled=settled,
            on_trained=trained,
            classify=shared.classify,
        )
        self.learning = Learning(context, engine, applied, self.rounds.follow_classes)
        self.shown = shown = ShownOrder(context, engine, project.model_version)
        self.suspicions = Suspicions(context, owned.check_ownership)
        self.publishing = Publishing(
            context,
            Publisher(context.client, project.id, config),
            self.suspicions,
            check_ownership=owned.check_ownership,
            on_published=lambda seconds: kept.observe(measures.PUBLISH, seconds),
            fill=lambda task: filled_in(task, settings.prefill, self.learning.tested.leader_counts, settings.k),
        )
        self.schema = Schema(context, engine, config, encoder, self.publishing, self.rounds, self.learning, state)
        labelling = Labelling(context, engine, self.schema, self.learning, shown, times)
        self.images = PoolImages(context, engine, compute, encoder, labelling)
        following = Following(context, followed, self.publishing, self.schema, labelling, wanted)
        self.intake = Intake(context, engine, self.images, labelling, following, self.rounds, shown, wanted)
        comparing = Comparing(context, self.publishing, self._found, self.publishing.forget, owned.basis)
        tabs = Tabs(context)
        connecting = Connecting(context, followed, tabs, state)
        syncing = Syncing(context, self.intake, self.schema, followed, connecting, comparing, wanted, state)
        self.plan = self._plan()
        current = CurrentOrder(
            context, engine, followed, self.plan, self.learning, self.rounds, state, _batch_before(context)
        )
        self.apply = Applying(context, self.intake, self.schema, followed, shown, stopping)
        self.bulk = Bulk(syncing, self.images, self.rounds, wanted, state, stopping)
        self.publish = Serving(
            engine, current, self.publishing, shown, times, wanted, features, owned.lease_may_be_over
        )
        self.insight = Insights(context.arrays, engine, features, settings.seed, settled)
        self.answer = Answering(context, encoder, tabs)
        self.duplicates = Duplicates(context, engine, features, settled)
        self.data_manager = DataManager(
            context, followed, self.schema, self.publish, self.insight, self.suspicions, tabs, owned.basis
        )
        self.tidy = Tidying(engine, followed, self.publishing, self.data_manager, kept)
        self.people = People(context, engine)
        planning = [self.plan] if isinstance(self.plan, Planning) else []
        keeping = [Keeping(owned.keeper)] if owned.keeper is not None else []
        self.steps: tuple[Step, ...] = (
            self.apply,
            self.bulk,
            self.learning,
            *planning,
            self.rounds,
            self.publish,
            self.tidy,
            self.insight,
            self.people,
            self.duplicates,
            self.answer,
            *keeping,
        )

    @classmethod
    def load(cls, owned: OwnedProject, shared: Resources) -> LiveProject:
        """Build the project from the store. Raises NeatError, saying what is missing, where that fails."""
        with owned.database.read() as conn:
            project = projects.get(conn, owned.id)
        if project is None:
            raise LeaseLost(f"project {owned.id} is not connected any more")
        client = shared.connect(project)
        if owned.keeper is not None:
            owned.keeper.take_over()  # before anything reads the arrays
        context = Context(project.id, owned.settings, owned.database, owned.arrays, client)
        project, config = _usable(project, context)
        live = cls(owned, project, config, context, shared)
        live.intake.refresh()
        live.rounds.load()
        live.duplicates.load()
        if owned.keeper is not None and live.rounds.lacks_classifier():  # the previous owner could not upload it
            live.rounds.request()
        with owned.database.begin() as conn:
            for version in revisions.importing(conn, project.id):  # begun by a process that was killed
                revisions.abandon(conn, project.id, version)
        live.intake.catch_up()
        live.learning.catch_up()  # before anything is served; works on a full disk too
        owned.arrays.clear_stale()
        with live.engine() as engine:
            log.info("project %d: loaded, %d tasks with features", project.id, len(engine))
        return live

    def on_change(self, stir: Callable[[], None], read: Callable[[], None]) -> None:
        """Set what to call when the engine has changed, and when something is to be read from Label Studio."""
        self.engine.on_change, self.wanted.on_news = stir, read

    def pulse(self) -> tuple[object, ...]:
        """The state that the steps depend on, without the engine: they have to run when it has changed."""
        followed, rounds, publishing = self.followed, self.rounds, self.publishing
        return (
            *(followed.applied, followed.answered, followed.calls, followed.connected, followed.sampling),
            *(rounds.ended, rounds.wanted, rounds.is_busy(), self.plan.version, self.learning.event),
            *(publishing.version, publishing.forgotten, self.insight.written),
            *(self.owned.state.bulk, self.intake.stale, self.owned.basis.since is None),
        )

    def is_busy(self) -> bool:
        """Whether unloading the project would interrupt anything."""
        return self.intake.stale or any(step.is_busy() for step in self.steps)

    @property
    def last_used(self) -> float:
        """Time of the last event: time.monotonic()."""
        return self.apply.last_used

    @property
    def basis(self) -> Basis:
        """The basis of the next comparison, by whichever thread makes it."""
        basis = self.owned.basis
        return Basis(None, basis.unexplained) if self.wanted.read or self.intake.stale else basis

    def count_found(self, found: Changed) -> None:
        """Count the differences that a comparison found."""
        self.measures.found(measures.LABELS, len(found.relabelled))
        self.measures.found(measures.IMAGES, len(found.new_images))
        self.measures.found(measures.DELETED, len(found.deleted))

    def stop(self) -> None:
        """Stop running work. `owned.stopping` has been set."""
        self.rounds.stop()

    def _found(self, found: Changed) -> None:
        if found:
            self.count_found(found)
            self.intake.apply_changes(found)

    def _plan(self) -> Planning | Unplanned:
        settings, context = self.context.settings, self.context
        if settings.strategy == "neat":
            return Unplanned(self.engine)

        def answered() -> list[list[int]]:
            with context.database.read() as conn:
                return queries.answered(conn, context.project, least=-(-settings.batch_size // 2))

        return Planning(
            self.engine,
            settings.strategy,
            settings.seed,
            lambda: self.followed.applied,
            queries=answered,
            holds=self.learning.is_behind,
        )


def _usable(project: Project, context: Context) -> tuple[Project, LabelConfig]:
    """The project with a usable label config, its own or Label Studio's. Raises BadLabelConfig."""
    try:
        return project, label_config.read(project.label_config, context.settings)
    except BadLabelConfig as error:  # none yet, or it has been repaired since
        try:
            info, _ = connection.look(context.client, project)
        except Disconnected:
            if project.connection:
                raise
            raise error from None  # why its connection was refused, and so is missing
        context.update(label_config=info.label_config, sampling=info.sampling, title=info.title)
        project = replace(project, label_config=info.label_config, sampling=info.sampling)
        return project, label_config.read(project.label_config, context.settings)


def _encoder(context: Context, encoder: Encoder | InferenceProcess) -> ReadingEncoder:
    """The encoder by the back end that the settings name, or that made the project's features."""
    settings, arrays = context.settings, context.arrays
    stored = snapshots.features_kind(arrays, snapshots.read_head(arrays)).removeprefix(f"{kinds.FEATURES}/")
    backend = backend_of(settings.encoder_backend, settings.compute)
    if isinstance(encoder, InferenceProcess):
        return encoder.encoder(backend, stored)
    return with_backend(encoder, backend, stored)


def _engine(context: Context, config: LabelConfig, encoder: ReadingEncoder, compute: Compute) -> Engine:
    settings = context.settings
    return compute.engine(
        encoder.dim,
        config.classes,
        **engine_settings(settings, prequential.read(context.arrays)),
        large=LargePool(
            settings.neighbours, settings.features_memory, settings.scratch_dir or settings.data_dir / "scratch"
        ),
    )


def _batch_before(context: Context) -> list[int]:
    """The present round's batch with NEAT_RERANK=round; it outlives the process, as the round does."""
    shown = snapshots.read_head(context.arrays) if context.settings.rerank == "round" else None
    return [] if shown is None else [ranked.task for ranked in shown.tasks]
