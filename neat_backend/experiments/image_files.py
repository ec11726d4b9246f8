"""Image networks, trained from scratch in each round as the backend's classifier is."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from neat_backend.experiments.models import Floats, Indices, dropout_logits
from neat_backend.experiments.readers import Images
from neat_backend.models import classifier
from neat_backend.models.devices import resolve_device
from neat_backend.models.networks import last_linear
from neat_backend.ranking.pool import Generated


class ImageModel:
    """A trained network over the images of all samples; outputs are cached."""

    def __init__(self, network: nn.Module, images: Images, n_outputs: int, device: torch.device) -> None:
        self.n_outputs = n_outputs
        self._network, self._images, self._device = network, images, device
        layer = last_linear(network)
        self._weights = layer.weight.detach().float().cpu().numpy().T  # [h, C]
        self._biases = layer.bias.detach().float().cpu().numpy()  # [C]
        self._row = np.full(len(images), -1, np.int64)  # of each sample in the cache, -1 = not cached
        self._embeddings: Floats = np.empty((0, layer.in_features), np.float32)
        self._logits: Floats = np.empty((0, n_outputs), np.float32)

    def _rows(self, indices: Indices) -> Indices:
        missing = np.unique(indices[self._row[indices] < 0])
        if missing.size:
            side = self._images.shape[1]
            pixels = classifier.as_pixels(self._images[missing], side)
            embeddings, logits = classifier.penultimate(self._network, pixels, self._device)
            self._row = self._row.copy()  # an earlier copy of this model has its own cache
            self._row[missing] = np.arange(len(missing)) + len(self._logits)
            self._embeddings = np.concatenate([self._embeddings, embeddings])
            self._logits = np.concatenate([self._logits, logits])
        return self._row[indices]

    def logits(self, indices: Indices) -> Floats:
        rows = self._rows(indices)  # may add new rows
        return self._logits[rows]

    def embeddings(self, indices: Indices) -> Floats:
        rows = self._rows(indices)
        return self._embeddings[rows]

    def dropout_logits(self, indices: Indices, passes: int, rng: np.random.Generator) -> Floats:
        return dropout_logits(self.embeddings(indices), self._weights, self._biases, passes, rng)


class ImageLearner:
    """Trains `network` on images uint8 [n, s, s, 3] of all samples, with augmentation and the paper's schedule."""

    def __init__(self, images: Images, network: str, epochs: int, device: str = "auto") -> None:
        self._images, self._name, self._epochs = images, network, epochs
        self._device = resolve_device(device)

    def inputs(self, indices: Indices) -> Floats:
        pixels = self._images[indices].transpose(0, 3, 1, 2)  # [m, 3, s, s]
        return np.ascontiguousarray(pixels, np.float32) / np.float32(255)

    def fit(
        self,
        indices: Indices,
        targets: NDArray[np.int64],
        n_outputs: int,
        rng: np.random.Generator,
        *,
        temperature: float = 1.0,
        generated: Generated | None = None,
    ) -> ImageModel:
        images = self._images[indices]
        if generated is not None and len(generated.inputs):
            made = np.rint(generated.inputs.clip(0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
            images = np.concatenate([images, made])
            targets = np.concatenate([targets, generated.targets])
        if not len(images):
            raise ValueError("there are no labelled samples to train on")
        side = images.shape[1]
        seed = int(rng.integers(2**31))
        network = classifier.fresh(self._name, n_outputs, side, seed, self._device)
        with torch.random.fork_rng(devices=[]):  # VGG-16's dropout draws from torch's own generator
            torch.manual_seed(seed)
            classifier.train(
                network,
                classifier.as_pixels(images, side),
                torch.from_numpy(targets.astype(np.int64)),
                self._device,
                schedule=classifier.Schedule(epochs=self._epochs),
                seed=seed,
                temperature=temperature,
            )
        return ImageModel(network, self._images, n_outputs, self._device)
