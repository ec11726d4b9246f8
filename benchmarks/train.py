"""`python -m benchmarks train`: the classifier's training against a plain PyTorch loop."""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.report import Json, device_name, numbers, progress, report
from benchmarks.samples import FASHION_MNIST, real_pictures

WORKERS = 2  # of the plain loop's DataLoader
N_CLASSES = 10
N_WARM = 32
ROTATION_DEGREES = 15


def train(
    sides: Annotated[str, typer.Option(help="Pixels; below 64 the network has its 3 × 3 stem.")] = "32,64",
    images: Annotated[int, typer.Option(min=10, help="Pictures to train on.")] = 1024,
    test_images: Annotated[int, typer.Option(min=1, help="Pictures to test with.")] = 500,
    epochs: Annotated[int, typer.Option(min=1)] = 2,
    seeds: Annotated[int, typer.Option(min=1, help="So many runs of each; pictures, weights and order differ.")] = 3,
    data: Annotated[
        str, typer.Option(help="digits (1,797), fashion-mnist, or auto: the latter if it is there.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: Json = False,
) -> None:
    """Training the classifier against a plain PyTorch loop: DataLoader, transforms per image, float32.

    Same network, optimiser, schedule, augmentation and pictures; a run of each in turn.

    Example: python -m benchmarks train --images 512 --epochs 1 --seeds 1
    """
    from neat_backend.models.devices import bfloat16_is_faster, resolve_device

    wanted = numbers(sides, "--sides", least=8)
    if data not in ("auto", "digits", "fashion-mnist"):
        raise typer.BadParameter(f"--data {data!r}: auto, digits or fashion-mnist")
    if data == "auto":
        data = "fashion-mnist" if FASHION_MNIST.is_dir() else "digits"
    place = resolve_device(device)
    rows: list[dict[str, Any]] = []
    for side in wanted:
        ours: list[tuple[float, float]] = []
        plain: list[tuple[float, float]] = []
        warm = False
        for seed in range(seeds):
            try:
                pictures, labels = real_pictures(data, images + test_images, side, seed)
            except (ValueError, OSError) as error:
                raise typer.BadParameter(str(error)) from None
            progress.print(f"{side} px, seed {seed} …")
            run = (pictures[:images], labels[:images], pictures[images:], labels[images:], epochs, seed, device)
            if not warm:  # the first batches choose algorithms and start threads
                few = (pictures[:N_WARM], labels[:N_WARM], pictures[:1], labels[:1], 1, seed, device)
                _ours(*few), _plain(*few)
                warm = True
            ours.append(_ours(*run))
            plain.append(_plain(*run))
        speeds, plain_speeds = [statistics.median(s for s, _ in runs) for runs in (ours, plain)]
        rows.append(
            {
                "side": side,
                "ours_images_per_second": speeds,
                "plain_images_per_second": plain_speeds,
                "times_faster": speeds / plain_speeds,
                "ours_accuracy": statistics.mean(a for _, a in ours),
                "plain_accuracy": statistics.mean(a for _, a in plain),
                "ours_accuracy_of_each_seed": [round(a, 4) for _, a in ours],
                "plain_accuracy_of_each_seed": [round(a, 4) for _, a in plain],
            }
        )
    figures: dict[str, Any] = {
        "data": data,
        "images": images,
        "test_images": test_images,
        "epochs": epochs,
        "seeds": seeds,
        "device": device_name(place),
        "ours_bfloat16": bfloat16_is_faster(place),
        "least_times_faster": min(float(row["times_faster"]) for row in rows),
        "aim": "at least 2 times on a CPU, 8 times on one H100, same accuracy",
    }
    report("train", figures, as_json, rows, of="side")


def _ours(
    x: NDArray[np.uint8],
    y: NDArray[np.int64],
    test_x: NDArray[np.uint8],
    test_y: NDArray[np.int64],
    epochs: int,
    seed: int,
    device: str,
) -> tuple[float, float]:
    """Images trained on per second, and accuracy."""
    from neat_backend.models.classifier import Schedule, fit

    began = time.perf_counter()
    classifier = fit(x, y, N_CLASSES, schedule=Schedule(epochs=epochs), seed=seed, device=device)
    seconds = time.perf_counter() - began
    return len(x) * epochs / seconds, float((classifier.predict_proba(test_x).argmax(axis=1) == test_y).mean())


def _plain(
    x: NDArray[np.uint8],
    y: NDArray[np.int64],
    test_x: NDArray[np.uint8],
    test_y: NDArray[np.int64],
    epochs: int,
    seed: int,
    device: str,
) -> tuple[float, float]:
    """The same as most people write it."""
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import models, transforms

    from neat_backend.models import classifier
    from neat_backend.models.devices import resolve_device

    place = resolve_device(device)
    side = x.shape[1]
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

    torch.manual_seed(seed)
    began = time.perf_counter()
    network = models.resnet18(num_classes=N_CLASSES)
    if side < classifier.ORDINARY_STEM_FROM:
        network.conv1 = torch.nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        network.maxpool = torch.nn.Identity()
    network.to(place)
    loader = DataLoader(
        Pictures(x, y, augmented),
        batch_size=classifier.BATCH_SIZE,
        shuffle=True,
        num_workers=WORKERS,
        pin_memory=place.type == "cuda",
        drop_last=len(x) % classifier.BATCH_SIZE == 1,
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
    for _ in range(epochs):
        for pictures, labels in loader:
            pictures, labels = pictures.to(place), labels.to(place)
            optimiser.zero_grad()
            loss = loss_of(network(pictures), labels)
            loss.backward()
            optimiser.step()
        schedule.step()
    if place.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    network.eval()
    correct = 0
    with torch.no_grad():
        tests = Pictures(test_x, test_y, transforms.Compose(as_tensor))
        for pictures, labels in DataLoader(tests, batch_size=classifier.PREDICT_BATCH_SIZE):
            correct += int((network(pictures.to(place)).argmax(1).cpu() == labels).sum())
    return len(x) * epochs / seconds, correct / len(test_y)
