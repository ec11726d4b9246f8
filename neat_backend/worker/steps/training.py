"""Training the classifier of one query round, in a process of its own.

`TrainingProcess` is the side that waits: it imports no torch. The other side is `python -m
neat_backend.worker.steps.training JOB.json`, which works in the job's folder:

    job.json       TrainingJob
    labels.npz     ids int64 [n], codes int64 [n] = index into the job's classes; known labels only
    progress.json  phase, epoch, epochs, loss, eta_seconds; rewritten after every epoch. With early_stop, epochs and
                   eta_seconds are the most that it may take
    result.json    TrainingResult, or {"error": plain words}; the last thing written
    training.log   what the process printed

The classifier and the probabilities of all tasks with an image go to the project's arrays. A process that is
killed leaves no half-written file, and doing its job again replaces what it left.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

import neat_backend
from neat_backend.errors import NeatError, TrainingError
from neat_backend.ranking.hashing import mixed
from neat_backend.store import kinds
from neat_backend.store.arrays import ProjectArrays

if TYPE_CHECKING:
    from neat_backend.compute import Compute
    from neat_backend.models.classifier import Classifier

log = logging.getLogger(__name__)

HOLD_OUT_FROM = 100  # known labels; with fewer, all are used in training
TRAINING_IMAGES_PER_CLASS = 2  # kept in every class, whatever the share
APPEND_ROWS = 65_536  # probabilities collected before they go to disk
NICENESS = 10
PARENT_CHECK_SECONDS = 1.0
STOP_SECONDS = 5.0
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
TOP_PAD_BYTES = 1 << 26


@dataclass(frozen=True)
class TrainingJob:
    """The input of the training process, apart from the labels."""

    data_dir: str
    project: int
    round: int
    classes: tuple[str, ...]
    image_size: int  # pixels
    epochs: int
    seed: int
    holdout: float  # share of the known labels kept out of training
    device: str
    compute: str = "local"  # as NEAT_COMPUTE
    ray_address: str = ""
    weights: str = "scratch"  # as NEAT_CLASSIFIER_WEIGHTS
    early_stop: bool = False  # as NEAT_EARLY_STOP
    progressive: bool = False  # as NEAT_PROGRESSIVE_RESIZING

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrainingJob:
        values = json.loads(text)
        return cls(**{**values, "classes": tuple(values["classes"])})


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training."""

    held_out: int  # labelled images kept out of training
    held_out_correct: int
    seconds: float  # all of it: reading, training, probabilities
    images_per_second: float  # while training
    epochs: int  # done: fewer than the job's where training stopped early
    n_train: int
    weights: str = "scratch"  # what training began with: imagenet, scratch or a file's path
    note: str = ""  # why it began from scratch although ImageNet's weights were wanted


def split_held_out(
    ids: npt.NDArray[np.int64], codes: npt.NDArray[np.int64], holdout: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Which of the labelled tasks to keep out of training: ids [n], codes [n] -> bool [n].

    A task is held out when a hash of seed and id, spread evenly over [0, 1), falls below `holdout`: it is the
    same ones every round, whatever else is labelled. None are below HOLD_OUT_FROM labels, and each class gets
    back those with the largest hash until TRAINING_IMAGES_PER_CLASS of it (or all it has) are trained on.
    """
    if len(ids) < HOLD_OUT_FROM:
        return np.zeros(len(ids), dtype=bool)
    draws = _draws(ids, seed)  # [n]
    held_out = draws < holdout
    for code in np.unique(codes):
        members = np.flatnonzero(codes == code)
        missing = TRAINING_IMAGES_PER_CLASS - int((~held_out[members]).sum())
        if missing > 0:
            kept = members[held_out[members]]
            held_out[kept[np.argsort(-draws[kept], kind="stable")[:missing]]] = False
    return held_out


def _draws(ids: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.float64]:
    """Even numbers in [0, 1) that depend on seed and id alone (SplitMix64), the same on every machine."""
    values = mixed(ids, seed + 1)
    return ((values ^ (values >> np.uint64(31))) >> np.uint64(11)) / 2.0**53


class TrainingProcess:
    """The training of one job, for the process that requested it."""

    def __init__(self, job: TrainingJob, folder: Path, *, time_limit_seconds: float = 7200) -> None:
        self.job, self.folder = job, folder
        self._limit_seconds = time_limit_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._timed_out = False

    def start(self, ids: npt.NDArray[np.int64], codes: npt.NDArray[np.int64]) -> None:
        """Start training on known labels: task `ids` [n] and `codes` [n], which index the job's classes.

        Raises TrainingError when the process can't be started.
        """
        if self._process is not None:
            raise TrainingError(f"the training of round {self.job.round} has been started before")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in ("result.json", "progress.json"):  # of an earlier try
                (self.folder / name).unlink(missing_ok=True)
            np.savez(self.folder / "labels.npz", ids=ids.astype(np.int64), codes=codes.astype(np.int64))
            (self.folder / "job.json").write_text(self.job.to_json())
            package_root = str(Path(neat_backend.__file__).parent.parent)
            paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
            with (self.folder / "training.log").open("wb") as output:
                command = [sys.executable, "-m", "neat_backend.worker.steps.training", str(self.folder / "job.json")]
                self._process = subprocess.Popen(
                    [*command, "--parent", str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                    start_new_session=True,  # Ctrl-C is for the parent, which then stops this one
                )
        except OSError as error:
            raise TrainingError(f"the training process can't be started: {error}") from error
        self._started = time.monotonic()

    def poll(self) -> TrainingResult | None:
        """None while it runs, then the result. Raises TrainingError when it failed, crashed or took too long."""
        if self._process is None:
            raise TrainingError(f"the training of round {self.job.round} has not been started")
        code = self._process.poll()
        if code is None:
            if time.monotonic() - self._started <= self._limit_seconds:
                return None
            self._timed_out = True
            self.stop()
        if self._timed_out:
            limit = f"NEAT_TRAIN_TIME_LIMIT={self._limit_seconds:g}"
            raise TrainingError(f"training took longer than {limit} seconds and was stopped; fewer epochs may do")
        result = _read_json(self.folder / "result.json")
        if code == 0 and result is not None and {field.name for field in fields(TrainingResult)} <= result.keys():
            return TrainingResult(**{field.name: result[field.name] for field in fields(TrainingResult)})
        raise TrainingError(str(result["error"]) if result and "error" in result else self._crash(code))

    def progress(self) -> dict[str, Any] | None:
        """The content of progress.json: phase, epoch, epochs, loss, eta_seconds; None before the first epoch."""
        return _read_json(self.folder / "progress.json")

    def stop(self) -> None:
        """End the process if it runs; returns when it has ended."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _crash(self, code: int | None) -> str:
        """The message for a process that ended without a result."""
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
            return f"the training process was ended by {name}{hint}; see {self.folder / 'training.log'}"
        return f"the training process ended with exit status {code}; see {self.folder / 'training.log'}"


def train_round(job: TrainingJob, folder: Path) -> TrainingResult:
    """Do the job: train, measure, classify every task that has an image, save. Raises NeatError or ValueError."""
    began = time.monotonic()
    arrays = ProjectArrays(Path(job.data_dir), job.project)
    with np.load(folder / "labels.npz") as labels:
        ids, codes, images = _with_images(arrays, job.image_size, labels["ids"], labels["codes"])
    held_out = split_held_out(ids, codes, job.holdout, job.seed)
    n_train = int((~held_out).sum())
    log.info("round %d: training on %d images, %d held out", job.round, n_train, held_out.sum())

    from neat_backend.compute import open_compute
    from neat_backend.models.classifier import Schedule
    from neat_backend.models.weights import starting_weights

    begin = starting_weights(job.weights)
    if begin.note:
        log.warning("round %d: %s", job.round, begin.note)
    compute = open_compute(job.compute, job.ray_address, device=job.device)
    fit_began = time.monotonic()
    done = 0  # epochs

    def on_epoch(epoch: int, epochs: int, loss: float) -> None:
        nonlocal done
        done = epoch
        eta = (time.monotonic() - fit_began) / epoch * (epochs - epoch)
        progress = {"epoch": epoch, "epochs": epochs, "loss": round(loss, 6), "eta_seconds": round(eta, 1)}
        _write_json(folder / "progress.json", {"phase": "training", **progress})

    classifier = compute.fit(
        images[~held_out],
        codes[~held_out],
        len(job.classes),
        schedule=Schedule(epochs=job.epochs, early_stop=job.early_stop, progressive=job.progressive),
        seed=job.seed,
        device=job.device,
        weights=begin.state,
        on_epoch=on_epoch,
    )
    fit_seconds = time.monotonic() - fit_began
    log.info("round %d: %d of %d epochs, begun with %s weights", job.round, done, job.epochs, begin.origin)
    classifier.classes = job.classes
    correct = 0
    if held_out.any():
        (probabilities,) = compute.predict(classifier, [images[held_out]])
        correct = int((probabilities.argmax(axis=1) == codes[held_out]).sum())
    del images
    progress = _read_json(folder / "progress.json") or {}
    _write_json(folder / "progress.json", {**progress, "phase": "classifying"})
    _classify_all(classifier, arrays, job, compute)
    classifier.save(arrays.folder("models") / f"{job.round:06d}.safetensors")
    return TrainingResult(
        held_out=int(held_out.sum()),
        held_out_correct=correct,
        seconds=round(time.monotonic() - began, 3),
        images_per_second=round(n_train * done / max(fit_seconds, 1e-9), 1),
        epochs=done,
        n_train=n_train,
        weights=begin.origin,
        note=begin.note,
    )


def _with_images(
    arrays: ProjectArrays, image_size: int, ids: npt.NDArray[np.int64], codes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """The labelled tasks that have an image, by ascending id: ids [m], codes [m], images uint8 [m, s, s, 3].

    In one order whatever the order of the labels or segments, so that a seed gives one classifier.
    """
    wanted = np.unique(ids)
    parts = []
    for segment in arrays.segments(kinds.thumbnails_kind(image_size)):
        mine = np.isin(segment.ids, wanted, assume_unique=True)
        if mine.any():
            parts.append((segment.ids[mine], segment.values[mine]))
    if not parts:
        raise TrainingError(f"none of the {len(wanted)} labelled tasks has a readable image")
    found = np.concatenate([part_ids for part_ids, _ in parts])  # [m]
    images = np.concatenate([part_images for _, part_images in parts])  # [m, s, s, 3]
    del parts
    order = np.argsort(found)
    code_of = dict(zip(ids.tolist(), codes.tolist(), strict=True))
    found = found[order]
    return found, np.array([code_of[task] for task in found.tolist()], dtype=np.int64), images[order]


def _classify_all(classifier: Classifier, arrays: ProjectArrays, job: TrainingJob, compute: Compute) -> None:
    """Append float32 [n, C] for every task with an image, few segments of images in memory at a time."""
    kind = kinds.probabilities_kind(job.round)
    arrays.drop(kind)  # an earlier try at this round
    waiting: list[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[np.float32]]] = []

    def append() -> None:
        if waiting:
            ids, keys, values = (np.concatenate(columns) for columns in zip(*waiting, strict=True))
            arrays.append(kind, ids, keys, values)
            waiting.clear()

    columns: deque[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = deque()  # of the batches being classified

    def batches() -> Iterator[npt.NDArray[np.uint8]]:
        for segment in arrays.segments(kinds.thumbnails_kind(job.image_size)):
            columns.append((segment.ids, segment.keys))
            yield segment.values

    for probabilities in compute.predict(classifier, batches()):
        waiting.append((*columns.popleft(), probabilities))
        if sum(len(ids) for ids, _, _ in waiting) >= APPEND_ROWS:
            append()
    append()


def _die_with_parent(parent: int) -> None:
    """End this process as soon as its parent has ended, for whatever reason.

    Linux could send a signal instead (PR_SET_PDEATHSIG), but does so when the parent's *thread* ends.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    log.error("the process that requested this training has ended")
    os._exit(1)


def keep_freed_memory() -> None:
    """Have glibc keep what this process frees for its next allocations, instead of returning it to the kernel.

    PyTorch frees every large tensor after its use, and glibc gives blocks of 32 MiB back at once; the kernel then
    clears each page anew in every layer of every step. Does nothing with another C library.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_TOP_PAD, TOP_PAD_BYTES)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        json.dump(content, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _in_words(error: Exception) -> str:
    # PyTorch has a RuntimeError of its own for each allocator.
    lacking = ("can't allocate memory", "out of memory", "Cannot allocate memory")
    if isinstance(error, MemoryError) or any(words in str(error) for words in lacking):
        return "training ran out of memory; a smaller NEAT_IMAGE_SIZE needs less"
    text = (str(error).strip().splitlines() or [""])[0][:500]
    return text if isinstance(error, (NeatError, ValueError)) and text else f"{type(error).__name__}: {text}"


def main(arguments: list[str] | None = None) -> int:
    """`python -m neat_backend.worker.steps.training JOB.json`: do the job beside the file; 0 when there is a result."""
    parser = argparse.ArgumentParser(prog="python -m neat_backend.worker.steps.training", description=main.__doc__)
    parser.add_argument("job", type=Path, help="job.json of a job's folder, with labels.npz beside it")
    parser.add_argument("--parent", type=int, help="end when the process of this id, the parent, ends")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if options.parent is not None:
        threading.Thread(target=_die_with_parent, args=(options.parent,), daemon=True).start()
    # A 10 ms answer to a label takes 26 ms (95 %: 42 ms) beside a training on all cores, and stays at 10 ms when
    # that is niced. But niced threads wait for the slowest of them: with one of two cores busy, two threads train
    # ten times slower than one (86 images a second at 32 px). So one core is left to others. Torch reads this
    # when it is imported, later; OMP_NUM_THREADS in the environment wins.
    os.nice(NICENESS)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() - 1)))
    keep_freed_memory()
    folder = options.job.absolute().parent
    try:
        result = train_round(TrainingJob.from_json(options.job.read_text()), folder)
    except Exception as error:
        log.exception("training failed")
        _write_json(folder / "result.json", {"error": _in_words(error)})
        return 1
    _write_json(folder / "result.json", asdict(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
