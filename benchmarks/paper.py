"""`python -m benchmarks paper`: an experiment of the paper's CIFAR-10 run, from images to the last round."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from benchmarks.report import Json, device_name, progress, report
from benchmarks.samples import made_up

if TYPE_CHECKING:
    from neat_backend.experiments.datasets import Dataset

PAPER_MINUTES = 17  # on one A5000: section "Training time" of the paper


def paper(
    images: Annotated[int, typer.Option(min=100, help="Pictures in the pool.")] = 50_000,
    side: Annotated[int, typer.Option(min=8, help="Pixels.")] = 32,
    rounds: Annotated[int, typer.Option(min=1, help="Trainings, that on the initial labels included.")] = 10,
    epochs: Annotated[int, typer.Option(min=1)] = 100,
    batch: Annotated[int, typer.Option(min=1, help="B, labels in a query.")] = 400,
    strategy: Annotated[str, typer.Option()] = "neat",
    data: Annotated[Path | None, typer.Option(help="CIFAR-10's folder; without it the pictures are made up.")] = None,
    encoder: Annotated[str, typer.Option(help="As NEAT_ENCODER.")] = "efficientnet_lite0",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Json = False,
) -> None:
    """The paper's CIFAR-10 experiment, all in: encoding, 10 trainings of 100 epochs, 9 queries; 2 of 10 classes known.

    Example: python -m benchmarks paper --images 2000 --rounds 2 --epochs 1 --batch 40
    """
    from neat_backend.experiments.datasets import load
    from neat_backend.experiments.presets import Protocol
    from neat_backend.models.encoders import build_encoder

    protocol = Protocol(
        "cifar10", known=2, initial=0.01, encoder=encoder, batch=batch, rounds=rounds - 1, epochs=epochs
    )
    pictures = load("cifar10", data) if data is not None else made_up(images, side)
    figures = measured(
        pictures,
        build_encoder(encoder, device=device),
        protocol,
        strategy,
        device,
        lambda number: progress.print(f"round {number + 1} of {rounds} …"),
    )
    figures |= {
        "data": "cifar10" if data is not None else "made up",
        "paper_minutes_on_an_a5000": PAPER_MINUTES,
        "aim": "at most 3 minutes on one H100",
    }
    report("paper", figures, as_json)


def measured(
    pictures: Dataset,
    encoder: Any,
    protocol: Any,
    strategy: str,
    device: str,
    on_round: Callable[[int], None],
) -> dict[str, Any]:
    """The figures of one run of an experiment, its classes 0 and 1 known; on_round(number) after each round."""
    from neat_backend.experiments.checkpoints import Run, RunFolder
    from neat_backend.experiments.features import features_of
    from neat_backend.experiments.image_files import ImageLearner
    from neat_backend.experiments.loop import Samples, run_rounds
    from neat_backend.models.devices import resolve_device

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        features, _ = features_of(pictures, encoder, Path(folder))
        encoded = time.perf_counter()
        both = np.concatenate([pictures.images, pictures.test_images])
        labels = np.concatenate([pictures.labels, pictures.test_labels])
        learner = ImageLearner(both, protocol.classifier, protocol.epochs, device)
        done = run_rounds(
            protocol,
            Samples(features, labels, learner),
            RunFolder(Path(folder), Run(strategy, 0, (0, 1))),
            lambda number, _: on_round(number),
        )
        ended = time.perf_counter()
    queried, found = (sum(int(each[name]) for each in done) for name in ("asked", "found"))
    phases = {name: sum(each["seconds"].get(name, 0.0) for each in done) for name in done[-1]["seconds"]}
    return {
        "device": device_name(resolve_device(device)),
        "images": len(pictures.images),
        "side": pictures.images.shape[1],
        "rounds": len(done),
        "epochs": protocol.epochs,
        "strategy": strategy,
        "minutes": (ended - began) / 60,
        "encoding_seconds": encoded - began,
        **{f"{name}_seconds": seconds for name, seconds in phases.items()},
        "trained_images_per_second": protocol.epochs * sum(int(each["known"]) for each in done) / phases["training"],
        "mean_precision": found / queried if queried else 0.0,
        "accuracy": done[-1]["accuracy"],
    }
