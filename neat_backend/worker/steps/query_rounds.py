"""Query rounds of one project: starting trainings and storing their results.

A round is due after every B new labels, when a person presses "Start training", or when the class list changes.
Training runs in a process of its own (training.py).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neat_backend.compute.inference import Inference
from neat_backend.errors import ClassifierDamaged, StoreError, TrainingError
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.records import TRAIN, Round
from neat_backend.store import inbox, kinds, rounds, tasks
from neat_backend.store.arrays import image_key
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.step import Step
from neat_backend.worker.steps.training import TrainingJob, TrainingProcess

log = logging.getLogger(__name__)

BATCH, REQUESTED, CLASSES = "batch", "requested", "classes"  # triggers of a round
_FILL_AT_ONCE = 2048  # images classified in one step for tasks added after a round


Classify = Callable[[Path, NDArray[np.uint8]], NDArray[np.float32]]  # classifier's file, images -> probabilities


class Rounds(Step):
    """The rounds of one project; `step` and `fill` from one thread each.

    ended counts the rounds that have ended since the start, failed ones included.
    """

    name = "rounds"
    in_background = True
    rest_seconds = 0.2

    def __init__(
        self,
        context: Context,
        engine: SharedEngine,
        *,
        ray_address: str = "",
        tested: Callable[[], tuple[int, int]] = lambda: (0, 0),
        settled: Callable[[], bool] = lambda: True,
        on_trained: Callable[[], None] = lambda: None,
        classify: Classify | None = None,
    ) -> None:
        """ray_address: of the Ray cluster for trainings, with NEAT_COMPUTE=ray. tested: how often the linear classifier
        was right on the last labels before it learnt them, and the number of these labels. settled: whether no images
        wait to be embedded. on_trained: called after a training, which has read all images. classify: as
        `Inference.classify`, which is the default."""
        self.ended = 0
        self._engine, self._tested, self._settled, self._on_trained = engine, tested, settled, on_trained
        self.project, self.settings = context.project, context.settings
        self.database, self.arrays = context.database, context.arrays
        self._ray_address = ray_address
        self._classify = classify or Inference("", None, self.settings.device).classify
        self._training: tuple[Round, TrainingProcess, float] | None = None
        self.wanted = ""  # the trigger of a requested round
        self._failed: tuple[Round, str] | None = None  # a failure that is not stored yet
        self._noted = ""  # the last training's note, which is logged once
        self._counted = 0  # labels at the beginning of the last round
        self._known = 0
        self._done: Round | None = None  # the round whose probabilities are in use
        # Tasks (with image keys) for which that round's classifier has none of the present classes.
        self._unanswered: set[tuple[int, int]] = set()
        self._unanswered_by: tuple[object, ...] = ()

    def load(self) -> None:
        """Continue from the state in the store; an interrupted round is begun again."""
        with self.database.begin() as conn:
            interrupted = rounds.abandon_running(conn, self.project)
            begun = rounds.all(conn, self.project)
            last = [r for r in begun if r.state == "done" or r.error != "interrupted"]
            self._done = rounds.latest(conn, self.project)
            requested = inbox.applied_since(conn, self.project, TRAIN, begun[-1].started_at if begun else None)
        if last:
            self._counted, self._known = last[-1].known + last[-1].invalid, last[-1].known
            with self._engine() as engine:
                if last[-1].classes != engine.classes:
                    self.request(CLASSES)
        if interrupted or requested:
            self.request()
        self.follow_classes()

    def _work(self) -> bool:
        """Store a finished training's result, start a training that is due; True if anything happened."""
        finished = self._finish()
        if finished:
            self.ended += 1
            self._on_trained()
        begun = self._start()
        if begun and self.settings.classifier == "linear":  # such a round ends as it begins
            self.ended += 1
        return begun or finished

    def is_busy(self) -> bool:
        """Whether a training is running."""
        return self._training is not None

    def wait_seconds(self, done: bool) -> float:
        return 0.0 if self.is_busy() else math.inf

    def request(self, trigger: str = REQUESTED) -> None:
        """Train as soon as the present training, if any, is over."""
        self.wanted = trigger if trigger == REQUESTED else self.wanted or trigger

    def _start(self) -> bool:
        """Begin a round if one is due."""
        settled = self._settled()
        if self._training is not None:
            return False
        if self._failed is not None:
            self._fail(*self._failed)
        with self._engine() as engine:
            counts, classes = engine.counts(), engine.classes
            labelled = counts.known + counts.invalid
            trigger = self.wanted
            if not trigger and settled and labelled - self._counted >= self.settings.batch_size:
                trigger = BATCH
            if not trigger:
                return False
            known = {t: x.choice for t, x in engine.labels().items() if x.choice is not None and t in engine}
            present = set(known.values())
            if len(present) < 2 and (trigger != REQUESTED or not settled):
                # Fewer than two classes: continue with neighbours alone and try again after the next label, or
                # when images are embedded (after a change of the encoder there may be none).
                return False
            self.wanted = ""
        queried = max(labelled - self._counted, 0)
        try:
            with self.database.begin() as conn:
                begun = rounds.start(
                    conn,
                    self.project,
                    rounds.NewRound(
                        trigger=trigger,
                        known=counts.known,
                        invalid=counts.invalid,
                        unlabelled=counts.unlabelled,
                        queried=queried,
                        queried_known=min(max(counts.known - self._known, 0), queried),
                        classes=classes,
                    ),
                )
                if self.settings.classifier == "linear":  # it has learnt every label already
                    right, of = self._tested()
                    rounds.finish(conn, self.project, begun.number, seconds=0.0, held_out=of, held_out_correct=right)
        except StoreError:
            if trigger != BATCH:  # a batch's round becomes due again by itself
                with self._engine():
                    self.request(trigger)
            raise
        self._counted, self._known = labelled, counts.known
        if self.settings.classifier == "linear":
            return True
        if len(present) < 2:
            self._fail(begun, f"needs labelled images of at least two classes, has {len(present)}")
            return True
        ids = np.array(sorted(known), np.int64)
        codes = np.array([classes.index(known[int(t)] or "") for t in ids], np.int64)
        job = TrainingJob(
            data_dir=str(self.settings.data_dir),
            project=self.project,
            round=begun.number,
            classes=classes,
            image_size=self.settings.image_size,
            epochs=self.settings.epochs,
            seed=self.settings.seed,
            holdout=self.settings.holdout,
            device=self.settings.device,
            weights=self.settings.classifier_weights,
            early_stop=self.settings.early_stop,
            progressive=self.settings.progressive_resizing,
            compute=self.settings.compute,
            ray_address=self._ray_address,
        )
        try:
            folder = self.arrays.folder("training") / f"{begun.number:06d}"
            process = TrainingProcess(job, folder, time_limit_seconds=self.settings.train_time_limit_seconds)
            process.start(ids, codes)
        except (TrainingError, StoreError) as error:  # such as a full disk
            self._fail(begun, str(error))
            return True
        self._training = (begun, process, time.monotonic())
        log.info("project %d: round %d (%s), training on %d images", self.project, begun.number, trigger, len(ids))
        return True

    def _finish(self) -> bool:
        """Store the result of a training that has ended, if any."""
        training = self._training
        if training is None:
            return False
        begun, process, started = training
        try:
            result = process.poll()
        except TrainingError as error:
            if self._training is not training:
                return False  # this process stopped it
            self._training = None
            self._fail(begun, str(error))
            return True
        if result is None:
            return False
        with self._engine():
            self._use_probabilities(begun)
            self._done = begun
        with self.database.begin() as conn:
            rounds.finish(
                conn,
                self.project,
                begun.number,
                seconds=time.monotonic() - started,
                held_out=result.held_out,
                held_out_correct=result.held_out_correct,
            )
        self._training = None  # last: if storing fails, the next step tries again
        self.arrays.drop_except(kinds.PROBABILITIES, {f"{begun.number:06d}"})
        for model in self._models():
            if model != self._model(begun):
                model.unlink(missing_ok=True)
        if result.note and result.note != self._noted:
            log.warning("project %d: round %d: %s", self.project, begun.number, result.note)
        self._noted = result.note
        log.info(
            "project %d: round %d done in %.1f s, %d epochs",
            self.project,
            begun.number,
            time.monotonic() - started,
            result.epochs,
        )
        return True

    def fill(self) -> bool:
        """Classify tasks embedded after the last round; True if any. Raises SettingsError for another side."""
        with self._engine() as engine:
            missing, classes = engine.untrained(), engine.classes
        done = self._done
        if not missing or done is None or self._training is not None or not self._model(done).exists():
            return False
        answers = (done.number, classes)
        if answers != self._unanswered_by:
            self._unanswered, self._unanswered_by = set(), answers
        kind = kinds.thumbnails_kind(self.settings.image_size)
        keys = self.arrays.index(kind)
        wanted = {t for t in missing if t in keys and (t, keys[t]) not in self._unanswered}
        if not wanted:
            return False
        ids = np.array(sorted(wanted), np.int64)
        for segment in self.arrays.segments(kind):
            at = np.flatnonzero(np.isin(segment.ids, ids))
            for part in np.array_split(at, -(-len(at) // _FILL_AT_ONCE)) if len(at) else []:
                try:
                    probabilities = self._classify(self._model(done), segment.values[part])
                except ClassifierDamaged as error:
                    log.warning("project %d: %s; training again", self.project, error)
                    with self._engine():
                        self.request()
                    self._model(done).unlink(missing_ok=True)
                    return False
                self.arrays.append(self._kind(done), segment.ids[part], segment.keys[part], probabilities)
                with self._engine() as engine:
                    if self._done is done:
                        now = self._with_this_image(segment.ids[part], segment.keys[part])
                        engine.set_probabilities(segment.ids[part][now], probabilities[now], done.classes)
                if self._done is not done:  # the next round has ended, and covers these tasks too
                    self.arrays.drop(self._kind(done))
                    return True
        with self._engine() as engine:
            left = wanted.intersection(engine.untrained())
        self._unanswered.update((task, keys[task]) for task in left)
        return True

    def follow_classes(self) -> None:
        """Set the last round's probabilities for the present classes, from the stored arrays.

        Converting the engine's probabilities from list to list would lose those of a class that returns.
        """
        if self._done is not None:
            self._use_probabilities(self._done)

    def lacks_classifier(self) -> bool:
        """Whether the last round's classifier is lost, so that new images would get no probabilities."""
        linear = self.settings.classifier == "linear"
        return not linear and self._done is not None and not self._model(self._done).exists()

    def stop(self) -> None:
        """End a running training; the round is begun again at the next load."""
        training, self._training = self._training, None
        if training is not None:
            training[1].stop()

    def _use_probabilities(self, done: Round) -> None:
        """Use the stored probabilities of tasks whose image is unchanged; `fill` classifies the others."""
        segment = self.arrays.load(self._kind(done))
        if len(segment.ids):
            keys = self.arrays.index(kinds.thumbnails_kind(self.settings.image_size))
            pairs = zip(segment.ids.tolist(), segment.keys.tolist(), strict=True)
            now = np.fromiter((keys.get(task) == key for task, key in pairs), bool, len(segment.ids))
            with self._engine() as engine:
                engine.set_probabilities(segment.ids[now], segment.values[now], done.classes)

    def _with_this_image(self, ids: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the tasks still have the image of this key: bool [n]."""
        with self.database.read() as conn:
            images = tasks.images_of(conn, self.project, ids.tolist())
        refs = [images.get(task) for task in ids.tolist()]
        pairs = zip(refs, keys.tolist(), strict=True)
        return np.array([ref is not None and image_key(ref) == key for ref, key in pairs], bool)

    def _fail(self, begun: Round, reason: str) -> None:
        if self._failed is None:
            log.warning("project %d: round %d failed: %s", self.project, begun.number, reason)
        self._failed = begun, reason  # until it is stored: a full disk may prevent that for now
        with self.database.begin() as conn:
            rounds.fail(conn, self.project, begun.number, reason)
        self._failed = None

    def _kind(self, of: Round) -> str:
        return kinds.probabilities_kind(of.number)

    def _model(self, of: Round) -> Path:
        return self.arrays.folder("models") / f"{of.number:06d}.safetensors"

    def _models(self) -> list[Path]:
        return sorted(self.arrays.folder("models").glob("*.safetensors"))
