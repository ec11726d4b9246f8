"""Where the heavy work is done: in this process and its children, or on a Ray cluster. One interface for both.

Ray is imported only where `NEAT_COMPUTE=ray` asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from neat_backend.compute.embedding import Embedded, Encoder, Progress
    from neat_backend.errors import ImageError
    from neat_backend.models.classifier import Classifier
    from neat_backend.ranking.engine import Engine
    from neat_backend.store.arrays import ProjectArrays

Images = NDArray[np.uint8]


class Compute(Protocol):
    """What is computed elsewhere or here. Results do not depend on which."""

    def embed(
        self,
        images: Sequence[tuple[int, str | None]],
        *,
        load: Callable[[int, str | None], Any],
        thumbnail: Callable[[Any, int], Images],
        encoder: Encoder,
        arrays: ProjectArrays,
        side: int,
        batch_size: int,
        downloads: int,
        on_stored: Callable[[Embedded], None],
        on_failed: Callable[[int, ImageError], None],
        on_progress: Callable[[Progress], None] = ...,
        stopped: Callable[[], bool] = ...,
    ) -> Progress:
        """As `embedding.embed`. `load` and `thumbnail` must be picklable, for they may run on other machines."""

    def fit(self, images: Images, labels: NDArray[np.int64], n_classes: int, **how: Any) -> Classifier:
        """As `models.classifier.fit`."""

    def predict(self, classifier: Classifier, batches: Iterable[Images]) -> Iterator[NDArray[np.float32]]:
        """The classifier's probabilities of each batch, in their order."""

    def engine(self, dim: int, classes: Sequence[str], **settings: Any) -> Engine:
        """An engine, as `Engine(dim, classes, **settings)` makes it."""


class LocalCompute:
    """Everything in this process."""

    def embed(self, images: Sequence[tuple[int, str | None]], **how: Any) -> Progress:
        from neat_backend.compute.embedding import embed

        return embed(images, **how)

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
