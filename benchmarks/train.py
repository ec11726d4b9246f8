"""`python -m benchmarks train`: the classifier's training against a plain PyTorch loop."""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.report import Json, device_name, numbers, progress, report
from benchmarks.samples import FASHION_MNIST, N_CLASSES, real_pictures
from neat_backend.errors import SettingsError

WORKERS = 2  # of the plain loop's DataLoader
N_WARM = 32
ROTATION_DEGREES = 15
DATA = ("auto", "digits", "fashion-mnist", "cifar10")


@dataclass(frozen=True)
class Run:
    """Pictures [n, s, s, 3] and labels [n] to train on and to test with, and how to train."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]
    test_x: NDArray[np.uint8]
    test_y: NDArray[np.int64]
    classes: int
    epochs: int
    seed: int
    device: str
    progressive: bool
    single: bool

    def few(self) -> Run:
        """A run that chooses algorithms and starts threads."""
        part = {"x": self.x[:N_WARM], "y": self.y[:N_WARM], "test_x": self.test_x[:1], "test_y": self.test_y[:1]}
        return Run(**{**vars(self), **part, "epochs": 1})


@dataclass(frozen=True)
class Measured:
    """One training."""

    seconds: float
    processor_seconds: float  # with those of the processes that load pictures
    accuracy: float


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
                run = Run(*parts, classes, epochs, seed, device, progressive, single)
                if seed == 0:
                    our_process.submit(_ours, run.few()).result(), plain_process.submit(_plain, run.few()).result()
                ours.append(our_process.submit(_ours, run).result())
                plain.append(plain_process.submit(_plain, run).result())
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


def _processor_seconds() -> float:
    """Of this process and the ended ones that it started."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def _ours(run: Run) -> Measured:
    from neat_backend.models import classifier

    if run.single:
        classifier.bfloat16_is_faster = lambda device: False
    began, used = time.perf_counter(), _processor_seconds()
    schedule = classifier.Schedule(epochs=run.epochs, progressive=run.progressive)
    trained = classifier.fit(run.x, run.y, run.classes, schedule=schedule, seed=run.seed, device=run.device)
    seconds, used = time.perf_counter() - began, _processor_seconds() - used
    return Measured(seconds, used, float((trained.predict_proba(run.test_x).argmax(axis=1) == run.test_y).mean()))


def _plain(run: Run) -> Measured:
    """The same as most people write it."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import models, transforms

    from neat_backend.models import classifier
    from neat_backend.models.devices import resolve_device

    place = resolve_device(run.device)
    side = run.x.shape[1]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    as_tensor = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    augmented = transforms.Compose(
        [
            transforms.RandomCrop(side, padding=side // 8),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(ROTATION_DEGREES, transforms.InterpolationMode.BILINEAR),
            *as_tensor,
        ]
    )

    class Pictures(Dataset[tuple[torch.Tensor, int]]):
        def __init__(self, pictures: NDArray[np.uint8], labels: NDArray[np.int64], transform: Any) -> None:
            self.pictures = [Image.fromarray(picture) for picture in pictures]
            self.labels, self.transform = labels, transform

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, at: int) -> tuple[torch.Tensor, int]:
            return self.transform(self.pictures[at]), int(self.labels[at])

    torch.manual_seed(run.seed)
    began, used = time.perf_counter(), _processor_seconds()
    network = models.resnet18(num_classes=run.classes)
    if side < classifier.ORDINARY_STEM_FROM:
        network.conv1 = torch.nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        network.maxpool = torch.nn.Identity()
    network.to(place)
    loader = DataLoader(
        Pictures(run.x, run.y, augmented),
        batch_size=classifier.BATCH_SIZE,
        shuffle=True,
        num_workers=WORKERS,
        multiprocessing_context="fork",
        pin_memory=place.type == "cuda",
        drop_last=len(run.x) % classifier.BATCH_SIZE == 1,
    )
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=classifier.LEARNING_RATE,
        momentum=classifier.MOMENTUM,
        weight_decay=classifier.WEIGHT_DECAY,
    )
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, classifier.HALVED_EVERY_EPOCHS, gamma=0.5)
    loss_of = torch.nn.CrossEntropyLoss()
    network.train()
    for _ in range(run.epochs):
        for pictures, labels in loader:
            pictures, labels = pictures.to(place), labels.to(place)
            optimiser.zero_grad()
            loss = loss_of(network(pictures), labels)
            loss.backward()
            optimiser.step()
        schedule.step()
    if place.type == "cuda":
        torch.cuda.synchronize()
    seconds, used = time.perf_counter() - began, _processor_seconds() - used
    network.eval()
    correct = 0
    with torch.no_grad():
        tests = Pictures(run.test_x, run.test_y, transforms.Compose(as_tensor))
        for pictures, labels in DataLoader(tests, batch_size=classifier.PREDICT_BATCH_SIZE):
            correct += int((network(pictures.to(place)).argmax(1).cpu() == labels).sum())
    return Measured(seconds, used, correct / len(run.test_y))
