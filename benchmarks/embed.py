"""`python -m benchmarks embed`: the whole way from files to stored features against the bare encoder."""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL.Image import Image

from benchmarks.report import Json, progress, report
from benchmarks.samples import make_files

MAX_PIXELS = 100_000_000


def embed(
    images: Annotated[int, typer.Option(min=1, help="How many files.")] = 512,
    side: Annotated[int, typer.Option(min=8, help="Pixels of each.")] = 512,
    suffix: Annotated[str, typer.Option(help="jpg or png.")] = "jpg",
    encoder: Annotated[str, typer.Option(help="As NEAT_ENCODER.")] = "efficientnet_lite0",
    batch_size: Annotated[int, typer.Option(min=1, help="As NEAT_ENCODE_BATCH_SIZE.")] = 32,
    downloads: Annotated[int, typer.Option(min=1, help="As NEAT_DOWNLOADS.")] = 8,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Json = False,
) -> None:
    """Files to stored features: the pipeline against the encoder alone, and against decoding alone.

    The encoder alone gets the same pictures decoded, cut and put in batches beforehand. On a CPU decoding and
    encoding share the cores, so together they can at best take the time of both: that is `both_in_turn`.

    Example: python -m benchmarks embed --images 256 --side 1024
    """
    if suffix not in ("jpg", "png"):
        raise typer.BadParameter(f"--suffix {suffix!r}: jpg or png")
    import torch

    from neat_backend.compute.embedding import Embedded, Source, Target
    from neat_backend.compute.embedding import embed as pipeline
    from neat_backend.labelstudio.images import decode, thumbnail
    from neat_backend.models.encoders import build_encoder
    from neat_backend.store.arrays import ProjectArrays

    network = build_encoder(encoder, device=device)
    thumbnail_side = 64
    with tempfile.TemporaryDirectory() as name:
        progress.print(f"{images} files of {side} px …")
        files = make_files(Path(name) / "files", images, side, suffix, np.random.default_rng(0))

        def load(task: int, ref: str | None) -> Image:
            return decode(files[task].read_bytes(), MAX_PIXELS)

        def prepared(task: int) -> tuple[Any, Any]:
            image = load(task, None)
            return thumbnail(image, thumbnail_side), network.preprocess(image)

        def decoded() -> list[Any]:
            with ThreadPoolExecutor(downloads) as pool:
                return [tensor for _, tensor in pool.map(prepared, range(images))]

        stored: list[Embedded] = []

        def through(folder: str) -> None:
            stored.clear()
            pipeline(
                [(task, file.name) for task, file in enumerate(files)],
                network,
                Source(load, thumbnail, thumbnail_side, downloads),
                Target(ProjectArrays(Path(name) / folder, 1), stored.append, _fail),
                batch_size=batch_size,
            )

        began = time.perf_counter()
        tensors = decoded()
        decoding = [time.perf_counter() - began]
        batches = [torch.stack(tensors[start : start + batch_size]) for start in range(0, images, batch_size)]
        network.encode(batches[0])  # the first call allocates memory and chooses algorithms
        encoding, whole = [], []
        for turn in range(2):  # in turn, so that what else the machine does is in all of them
            began = time.perf_counter()
            expected = np.concatenate([network.encode(batch) for batch in batches])
            encoding.append(time.perf_counter() - began)
            began = time.perf_counter()
            through(f"data{turn}")
            whole.append(time.perf_counter() - began)
            began = time.perf_counter()
            decoded()
            decoding.append(time.perf_counter() - began)
        got = np.zeros_like(expected)
        for part in stored:
            got[part.tasks] = part.features
    bare, alone, ours = images / min(encoding), images / min(decoding), images / min(whole)
    in_turn = 1 / (1 / bare + 1 / alone)
    report(
        "embed",
        {
            "encoder": encoder,
            "device": str(network.device),
            "images": images,
            "side": side,
            "format": suffix,
            "batch_size": batch_size,
            "downloads": downloads,
            "encoder_side": network.input_size,
            "pipeline_images_per_second": ours,
            "bare_encoder_images_per_second": bare,
            "decoding_alone_images_per_second": alone,
            "both_in_turn_images_per_second": in_turn,
            "limit": "encoder" if bare < alone else "decoding",
            "pipeline_over_bare_encoder": ours / bare,
            "pipeline_over_the_limit": ours / min(bare, alone),
            "pipeline_over_both_in_turn": ours / in_turn,
            "largest_difference_of_a_feature": float(np.abs(got - expected).max()),
            "aim": "at least 0.9 of the bare encoder where the encoder is the limit",
        },
        as_json,
    )


def _fail(task: int, error: Exception) -> None:
    raise error
