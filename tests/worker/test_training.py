from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from neat_backend.errors import TrainingError
from neat_backend.store.arrays import ProjectArrays
from neat_backend.worker.steps import training
from neat_backend.worker.steps.training import HOLD_OUT_FROM, TrainingJob, TrainingProcess, split_held_out, train_round
from tests.waiting import HANGS, TRAINING_HANGS, until

SIDE = 8  # pixels, as scikit-learn's digits come


@pytest.fixture
def job(tmp_path: Path) -> TrainingJob:
    return TrainingJob(
        data_dir=str(tmp_path / "data"),
        project=7,
        round=3,
        classes=("null", "eins", "zwei"),
        image_size=SIDE,
        epochs=1,
        seed=0,
        holdout=0.2,
        device="cpu",
    )


@pytest.fixture
def one_thread():
    """Two threads of a small network wait for each other when the machine has other things to do."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def digits(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids with gaps, uint8 images [n, 8, 8, 3] and codes [n] of the digits 0, 1 and 2."""
    bunch = load_digits(n_class=3)
    images = np.repeat((bunch.images[:n] * 15.9).astype(np.uint8)[..., None], 3, axis=3)
    return np.arange(n, dtype=np.int64) * 3 + 10, images, bunch.target[:n].astype(np.int64)


def stored(job: TrainingJob, ids: np.ndarray, images: np.ndarray) -> ProjectArrays:
    """The project's arrays with the images in two segments."""
    arrays = ProjectArrays(Path(job.data_dir), job.project)
    half = len(ids) // 2
    for part in (slice(half, None), slice(None, half)):
        arrays.append(f"images/{SIDE}", ids[part], ids[part] * 100, images[part])
    return arrays


def with_labels(folder: Path, ids: np.ndarray, codes: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    np.savez(folder / "labels.npz", ids=ids, codes=codes)
    return folder


def wait_for(process: TrainingProcess):
    results = []
    until(
        lambda: results.append(process.poll()) or results[-1] is not None,
        lambda: f"no result: {(process.folder / 'training.log').read_text()}",
        progress=process.progress,
        every=0.1,
        limit=TRAINING_HANGS,
    )
    return results[-1]


def is_alive(pid: int) -> bool:
    """Whether a process still runs; one that has ended and waits for its parent to look counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


# the split


def test_the_same_tasks_are_held_out_whatever_else_is_labelled():
    ids = np.arange(1000, dtype=np.int64)
    codes = ids % 4
    all_of_them = split_held_out(ids, codes, 0.1, seed=1)
    assert 60 < all_of_them.sum() < 140
    half = np.random.default_rng(0).permutation(1000)[:500]
    assert np.array_equal(split_held_out(ids[half], codes[half], 0.1, seed=1), all_of_them[half])
    assert not np.array_equal(split_held_out(ids, codes, 0.1, seed=2), all_of_them)


def test_a_larger_share_holds_out_more_of_the_same():
    ids = np.arange(5000, dtype=np.int64) + 10**12
    small, large = (split_held_out(ids, ids % 2, share, seed=0) for share in (0.1, 0.5))
    assert not (small & ~large).any()
    assert 2300 < large.sum() < 2700


def test_nothing_is_held_out_of_few_labels_or_with_a_share_of_zero():
    few = np.arange(HOLD_OUT_FROM - 1, dtype=np.int64)
    many = np.arange(HOLD_OUT_FROM, dtype=np.int64)
    assert not split_held_out(few, few % 2, 0.5, seed=0).any()
    assert split_held_out(many, many % 2, 0.5, seed=0).any()
    assert not split_held_out(many, many % 2, 0.0, seed=0).any()
    assert split_held_out(many[:0], many[:0], 0.5, seed=0).tolist() == []


@pytest.mark.parametrize("seed", range(10))
def test_every_class_keeps_two_training_images_or_all_it_has(seed):
    codes = np.array([0] * 120 + [1] + [2] * 2 + [3] * 3 + [4] * 5)
    ids = np.arange(len(codes), dtype=np.int64)
    trained = np.bincount(codes[~split_held_out(ids, codes, 0.5, seed)], minlength=5)
    assert trained[0] < 90
    assert (trained[1:] >= [1, 2, 2, 2]).all()


def test_the_split_of_known_ids_never_changes():
    """A change of the hash would mix what was trained on with what measures it, across versions."""
    ids = np.arange(HOLD_OUT_FROM, dtype=np.int64)
    assert np.flatnonzero(split_held_out(ids, ids % 2, 0.1, seed=0)).tolist() == [10, 18, 21, 41, 48, 68, 82, 83]


# the work, in this process


@pytest.mark.usefixtures("one_thread")
def test_a_round_classifies_every_task_with_an_image_and_saves_its_classifier(job, tmp_path: Path):
    from neat_backend.models.classifier import Classifier

    ids, images, codes = digits(150)
    arrays = stored(job, ids, images)
    labelled = np.r_[ids[:110], 99_999]  # the last one's image could not be had
    result = train_round(job, with_labels(tmp_path / "job", labelled, np.r_[codes[:110], 0]))
    assert result.n_train + result.held_out == 110
    assert 0 <= result.held_out_correct <= result.held_out
    assert result.held_out > 10
    assert result.epochs == 1
    assert result.images_per_second > 0
    probabilities = arrays.load("probabilities/000003")
    assert np.array_equal(probabilities.ids, ids)
    assert np.array_equal(probabilities.keys, ids * 100)
    assert probabilities.values.dtype == np.float32
    classifier = Classifier.load(arrays.folder("models") / "000003.safetensors", "cpu")
    assert classifier.classes == job.classes
    assert np.allclose(classifier.predict_proba(images), probabilities.values, atol=0.02)
    progress = json.loads((tmp_path / "job" / "progress.json").read_text())
    assert progress.keys() == {"phase", "epoch", "epochs", "loss", "eta_seconds"}


@pytest.mark.usefixtures("one_thread")
def test_a_round_done_again_replaces_what_the_first_try_left(job, tmp_path: Path):
    ids, images, codes = digits(20)
    arrays = stored(job, ids, images)
    arrays.append("probabilities/000003", [1], [1], np.ones((1, 2), np.float32))
    train_round(job, with_labels(tmp_path / "job", ids, codes))
    first = arrays.load("probabilities/000003")
    assert (first.values.shape, 1 in first.ids) == ((20, 3), False)
    shuffled = np.random.default_rng(0).permutation(20)
    train_round(job, with_labels(tmp_path / "job", ids[shuffled], codes[shuffled]))
    assert np.array_equal(arrays.load("probabilities/000003").values, first.values)


@pytest.mark.usefixtures("one_thread")
def test_probabilities_go_to_disk_in_pieces(job, tmp_path: Path, monkeypatch):
    ids, images, codes = digits(20)
    arrays = stored(job, ids, images)
    monkeypatch.setattr(training, "APPEND_ROWS", 10)
    train_round(job, with_labels(tmp_path / "job", ids, codes))
    assert len(list(arrays.segments("probabilities/000003"))) == 2
    assert np.array_equal(arrays.load("probabilities/000003").ids, ids)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("progressive", [False, True])
def test_a_job_says_whether_the_training_is_progressive(job, progressive, tmp_path: Path, monkeypatch):
    from neat_backend.models import classifier

    ids, images, codes = digits(20)
    stored(job, ids, images)
    schedules = []
    fit = classifier.fit
    monkeypatch.setattr(classifier, "fit", lambda *a, **how: schedules.append(how["schedule"]) or fit(*a, **how))
    train_round(replace(job, progressive=progressive), with_labels(tmp_path / "job", ids, codes))
    assert [schedule.progressive for schedule in schedules] == [progressive]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_memory_that_was_freed_is_used_again_without_asking_the_kernel():
    """Without it, every page of each block is cleared anew: 8,192 faults for each."""
    program = """
import resource
import numpy as np
from neat_backend.worker.steps.training import keep_freed_memory
keep_freed_memory()
def fill():
    np.full(1 << 25, 1, np.uint8)  # 32 MiB, freed at once
fill()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    fill()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=HANGS, check=True)
    assert int(done.stdout) < 1000


@pytest.mark.usefixtures("one_thread")
def test_the_result_says_how_many_epochs_were_done(job, tmp_path: Path, monkeypatch):
    from neat_backend.models import classifier

    ids, images, codes = digits(20)
    stored(job, ids, images)
    monkeypatch.setattr(classifier, "is_flat", lambda losses: len(losses) == 2)
    folder = with_labels(tmp_path / "job", ids, codes)
    assert train_round(replace(job, epochs=5, early_stop=True), folder).epochs == 2
    progress = json.loads((folder / "progress.json").read_text())
    assert (progress["epoch"], progress["epochs"]) == (2, 5)
    assert train_round(replace(job, epochs=3), folder).epochs == 3


@pytest.mark.usefixtures("one_thread")
def test_training_begins_with_a_files_weights(job, tmp_path: Path, monkeypatch):
    import torch

    from neat_backend.models import classifier
    from neat_backend.models.networks import build_network

    ids, images, codes = digits(20)
    arrays = stored(job, ids, images)
    weights = build_network("resnet18", 5, SIDE).state_dict()
    torch.save(weights, tmp_path / "mine.pth")
    monkeypatch.setattr(classifier, "train", lambda *_, **__: None)
    folder = with_labels(tmp_path / "job", ids, codes)
    result = train_round(replace(job, weights=str(tmp_path / "mine.pth")), folder)
    assert (result.weights, result.note) == (str(tmp_path / "mine.pth"), "")
    made = classifier.Classifier.load(arrays.folder("models") / "000003.safetensors", "cpu")
    assert torch.equal(made.network.state_dict()["conv1.weight"], weights["conv1.weight"])
    with pytest.raises(TrainingError, match=r"NEAT_CLASSIFIER_WEIGHTS=.*no\.pth: there is no such file"):
        train_round(replace(job, weights=str(tmp_path / "no.pth")), folder)


@pytest.mark.usefixtures("one_thread")
def test_without_a_network_training_begins_from_scratch_and_the_result_and_the_log_say_so(
    job, tmp_path: Path, monkeypatch, caplog
):
    import torch

    from neat_backend.models import weights

    def fails(url: str, path: Path) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(weights, "download_file", fails)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    ids, images, codes = digits(20)
    stored(job, ids, images)
    result = train_round(replace(job, weights="auto"), with_labels(tmp_path / "job", ids, codes))
    assert result.weights == "scratch"
    assert "no route to host" in result.note
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [f"round 3: {result.note}"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MemoryError(), "ran out of memory"),
        (TrainingError("plain words"), "plain words"),
        (RuntimeError("first line\nsecond"), "RuntimeError: first line"),
        (KeyError("x"), "KeyError: 'x'"),
    ],
)
def test_what_went_wrong_is_left_in_words(job, tmp_path: Path, monkeypatch, error, words):
    def fails(*_args):
        raise error

    monkeypatch.setattr(training, "train_round", fails)
    monkeypatch.setattr(training.os, "nice", lambda _by: 0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "job.json").write_text(job.to_json())
    assert training.main([str(tmp_path / "job.json")]) == 1
    assert words in json.loads((tmp_path / "result.json").read_text())["error"]


def test_a_job_survives_json(job):
    assert TrainingJob.from_json(job.to_json()) == job


# the process


def test_a_process_trains_and_reports_its_progress(job, tmp_path: Path):
    ids, images, codes = digits(400)
    arrays = stored(job, ids, images)
    process = TrainingProcess(replace(job, epochs=15), tmp_path / "training" / "job")
    assert process.progress() is None
    process.start(ids[:250], codes[:250])
    result = wait_for(process)
    assert result.held_out > 20
    assert result.held_out_correct / result.held_out > 0.6
    progress = process.progress()
    assert progress is not None
    assert (progress["phase"], progress["epoch"], progress["epochs"]) == ("classifying", 15, 15)
    probabilities = arrays.load("probabilities/000003")
    assert (probabilities.values.argmax(axis=1) == codes)[250:].mean() > 0.7
    assert process.poll() == result
    process.stop()
    assert process.poll() == result


def test_a_round_without_images_fails_in_words_and_every_time_it_is_asked(job, tmp_path: Path):
    process = TrainingProcess(job, tmp_path / "job", time_limit_seconds=60)
    process.start(np.array([1, 2]), np.array([0, 1]))
    for _ in range(2):
        with pytest.raises(TrainingError, match="none of the 2 labelled tasks has a readable image"):
            wait_for(process)


def running(job: TrainingJob, folder: Path, **options) -> tuple[TrainingProcess, int]:
    """A training that takes long enough for a test to end it."""
    ids, images, codes = digits(200)
    stored(job, ids, images)
    process = TrainingProcess(replace(job, epochs=10_000), folder, **options)
    process.start(ids, codes)
    assert process._process is not None
    return process, process._process.pid


def test_a_killed_process_is_reported_with_its_signal_and_log(job, tmp_path: Path):
    process, pid = running(job, tmp_path / "job")
    assert process.poll() is None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TrainingError, match=r"SIGKILL, perhaps for lack of memory; see .*training\.log"):
        wait_for(process)


def test_a_training_beyond_its_time_limit_is_stopped(job, tmp_path: Path):
    process, pid = running(job, tmp_path / "job", time_limit_seconds=0.3)
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"NEAT_TRAIN_TIME_LIMIT=0\.3"):
            wait_for(process)
    assert not is_alive(pid)


def test_stop_ends_even_a_process_that_does_not_listen(job, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(training, "STOP_SECONDS", 0.2)
    process, pid = running(job, tmp_path / "job")
    os.kill(pid, signal.SIGSTOP)
    process.stop()
    assert not is_alive(pid)


def test_an_old_result_is_not_taken_for_a_new_one(job, tmp_path: Path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "result.json").write_text('{"error": "old"}')
    process, _ = running(job, tmp_path / "job")
    assert process.poll() is None
    process.stop()
    with pytest.raises(TrainingError, match="SIGTERM"):
        process.poll()


def test_a_process_is_started_once_and_polled_after_that(job, tmp_path: Path):
    process = TrainingProcess(job, tmp_path / "job")
    with pytest.raises(TrainingError, match="has not been started"):
        process.poll()
    process.stop()
    process.start(np.array([1]), np.array([0]))
    with pytest.raises(TrainingError, match="has been started before"):
        process.start(np.array([1]), np.array([0]))
    process.stop()


def test_a_folder_that_cannot_be_made_is_a_training_error(job, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="can't be started"):
        TrainingProcess(job, tmp_path / "file" / "job").start(np.array([1]), np.array([0]))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
def test_a_training_ends_with_the_process_that_asked_for_it(job, tmp_path: Path):
    ids, images, _codes = digits(200)
    stored(job, ids, images)
    parent = f"""
import os, time, numpy as np
from pathlib import Path
from neat_backend.worker.steps.training import TrainingJob, TrainingProcess
process = TrainingProcess(TrainingJob.from_json({replace(job, epochs=10_000).to_json()!r}), Path({str(tmp_path)!r}))
process.start(np.arange(10, 610, 3), np.arange(200) % 3)
print(process._process.pid, flush=True)
while process.progress() is None:
    time.sleep(0.1)
os._exit(9)  # as a crash would: nobody tidies up
"""
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 9, done.stderr
    until(lambda: not is_alive(int(done.stdout)))


def test_the_waiting_side_does_not_import_torch():
    code = "import sys, neat_backend.worker.steps.training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
