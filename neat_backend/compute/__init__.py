"""Heavy work in this process and its children, or on a Ray cluster, by one interface.

Ray is imported with `NEAT_COMPUTE=ray` only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from neat_backend.compute.embedding import Encoder, Progress, Source, Target
    from neat_backend.models.classifier import Classifier
    from neat_backend.ranking.engine import Engine

Images = NDArray[np.uint8]


class Compute(Protocol):
    """The heavy work. Its results do not depend on where it runs."""

    def embed(
        self,
        images: Sequence[tuple[int, str | None]],
        encoder: Encoder,
        source: Source,
        target: Target,
        *,
        batch_size: int,
        stopped: Callable[[], bool] = ...,
    ) -> Progress:
        """As `embedding.embed`."""

    def fit(self, images: Images, labels: NDArray[np.int64], n_classes: int, **how: Any) -> Classifier:
        """As `models.classifier.fit`."""

    def predict(self, classifier: Classifier, batches: Iterable[Images]) -> Iterator[NDArray[np.float32]]:
        """The classifier's probabilities of each batch, in their order."""

    def engine(self, dim: int, classes: Sequence[str], **settings: Any) -> Engine:
        """An engine, as `Engine(dim, classes, **settings)` makes it."""


class LocalCompute:
    """The heavy work in this process."""

    def embed(
        self, images: Sequence[tuple[int, str | None]], encoder: Encoder, source: Source, target: Target, **how: Any
    ) -> Progress:
        from neat_backend.compute.embedding import embed

        return embed(images, encoder, source, target, **how)

    def fit(self, images: Images, labels: NDArray[np.int64], n_classes: int, **how: Any) -> Classifier:
        from neat_backend.models.classifier import fit

        return fit(images, labels, n_classes, **how)

    def predict(self, classifier: Classifier, batches: Iterable[Images]) -> Iterator[NDArray[np.float32]]:
        return map(classifier.predict_proba, batches)

    def engine(self, dim: int, classes: Sequence[str], **settings: Any) -> Engine:
        from neat_backend.ranking.engine import Engine

        return Engine(dim, classes, **settings)


def open_compute(kind: str = "local", address: str = "", shards: int = 0, device: str = "auto") -> Compute:
    """The compute of NEAT_COMPUTE, RAY_ADDRESS, NEAT_SHARDS and NEAT_DEVICE.

    Raises ComputeError where Ray is not installed or does not answer.
    """
    if kind == "local":
        return LocalCompute()
    from neat_backend.compute.cluster import connect
    from neat_backend.compute.on_ray import RayCompute

    return RayCompute(connect(address), shards=shards, device=device)
