"""What is computed on a GPU, against the same on the CPU. Skipped without one, with the reason."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
import torch

from neat_backend.models.classifier import Classifier, Schedule, fit
from neat_backend.models.encoders import build_encoder
from neat_backend.models.grid import to_grid
from neat_backend.ranking.engine import Engine
from neat_backend.ranking.method import Method
from neat_backend.records import Label
from neat_backend.strategies.nearest import nearest
from tests.conftest import need
from tests.models.test_classifier import digits  # noqa: F401 - a fixture

CLASSES = ("cat", "dog")


@pytest.fixture(scope="module")
def gpu() -> str:
    if not torch.cuda.is_available():
        need("gpu", "PyTorch sees none")
    return "cuda"


def features(n: int, dim: int = 64, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(n, dim))
    found[n // 2 :: 3] = found[0]  # exact copies: ties
    return to_grid(found)


def engine(device: str) -> Engine:
    made = Engine(64, CLASSES, Method(k=5, batch_size=20), device=device)
    made.add_tasks(range(1, 2001), features(2000))
    return made


def change(made: Engine) -> None:
    """Labels come one by one and many at once, change, and go."""
    rng = np.random.default_rng(1)
    for task in rng.permutation(np.arange(1, 2001))[:60].tolist():
        made.set_labels([Label(task, CLASSES[task % 2]) if task % 3 else Label(task, None, invalid=True)])
    made.set_labels([Label(task, CLASSES[task % 2]) for task in range(100, 400)])
    made.set_labels([Label(task) for task in range(150, 200)])
    made.remove_tasks(range(300, 320))
    made.add_tasks(range(3001, 3101), features(100, seed=2))


def test_the_ranking_of_a_pool_on_the_gpu_is_that_of_one_in_memory(gpu: str) -> None:
    there, here = engine(gpu), engine("cpu")
    change(there), change(here)
    assert there.head(2000) == here.head(2000)
    assert there.ranked(there.head(2000)) == here.ranked(here.head(2000))


def test_exact_neighbours_with_faiss_on_the_gpu(gpu: str) -> None:
    if faiss.get_num_gpus() == 0:
        need("gpu", "FAISS sees none")
    rows = features(6000)
    among = np.arange(0, 6000, 7)
    ids, similarities = nearest(rows, np.arange(2000), among, 10)
    exact = (rows[:2000].astype(np.float64) @ rows[among].astype(np.float64).T).astype(np.float32)
    exact[np.arange(2000)[:, None] == among] = -np.inf
    order = np.argsort(-exact, axis=1, kind="stable")[:, :10]
    np.testing.assert_array_equal(ids, among[order])
    np.testing.assert_array_equal(similarities, np.take_along_axis(exact, order, axis=1))


def test_a_classifier_trained_on_the_gpu_is_as_good_and_reads_on_the_cpu(
    gpu: str,
    digits: tuple[np.ndarray, np.ndarray],  # noqa: F811
    tmp_path,
) -> None:
    images, labels = digits
    there = fit(images[:400], labels[:400], 3, schedule=Schedule(epochs=20), device=gpu)
    found = there.predict_proba(images[400:])
    assert (found.argmax(axis=1) == labels[400:]).mean() > 0.9
    there.save(tmp_path / "classifier.safetensors")
    here = Classifier.load(tmp_path / "classifier.safetensors", device="cpu")
    np.testing.assert_allclose(here.predict_proba(images[400:]), found, atol=0.05)  # half precision there


def test_features_in_half_precision_are_nearly_those_of_the_cpu(gpu: str) -> None:
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, 224, 224), dtype=np.uint8))
    there, here = (build_encoder("efficientnet_lite0", device=device).encode(pictures) for device in (gpu, "cpu"))
    assert (there * here).sum(axis=1).min() > 0.999
