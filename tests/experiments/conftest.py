"""A data set of coloured squares and an encoder that reads their colour: whole experiments in a second."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from neat_backend.experiments import datasets
from neat_backend.experiments.datasets import Dataset
from neat_backend.experiments.linear_classifier import LinearLearner
from neat_backend.experiments.loop import Samples
from neat_backend.models import encoders
from neat_backend.models.grid import to_grid

COLOURS = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 30], [30, 220, 220]])


def squares(n: int, seed: int, side: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, side, side, 3] and int64 [n]: five classes of noisy colours."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(COLOURS), n)
    noisy = COLOURS[labels][:, None, None] + rng.normal(0, 60, (n, 1, 1, 3)) + rng.normal(0, 20, (n, side, side, 3))
    return noisy.clip(0, 255).astype(np.uint8), labels.astype(np.int64)


class ColourEncoder:
    """Mean colour and a constant; counts the pictures that it has seen."""

    key = "colour-1"
    dim = 4

    def __init__(self) -> None:
        self.seen = 0

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def encode(self, batch: torch.Tensor) -> np.ndarray:
        self.seen += len(batch)
        colour = batch.float().mean(dim=(2, 3)) / 255
        return to_grid(np.concatenate([colour.numpy(), np.ones((len(batch), 1))], axis=1))


@pytest.fixture
def data() -> Dataset:
    return Dataset("squares", *squares(200, 0), *squares(60, 1), ("red", "green", "blue", "yellow", "cyan"))


@pytest.fixture
def encoder() -> ColourEncoder:
    return ColourEncoder()


@pytest.fixture
def samples(data, encoder) -> Samples:
    images = np.concatenate([data.images, data.test_images])
    features = encoder.encode(torch.from_numpy(images).permute(0, 3, 1, 2))
    labels = np.concatenate([data.labels, data.test_labels])
    return Samples(features[:200], labels, LinearLearner(features, 200))


@pytest.fixture
def at_hand(monkeypatch, data, encoder, tmp_path):
    """The data set is called "squares", every encoder is the colour encoder, and nothing is kept elsewhere."""
    monkeypatch.setitem(datasets.LOADERS, "squares", lambda folder, side: data)
    monkeypatch.setattr(encoders, "build_encoder", lambda *arguments: encoder)
    monkeypatch.setenv("NEAT_DATA_DIR", str(tmp_path / "data"))
    return encoder
