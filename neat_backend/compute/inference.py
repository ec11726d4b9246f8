"""Encoders and classifiers of one process. In a worker that is a process of its own: see inference_process.py.

Imports no PyTorch before it is asked for something.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import ClassifierDamaged, EncoderError, SettingsError
from neat_backend.models.preprocessing import Preprocessing

if TYPE_CHECKING:
    from neat_backend.models.classifier import Classifier
    from neat_backend.models.encoders import Encoder


@dataclass(frozen=True)
class EncoderFacts:
    """What can be known of an encoder without its network."""

    key: str
    dim: int
    at_once: int  # batches to encode at the same time
    reads_text: bool
    preprocessing: Preprocessing

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> EncoderFacts:
        """From the fields as JSON has them."""
        cut = fields["preprocessing"]
        tuples = {name: tuple(cut[name]) for name in ("mean", "std")}
        return cls(**{**fields, "preprocessing": Preprocessing(**{**cut, **tuples})})


class Inference:
    """An encoder by each back end, and the classifier that was used last. Any thread may call it."""

    def __init__(self, name: str, weights: Path | None, device: str) -> None:
        """name, weights, device: as for `build_encoder`, which makes the encoder at first use."""
        self._given = name, weights, device
        self._device = device
        self._lock = threading.Lock()
        self._encoder: Encoder | None = None
        self._threads: dict[str, ThreadPoolExecutor] = {}  # encoder's key → what encodes its batches
        self._classifier: tuple[tuple[Path, int], Classifier] | None = None  # path and its time of change

    def facts(self, backend: str, stored: str) -> EncoderFacts:
        """Of the encoder that `with_backend` chooses. Raises EncoderError, SettingsError."""
        encoder = self._by(backend, stored)
        return EncoderFacts(encoder.key, encoder.dim, encoder.at_once, encoder.reads_text, encoder.preprocessing)

    def encode(self, key: str, backend: str, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `Encoder.encode`: uint8 [n, 3, s, s] -> float32 [n, dim]. Raises EncoderError if the key is another."""
        import torch

        encoder = self._of(key, backend)
        with self._lock:
            if key not in self._threads:
                self._threads[key] = ThreadPoolExecutor(encoder.at_once, "encode", encoder.start_thread)
            threads = self._threads[key]
        return threads.submit(encoder.encode, torch.from_numpy(batch)).result()

    def read(self, key: str, names: Sequence[str]) -> NDArray[np.float32] | None:
        """As `Encoder.encode_names`, which all back ends share. Raises EncoderError if the key is another."""
        from neat_backend.models.backends import key_of_network

        encoder = self._built()
        self._check(encoder.key, key_of_network(key))
        return encoder.encode_names(names)

    def classify(self, path: Path | str, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The probabilities that a saved classifier gives, as `Classifier.predict_proba`.

        Raises FileNotFoundError, ClassifierDamaged, and SettingsError for images of another side.
        """
        from neat_backend.models.classifier import Classifier

        path = Path(path)
        of = path, path.stat().st_mtime_ns
        with self._lock:
            if self._classifier is None or self._classifier[0] != of:
                try:
                    self._classifier = of, Classifier.load(path, self._device)
                except ValueError as error:
                    raise ClassifierDamaged(str(error)) from error
            classifier = self._classifier[1]
        if images.shape[1] != classifier.side:
            raise SettingsError(
                f"NEAT_IMAGE_SIZE is {images.shape[1]}, but the last classifier was trained on images of"
                f" {classifier.side} pixels: press “Start Training”, or set NEAT_IMAGE_SIZE={classifier.side} again"
            )
        return classifier.predict_proba(images)

    def _built(self) -> Encoder:
        from neat_backend.models.encoders import build_encoder

        with self._lock:
            if self._encoder is None:
                self._encoder = build_encoder(*self._given)
            return self._encoder

    def _by(self, backend: str, stored: str) -> Encoder:
        from neat_backend.models.backends import with_backend

        return with_backend(self._built(), backend, stored)

    def _of(self, key: str, backend: str) -> Encoder:
        encoder = self._by(backend, key)
        self._check(encoder.key, key)
        return encoder

    @staticmethod
    def _check(key: str, expected: str) -> None:
        if key != expected:
            raise EncoderError(f"the encoder is {key} now and was {expected}: start the worker again")
