"""Encoding and classifying in a process of its own: what comes back, and how the process begins and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from neat_backend.compute import embedding, inference_process
from neat_backend.compute.embedding import Source, Target
from neat_backend.compute.inference import EncoderFacts, Inference
from neat_backend.compute.inference_process import InferenceProcess, RemoteEncoder
from neat_backend.errors import ClassifierDamaged, ComputeError, EncoderError, SettingsError
from neat_backend.labelstudio.images import thumbnail
from neat_backend.store.arrays import ProjectArrays
from tests.waiting import HANGS, until

NAME = "efficientnet_lite0"
TORCH = "torch"  # starts sooner than OpenVINO
PARENT = """
import os, sys
from pathlib import Path
from neat_backend.compute.inference import EncoderFacts
from neat_backend.compute.inference_process import InferenceProcess

made = InferenceProcess("efficientnet_lite0", None, "cpu", Path(sys.argv[1]))
made.encoder("torch", "")
assert "torch" not in sys.modules
print(made.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture
def process(folder: Path) -> Iterator[InferenceProcess]:
    made = InferenceProcess(NAME, None, "cpu", folder)
    yield made
    made.stop()


@pytest.fixture
def encoder(process: InferenceProcess) -> RemoteEncoder:
    return process.encoder(TORCH, "")


@pytest.fixture(scope="module")
def local() -> Any:
    from neat_backend.models.encoders import build_encoder

    return build_encoder(NAME, device="cpu")


def picture(task: int, ref: str | None = None) -> Image.Image:
    return Image.fromarray(np.random.default_rng(task).integers(0, 256, (20, 24, 3), dtype=np.uint8))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def here(local: Any, batch: np.ndarray) -> np.ndarray:
    """Features by an encoder of this process, in a thread as `embed` has them: the last bits depend on its cores."""
    import torch

    with ThreadPoolExecutor(1, initializer=local.start_thread) as thread:
        features: np.ndarray = thread.submit(local.encode, torch.from_numpy(batch)).result()
    return features


def test_features_are_those_of_an_encoder_of_this_process(encoder: RemoteEncoder, local: Any) -> None:
    assert (encoder.key, encoder.dim) == (local.key, local.dim)
    np.testing.assert_array_equal(encoder.preprocess(picture(1)), local.preprocess(picture(1)).numpy())
    batches = [np.stack([encoder.preprocess(picture(task)) for task in range(n)]) for n in (1, 3, 8, 3, 1, 8)]
    with ThreadPoolExecutor(len(batches)) as threads:
        for batch, features in zip(batches, threads.map(encoder.encode, batches), strict=True):
            np.testing.assert_array_equal(features, here(local, batch))
    assert encoder.encode_names(["a dog"]) is None, "it reads no text"


def test_key_and_dimensions_are_remembered(folder: Path, encoder: RemoteEncoder) -> None:
    again = InferenceProcess(NAME, None, "cpu", folder)
    known = again.encoder(TORCH, encoder.key)
    assert (known.key, known.dim, known.preprocessing) == (encoder.key, encoder.dim, encoder.preprocessing)
    assert again.pid is None, "no process was needed"
    assert InferenceProcess("resnet18", None, "cpu", folder)._remembered.find(TORCH, "") is None
    assert InferenceProcess(NAME, folder / "other.pt", "cpu", folder)._remembered.find(TORCH, "") is None


def test_the_encoder_of_stored_features_is_remembered(tmp_path: Path, encoder: RemoteEncoder) -> None:
    remembered = InferenceProcess(NAME, None, "cpu", tmp_path)._remembered
    facts = EncoderFacts.of(encoder._process.ask("facts", TORCH, ""))
    remembered.keep("auto", "", facts)
    assert remembered.find("auto", facts.key) == facts
    assert remembered.find("auto", "another") is None
    assert remembered.find("openvino", facts.key) is None
    remembered._path().write_text("damaged")  # type: ignore[union-attr]
    assert remembered.find("auto", "") is None


def test_an_encoder_of_another_key_does_not_encode(process: InferenceProcess, encoder: RemoteEncoder) -> None:
    with pytest.raises(EncoderError, match="start the worker again"):
        process.ask("encode", "another", TORCH, np.zeros((1, 3, 128, 128), np.uint8))
    with pytest.raises(EncoderError, match="start the worker again"):
        process.ask("read", "another", ["a dog"])


def test_weights_that_are_missing_are_named(tmp_path: Path) -> None:
    process = InferenceProcess(NAME, tmp_path / "mine.pt", "cpu", tmp_path)
    with pytest.raises(EncoderError, match=r"mine\.pt: there is no such file"):
        process.encoder(TORCH, "")
    process.stop()


def test_it_ends_when_it_has_rested_and_is_started_again(
    process: InferenceProcess, encoder: RemoteEncoder, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = np.stack([encoder.preprocess(picture(1))])
    monkeypatch.setattr(inference_process, "REST_SECONDS", 0.01)
    encoder.encode(batch)
    until(lambda: process.pid is None)
    monkeypatch.setattr(inference_process, "REST_SECONDS", HANGS)
    np.testing.assert_array_equal(encoder.encode(batch), here(local, batch))
    pid = process.pid
    assert pid is not None
    assert alive(pid)
    process.stop()
    assert process.pid is None
    assert not alive(pid)


def test_what_a_killed_process_was_encoding_is_encoded_by_the_next(
    tmp_path: Path, process: InferenceProcess, encoder: RemoteEncoder, local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = ProjectArrays(tmp_path, 7)
    images: list[tuple[int, str | None]] = [(task, f"/{task}.png") for task in range(1, 13)]
    monkeypatch.setattr(embedding, "FLUSH_IMAGES", 1)
    stored: list[int] = []

    def embed() -> embedding.Progress:
        have = embedding.stored(arrays, f"features/{encoder.key}", images)
        left = [image for image in images if image[0] not in have]
        return embedding.embed(
            left,
            encoder,
            Source(picture, thumbnail, 16, 2),
            Target(arrays, lambda done: stored.extend(done.tasks.tolist()), lambda task, error: None),
            batch_size=2,
        )

    encode, encoder.at_once = encoder.encode, 1

    victims: list[int] = []

    def killed(batch: np.ndarray) -> np.ndarray:
        if victims or not stored:
            return encode(batch)
        assert process.pid is not None
        victims.append(process.pid)
        os.kill(victims[0], signal.SIGSTOP)
        with ThreadPoolExecutor(1) as asking:
            asked = asking.submit(encode, batch)
            until(lambda: process._busy)
            os.kill(victims[0], signal.SIGKILL)
            return asked.result()

    encoder.encode = killed  # type: ignore[method-assign]
    with pytest.raises(ComputeError, match="SIGKILL, perhaps for lack of memory"):
        embed()
    assert 0 < len(stored) < 12
    encoder.encode = encode  # type: ignore[method-assign]
    embed()
    features = arrays.load(f"features/{encoder.key}")
    assert sorted(features.ids.tolist()) == sorted(stored) == list(range(1, 13))
    alone = np.stack([here(local, np.stack([encoder.preprocess(picture(task))]))[0] for task in features.ids.tolist()])
    np.testing.assert_allclose(features.values, alone, atol=1e-5)  # with other images in a batch, the last bits differ


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_parent(folder: Path, how: signal.Signals) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder / how.name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    pid = int(parent.stdout.readline())
    assert alive(pid)
    parent.send_signal(how)
    parent.wait(HANGS)
    parent.stdin.close(), parent.stdout.close()
    until(lambda: not alive(pid))


def test_probabilities_are_those_of_a_classifier_of_this_process(tmp_path: Path, process: InferenceProcess) -> None:
    from neat_backend.models.classifier import Schedule, fit

    images = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    made = fit(images, np.arange(12) % 2, 2, schedule=Schedule(epochs=1), device="cpu")
    made.save(tmp_path / "a.safetensors")
    found = process.classify(tmp_path / "a.safetensors", images)
    np.testing.assert_array_equal(found, made.predict_proba(images))
    np.testing.assert_array_equal(found, Inference("", None, "cpu").classify(tmp_path / "a.safetensors", images))
    (tmp_path / "b.safetensors").write_bytes(b"damaged")
    with pytest.raises(ClassifierDamaged, match="not a classifier saved here"):
        process.classify(tmp_path / "b.safetensors", images)
    with pytest.raises(SettingsError, match="trained on images of 16 pixels: press “Start Training”, or set"):
        process.classify(tmp_path / "a.safetensors", images[:, :8, :8])
