"""The heavy work as tasks and actors of a Ray cluster; see `compute.Compute`."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import ray
from numpy.typing import NDArray

from neat_backend.compute import Images, embedding
from neat_backend.compute.cluster import Cluster, plain_errors
from neat_backend.compute.embedding import Progress
from neat_backend.compute.pipeline import AT_ONCE, Preparing, pipeline, store
from neat_backend.models.classifier import Classifier, fit
from neat_backend.models.devices import resolve_device

if TYPE_CHECKING:
    from neat_backend.ranking.engine import Engine

IN_FLIGHT = 2  # batches of pool inference for each machine that computes


class RayCompute:
    """Embedding, training and pool inference on a cluster; with `shards`, the engine's rows too.

    address: under which other processes of this machine find the same Ray. device: as NEAT_DEVICE;
    cpu leaves the cluster's GPUs alone. workers: encoding actors, None = as many as fit.
    """

    def __init__(self, cluster: Cluster, *, shards: int = 0, device: str = "auto", workers: int | None = None) -> None:
        self.cluster, self.shards, self.workers = cluster, shards, workers
        self.address = cluster.address
        self.gpus = 0 if device == "cpu" else cluster.gpus
        self.device = "cuda" if self.gpus else "cpu"

    def embed(
        self,
        images: Sequence[tuple[int, str | None]],
        encoder: embedding.Encoder,
        source: embedding.Source,
        target: embedding.Target,
        *,
        batch_size: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Progress:
        """As `embedding.embed`; batches are cut from the list in its order."""
        preprocessing = getattr(encoder, "preprocessing", None)  # lighter to send than the network
        preprocess = preprocessing.pixels if preprocessing is not None else encoder.preprocess
        preparing = Preparing(source, preprocess)
        sent = encoder.on(resolve_device("cpu")) if hasattr(encoder, "on") else encoder
        writer = embedding.Writer(len(images), encoder.key, source.side, target)
        try:
            for start in range(0, len(images), AT_ONCE):
                part = images[start : start + AT_ONCE]
                rows = pipeline(part, preparing, sent, batch_size=batch_size, gpus=self.gpus, workers=self.workers)
                with plain_errors("embedding"):
                    for row in rows:
                        store(row, writer)
                        target.on_progress(writer.progress)
                        if stopped():
                            return writer.progress
        finally:
            writer.flush()
        target.on_progress(writer.progress)
        return writer.progress

    def fit(
        self,
        images: Images,
        labels: NDArray[np.int64],
        n_classes: int,
        *,
        on_epoch: Callable[[int, int, float], None] | None = None,
        **how: Any,
    ) -> Classifier:
        """As `models.classifier.fit`, on a GPU where the cluster has one."""
        how["device"] = self.device
        with plain_errors("training"):
            results: Any = _fit.options(num_gpus=1 if self.gpus else 0).remote(images, labels, n_classes, how)
            for ref in results:
                item = ray.get(ref)
                if isinstance(item, Classifier):
                    return item.on(resolve_device("cpu"))
                if on_epoch is not None:
                    on_epoch(*item)
        raise AssertionError("a training ends with a classifier or an error")

    def predict(self, classifier: Classifier, batches: Iterable[Images]) -> Iterator[NDArray[np.float32]]:
        """Probabilities of each batch, in their order; a few batches are in flight at a time."""
        model = ray.put(classifier.on(resolve_device("cpu")))
        task = _predict.options(num_gpus=1 if self.gpus else 0)
        most = IN_FLIGHT * max(1, self.gpus or self.cluster.cpus)
        waiting: deque[Any] = deque()
        with plain_errors("classifying"):
            for images in batches:
                waiting.append(task.remote(model, images, self.device))
                if len(waiting) > most:
                    yield ray.get(waiting.popleft())
            while waiting:
                yield ray.get(waiting.popleft())

    def engine(self, dim: int, classes: Sequence[str], **settings: Any) -> Engine:
        """With shards, an engine whose rows are spread over actors; else a local one."""
        from neat_backend.ranking.engine import Engine

        if not self.shards:
            return Engine(dim, classes, **settings)
        from neat_backend.compute.actors import start_shards
        from neat_backend.compute.sharded import ShardedEngine

        shards = start_shards(self.shards, dim, classes, settings, gpu=bool(self.gpus))
        return cast(Engine, ShardedEngine(shards, classes, **settings))


@ray.remote(max_retries=0)
def _fit(images: Images, labels: NDArray[np.int64], n_classes: int, how: dict[str, Any]) -> Iterator[Any]:
    """(epoch, epochs, loss) after each epoch, then the classifier."""
    results: queue.Queue[Any] = queue.Queue()

    def work() -> None:
        try:
            results.put(fit(images, labels, n_classes, on_epoch=lambda *epoch: results.put(epoch), **how))
        except BaseException as error:  # raised below, in the thread of the Ray task
            results.put(error)

    threading.Thread(target=work, daemon=True).start()
    while True:
        item = results.get()
        if isinstance(item, BaseException):
            raise item
        yield item.on(resolve_device("cpu")) if isinstance(item, Classifier) else item
        if isinstance(item, Classifier):
            return


@ray.remote
def _predict(classifier: Classifier, images: Images, device: str) -> NDArray[np.float32]:
    return classifier.on(resolve_device(device)).predict_proba(images)
