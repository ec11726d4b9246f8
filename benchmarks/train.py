"""`python -m benchmarks train`: the classifier's training against a plain PyTorch loop."""

from __future__ import annotations

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import loops
from benchmarks.loops import Measured
from benchmarks.report import Json, device_name, numbers, progress, report
from benchmarks.samples import FASHION_MNIST, N_CLASSES, real_pictures
from neat_backend.errors import SettingsError

DATA = ("auto", "digits", "fashion-mnist", "cifar10")


def train(
    sides: Annotated[str, typer.Option(help="Pixels; below 64 the network has its 3 × 3 stem.")] = "32,64",
    images: Annotated[int, typer.Option(min=10, help="Pictures to train on.")] = 1024,
    test_images: Annotated[int, typer.Option(min=1, help="Pictures to test with.")] = 500,
    classes: Annotated[int, typer.Option(min=2, max=N_CLASSES, help="So many of the ten, drawn by the seed.")] = 10,
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    seeds: Annotated[int, typer.Option(min=1, help="So many runs of each; pictures, weights and order differ.")] = 3,
    data: Annotated[
        str, typer.Option(help="digits (1,797), fashion-mnist, cifar10, or auto: one of the first two.")
    ] = "auto",
    folder: Annotated[Path | None, typer.Option(help="Where cifar10 lies.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    progressive: Annotated[
        bool, typer.Option("--progressive", help="NEAT_PROGRESSIVE_RESIZING=1: half the side in half of our epochs.")
    ] = False,
    single: Annotated[bool, typer.Option("--single", help="No bfloat16, as on a CPU without it.")] = False,
    as_json: Json = False,
) -> None:
    """Training the classifier against a plain PyTorch loop: DataLoader, transforms per image, float32.

    Same network, optimiser, number of epochs, augmentation and pictures, each in a process of its own, a run of each
    in turn. Processor time is what a loaded machine can be measured by; OMP_NUM_THREADS=1 makes it comparable.

    Example: python -m benchmarks train --images 512 --epochs 2 --seeds 1
    """
    from neat_backend.models.devices import bfloat16_is_faster, resolve_device

    wanted = numbers(sides, "--sides", least=8)
    if data not in DATA:
        raise typer.BadParameter(f"--data {data!r}: {', '.join(DATA)}")
    if data == "auto":
        data = "fashion-mnist" if FASHION_MNIST.is_dir() else "digits"
    place = resolve_device(device)
    rows: list[dict[str, Any]] = []
    for side in wanted:
        ours: list[Measured] = []
        plain: list[Measured] = []
        # A process each: how one allocates memory must not help the other.
        with _process(_begin_ours) as our_process, _process(None) as plain_process:
            for seed in range(seeds):
                try:
                    n = images + test_images
                    pictures, labels = real_pictures(data, n, side, seed, folder=folder, classes=classes)
                except (ValueError, OSError, SettingsError) as error:
                    raise typer.BadParameter(str(error)) from None
                progress.print(f"{side} px, seed {seed} …")
                to_train, to_test = slice(None, images), slice(images, None)
                parts = (pictures[to_train], labels[to_train], pictures[to_test], labels[to_test])
                run = loops.Run(*parts, classes, epochs, seed, device, progressive, single)
                if seed == 0:
                    (
                        our_process.submit(loops.ours, run.few()).result(),
                        plain_process.submit(loops.plain, run.few()).result(),
                    )
                ours.append(our_process.submit(loops.ours, run).result())
                plain.append(plain_process.submit(loops.plain, run).result())
        rows.append({"side": side, **_compared(ours, plain, images * epochs)})
    figures: dict[str, Any] = {
        "data": data,
        "images": images,
        "test_images": test_images,
        "classes": classes,
        "epochs": epochs,
        "seeds": seeds,
        "device": device_name(place),
        "ours_bfloat16": bfloat16_is_faster(place) and not single,
        "ours_progressive": progressive,
        "least_times_faster": min(float(row["times_faster"]) for row in rows),
        "least_times_less_processor_time": min(float(row["times_less_processor_time"]) for row in rows),
        "aim": "at least 2 times on a CPU, 8 times on one H100, same accuracy",
    }
    report("train", figures, as_json, rows, of="side")


def _compared(ours: Sequence[Measured], plain: Sequence[Measured], seen: int) -> dict[str, Any]:
    """The figures of one side; `seen` images were trained on in each run."""
    speeds = [seen / statistics.median(m.seconds for m in runs) for runs in (ours, plain)]
    used = [statistics.median(m.processor_seconds for m in runs) for runs in (ours, plain)]
    mean, half = interval([100 * (a.accuracy - b.accuracy) for a, b in zip(ours, plain, strict=True)])
    return {
        "ours_images_per_second": speeds[0],
        "plain_images_per_second": speeds[1],
        "times_faster": speeds[0] / speeds[1],
        "ours_processor_seconds": used[0],
        "plain_processor_seconds": used[1],
        "times_less_processor_time": used[1] / used[0],
        "ours_accuracy": statistics.mean(m.accuracy for m in ours),
        "plain_accuracy": statistics.mean(m.accuracy for m in plain),
        "difference_points": mean,
        "difference_95_percent": half,  # plus or minus; None with one seed
        "ours_accuracy_of_each_seed": [round(m.accuracy, 4) for m in ours],
        "plain_accuracy_of_each_seed": [round(m.accuracy, 4) for m in plain],
    }


def interval(differences: Sequence[float]) -> tuple[float, float | None]:
    """Mean and half of the 95 % interval of Student's t; one difference has no interval."""
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return differences[0], None
    return statistics.mean(differences), float(t.ppf(0.975, n - 1)) * statistics.stdev(differences) / n**0.5


def _process(begin: Callable[[], None] | None) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin)


def _begin_ours() -> None:
    """As a round's process begins."""
    from neat_backend.worker.steps.training import keep_freed_memory

    keep_freed_memory()
