"""Data for benchmarks: synthetic features and files, and real pictures where labels matter."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from neat_backend.experiments.datasets import Dataset

Pictures = tuple[NDArray[np.uint8], NDArray[np.int64]]
CLUSTERS = 100
N_CLASSES = 10  # of each set of real pictures
PATTERN = 8  # pixels of what the made-up pictures of a class have in common
TEST_SHARE = 0.2
NOISE = 0.1  # length of what is added to a feature of length 1
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # of Debian's package dataset-fashion-mnist


def random_features(rng: np.random.Generator, n: int, dim: int) -> NDArray[np.float32]:
    """Features of 100 loose clusters, [n, dim], on the grid."""
    features = np.empty((n, dim), np.float32)
    start = 0
    for chunk in feature_chunks(rng, n, dim):
        features[start : start + len(chunk)] = chunk
        start += len(chunk)
    return features


def feature_chunks(rng: np.random.Generator, n: int, dim: int, rows: int = 50_000) -> Iterator[NDArray[np.float32]]:
    """The same, at most `rows` at a time."""
    from neat_backend.models.grid import to_grid

    centres = rng.normal(size=(CLUSTERS, dim)).astype(np.float32)
    for start in range(0, n, rows):
        size = min(rows, n - start)
        yield to_grid(centres[rng.integers(CLUSTERS, size=size)] + rng.normal(size=(size, dim)).astype(np.float32))


def features_of(path: Path) -> NDArray[np.float32]:
    """The features of a file, [n, dim], on the grid. Raises BadParameter for anything else."""
    import typer  # missing where only `benchmarks.gpu` is run

    from neat_backend.models.grid import to_grid

    try:
        return to_grid(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"--features {path}: {error}") from error


def repeated(
    rng: np.random.Generator, features: NDArray[np.float32], n: int, rows: int
) -> Iterator[NDArray[np.float32]]:
    """n features near those given, [at most `rows`, dim] at a time: drawn with replacement, noise of NOISE added."""
    from neat_backend.models.grid import to_grid

    for start in range(0, n, rows):
        drawn = features[rng.integers(len(features), size=min(rows, n - start))]
        noise = rng.standard_normal(drawn.shape, np.float32) * np.float32(NOISE / drawn.shape[1] ** 0.5)
        yield to_grid(drawn + noise)


def make_files(folder: Path, n: int, side: int, suffix: str, rng: np.random.Generator) -> list[Path]:
    """`n` different pictures of `side` × `side` pixels, as photographs are: smooth shapes with some grain."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
        grain = rng.integers(-8, 9, smooth.shape, dtype=np.int16)
        files.append(folder / f"{number:06d}.{suffix}")
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(files[-1])
    return files


def real_pictures(
    name: str, n: int, side: int, seed: int, *, folder: Path | None = None, classes: int = 10
) -> Pictures:
    """Pictures [n, side, side, 3] and labels [n] of so many of the ten classes, all drawn by the seed.

    Labels are in 0..classes-1. `folder` is that of cifar10. Raises ValueError when there are too few.
    """
    pictures, labels = _cifar(folder) if name == "cifar10" else _fashion() if name == "fashion-mnist" else _digits()
    rng = np.random.default_rng(seed)
    if classes < N_CLASSES:
        kept = np.sort(rng.permutation(N_CLASSES)[:classes])
        pictures, labels = pictures[np.isin(labels, kept)], labels[np.isin(labels, kept)]
        labels = np.searchsorted(kept, labels)
    if n > len(labels):
        raise ValueError(f"{name} has {len(labels)} pictures, fewer than {n}")
    chosen = rng.permutation(len(labels))[:n]
    return _resized(pictures[chosen], side), labels[chosen]


def _cifar(folder: Path | None) -> Pictures:
    from neat_backend.experiments.datasets import load

    found = load("cifar10", folder)
    return found.images, found.labels


def _resized(pictures: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Pictures [n, s, s] or [n, s, s, 3] as RGB of another side."""
    from PIL import Image

    bicubic = Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side), bicubic).convert("RGB")) for p in pictures])


def _digits() -> Pictures:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images * (255 / 16)).astype(np.uint8), digits.target.astype(np.int64)


def _fashion() -> Pictures:
    pictures = gzip.decompress((FASHION_MNIST / "train-images-idx3-ubyte.gz").read_bytes())
    labels = gzip.decompress((FASHION_MNIST / "train-labels-idx1-ubyte.gz").read_bytes())
    return (
        np.frombuffer(pictures, np.uint8, offset=16).reshape(-1, 28, 28),
        np.frombuffer(labels, np.uint8, offset=8).astype(np.int64),
    )


def made_up(n: int, side: int) -> Dataset:
    """Pictures of ten classes, each with a pattern of its own that is shifted, dimmed and full of grain."""
    from neat_backend.experiments.datasets import Dataset

    rng = np.random.default_rng(0)
    times = -(-side // PATTERN)
    patterns = rng.integers(0, 256, (N_CLASSES, PATTERN, PATTERN, 3)).repeat(times, axis=1).repeat(times, axis=2)

    def some(count: int) -> tuple[Any, Any]:
        labels = np.arange(count) % N_CLASSES
        pictures = np.empty((count, side, side, 3), np.uint8)
        for i, label in enumerate(labels):
            moved = np.roll(patterns[label, :side, :side], rng.integers(-side // 8, side // 8 + 1, 2), axis=(0, 1))
            grain = rng.normal(0, 40, (side, side, 3))
            pictures[i] = (moved * rng.uniform(0.5, 1) + grain).clip(0, 255)
        return pictures, labels.astype(np.int64)

    return Dataset("made up", *some(n), *some(int(n * TEST_SHARE)), tuple(str(c) for c in range(N_CLASSES)))
