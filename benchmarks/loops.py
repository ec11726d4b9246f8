"""The classifier's training here, and the plain PyTorch loop that it is compared with."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORKERS = 2  # of the plain loop's DataLoader
N_WARM = 32
ROTATION_DEGREES = 15


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
    workers: int = WORKERS  # of the plain loop

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


def processor_seconds() -> float:
    """Of this process and the ended ones that it started."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def ours(run: Run) -> Measured:
    """One training by `fit`."""
    from neat_backend.models import classifier

    if run.single:
        classifier.bfloat16_is_faster = lambda device: False
    began, used = time.perf_counter(), processor_seconds()
    schedule = classifier.Schedule(epochs=run.epochs, progressive=run.progressive)
    trained = classifier.fit(run.x, run.y, run.classes, schedule=schedule, seed=run.seed, device=run.device)
    seconds, used = time.perf_counter() - began, processor_seconds() - used
    return Measured(seconds, used, float((trained.predict_proba(run.test_x).argmax(axis=1) == run.test_y).mean()))


def plain(run: Run) -> Measured:
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
    began, used = time.perf_counter(), processor_seconds()
    network = models.resnet18(num_classes=run.classes)
    if side < classifier.ORDINARY_STEM_FROM:
        network.conv1 = torch.nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        network.maxpool = torch.nn.Identity()
    network.to(place)
    loader = DataLoader(
        Pictures(run.x, run.y, augmented),
        batch_size=classifier.BATCH_SIZE,
        shuffle=True,
        num_workers=run.workers,
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
    seconds, used = time.perf_counter() - began, processor_seconds() - used
    network.eval()
    correct = 0
    with torch.no_grad():
        tests = Pictures(run.test_x, run.test_y, transforms.Compose(as_tensor))
        for pictures, labels in DataLoader(tests, batch_size=classifier.PREDICT_BATCH_SIZE):
            correct += int((network(pictures.to(place)).argmax(1).cpu() == labels).sum())
    return Measured(seconds, used, correct / len(run.test_y))
