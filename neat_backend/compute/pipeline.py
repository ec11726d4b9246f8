"""Embedding as a Ray Data pipeline: actors that fetch and prepare pictures, actors that encode them.

Batches are cut from the list of tasks before anything is fetched, so they depend on the list alone. The calling
process stores the results: a run that ends early keeps what is stored, and the next one encodes the rest.
"""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from neat_backend import errors
from neat_backend.compute import embedding
from neat_backend.errors import ImageError, NeatError

if TYPE_CHECKING:
    from PIL.Image import Image

Row = dict[str, Any]
AT_ONCE = 262_144  # images of one run of the pipeline, with their addresses
MOST_BLOCKS = 1024
FETCHER_CPUS = 0.5  # decoding and waiting
ENCODER_CPUS = 0.5  # beside a GPU; without one, a core each


@dataclass(frozen=True)
class Preparing:
    """The source of images and the encoder's preprocessing, sent to the fetching actors."""

    source: embedding.Source
    preprocess: Callable[[Image], Any]


class Fetcher:
    """An actor: tasks → thumbnails and inputs of the encoder."""

    def __init__(self, how: Preparing) -> None:
        self._how = how
        self._pool = ThreadPoolExecutor(how.source.downloads, thread_name_prefix="image")

    def __call__(self, row: Row) -> Row:
        wanted: list[tuple[int, str | None]] = [(task, ref) for task, ref in json.loads(row["batch"])]
        try:
            made = list(self._pool.map(self._one, wanted))
        except NeatError as error:  # Label Studio is away: the run ends, finished images are stored
            ended = json.dumps([type(error).__name__, str(error)])
            return {"batch": "[]", "failed": "[]", "ended": ended, "thumbnails": b"", "inputs": b""}
        good = [(item, both) for item, both in zip(wanted, made, strict=True) if not isinstance(both, ImageError)]
        failed = [
            (task, str(e), e.transient) for (task, _), e in zip(wanted, made, strict=True) if isinstance(e, ImageError)
        ]
        return {
            "batch": json.dumps([item for item, _ in good]),
            "failed": json.dumps(failed),
            "ended": "",
            "thumbnails": _packed(np.stack([both[0] for _, both in good])) if good else b"",
            "inputs": _packed(np.stack([np.asarray(both[1]) for _, both in good])) if good else b"",
        }

    def _one(self, item: tuple[int, str | None]) -> tuple[NDArray[np.uint8], Any] | ImageError:
        task, ref = item
        return embedding.made_or_failed(task, lambda: self._how.source.prepared(task, ref, self._how.preprocess))


class Encoding:
    """An actor: inputs of the encoder → features."""

    def __init__(self, encoder: embedding.Encoder, device: str) -> None:
        self._encoder = on_device(encoder, device)

    def __call__(self, row: Row) -> Row:
        import torch

        batch = json.loads(row["batch"])
        if not batch:
            return {**row, "inputs": b"", "features": b""}
        thumbnails, inputs = _unpacked(row["thumbnails"]), torch.from_numpy(_unpacked(row["inputs"]))
        prepared = [(task, ref, thumb, x) for (task, ref), thumb, x in zip(batch, thumbnails, inputs, strict=True)]
        done, bad = embedding.encode_batch(self._encoder, prepared)
        failed = [*json.loads(row["failed"]), *((task, str(error), error.transient) for task, error in bad)]
        return {
            "batch": json.dumps([(task, ref) for (task, ref, _, _), _ in done]),
            "failed": json.dumps(failed),
            "ended": row["ended"],
            "thumbnails": _packed(np.stack([thumb for (_, _, thumb, _), _ in done])) if done else b"",
            "inputs": b"",
            "features": _packed(np.stack([feature for _, feature in done])) if done else b"",
        }


def on_device(encoder: embedding.Encoder, device: str) -> embedding.Encoder:
    """The encoder on the device of this process; an encoder without `on` stays as it is."""
    if not hasattr(encoder, "on"):
        return encoder
    from neat_backend.models.devices import resolve_device

    moved: embedding.Encoder = encoder.on(resolve_device(device))
    return moved


def pipeline(
    images: Sequence[tuple[int, str | None]],
    how: Preparing,
    encoder: embedding.Encoder,
    *,
    batch_size: int,
    gpus: int,
    workers: int | None = None,
) -> Iterator[Row]:
    """Rows of encoded batches, in no order. workers: encoding actors; None = as many as fit into the cluster."""
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    batches = [json.dumps(images[start : start + batch_size]) for start in range(0, len(images), batch_size)]
    size = ray.data.ActorPoolStrategy
    device = "cuda" if gpus else "cpu"
    rows = (
        ray.data.from_items([{"batch": each} for each in batches], override_num_blocks=min(len(batches), MOST_BLOCKS))
        .map(
            _made(Fetcher),
            fn_constructor_args=(how,),
            num_cpus=FETCHER_CPUS,
            compute=size(min_size=1, max_size=workers),
        )
        .map(
            _made(Encoding),
            fn_constructor_args=(encoder, device),
            compute=size(size=workers) if workers else size(min_size=1),
            num_cpus=None if gpus else ENCODER_CPUS,
            num_gpus=1 if gpus else None,
        )
    )
    yield from rows.iter_rows()


def _made(actor: type) -> Any:
    """The class: Ray Data makes the objects, though its type hints name functions only."""
    return actor


def store(row: Row, writer: embedding.Writer) -> None:
    """Pass a row to the writer. Raises the error that ended the run, if there is one."""
    for task, words, transient in json.loads(row["failed"]):
        writer.fail(task, ImageError(words, transient))
    batch = json.loads(row["batch"])
    if batch:
        both = zip(_unpacked(row["thumbnails"]), _unpacked(row["features"]), strict=True)
        for (task, ref), (thumb, feature) in zip(batch, both, strict=True):
            writer.add(task, ref, thumb, feature)
    writer.flush_if_due()
    if row["ended"]:
        name, words = json.loads(row["ended"])
        raise getattr(errors, name, NeatError)(words)


def _packed(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _unpacked(data: bytes) -> NDArray[Any]:
    array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    return array
