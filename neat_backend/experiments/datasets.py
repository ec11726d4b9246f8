"""Data sets by name, from a folder: images, labels and class names, training and test part apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from neat_backend.errors import SettingsError
from neat_backend.experiments import readers
from neat_backend.experiments.readers import Images, Labels

DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")
FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS_TEST_SHARE = 0.25
FOLDER_TEST_SHARE = 0.2
SPLIT_SEED = 0  # of data sets that come without a test part: theirs is the same in every experiment


@dataclass(frozen=True)
class Dataset:
    """images, test_images  uint8 [n, s, s, 3]; labels, test_labels  int64 [n], into `classes`"""

    name: str
    images: Images
    labels: Labels
    test_images: Images
    test_labels: Labels
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        for images, labels in ((self.images, self.labels), (self.test_images, self.test_labels)):
            if len(images) != len(labels) or (len(labels) and not 0 <= labels.min() <= labels.max() < self.n_classes):
                raise SettingsError(f"data set {self.name}: images and labels don't go together; is it cut off?")

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def fingerprint(self) -> str:
        """Of the pixels of both parts, in their order: what features depend on, besides the encoder."""
        digest = hashlib.sha256(repr((self.images.shape, self.test_images.shape)).encode())
        for images in (self.images, self.test_images):
            digest.update(np.ascontiguousarray(images).data)
        return digest.hexdigest()[:16]

    def subset(self, train: int | None, test: int | None, seed: int = SPLIT_SEED) -> Dataset:
        """At most `train` and `test` images, drawn by the seed and left in their order."""
        rows = _drawn(len(self.images), train, seed)
        test_rows = _drawn(len(self.test_images), test, seed)
        return replace(
            self,
            images=self.images[rows],
            labels=self.labels[rows],
            test_images=self.test_images[test_rows],
            test_labels=self.test_labels[test_rows],
        )


def _drawn(n: int, wanted: int | None, seed: int) -> Labels:
    if wanted is None or wanted >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:wanted])


def without_test(data: Dataset) -> Dataset:
    """The training part alone."""
    return replace(data, test_images=data.test_images[:0], test_labels=data.test_labels[:0])


def load(name: str, folder: Path | None = None, side: int = 64) -> Dataset:
    """The data set called `name`, from `folder`; `side` in pixels is that of image folders alone.

    Raises SettingsError for an unknown name and for missing or wrong files, with the place to get them.
    """
    if name not in LOADERS:
        raise SettingsError(f"--dataset {name!r}: must be one of {', '.join(LOADERS)}")
    try:
        return LOADERS[name](folder, side)
    except (ValueError, OSError) as error:
        raise SettingsError(f"data set {name}: {error}") from error


def _digits(folder: Path | None, side: int) -> Dataset:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = readers.in_colour((bunch.images * 255 / 16).astype(np.uint8))
    return _split("digits", images, bunch.target.astype(np.int64), tuple("0123456789"), DIGITS_TEST_SHARE)


def _split(name: str, images: Images, labels: Labels, classes: tuple[str, ...], test_share: float) -> Dataset:
    """A part of the images, drawn by a fixed seed, becomes the test part."""
    test = np.zeros(len(images), bool)
    test[np.random.default_rng(SPLIT_SEED).permutation(len(images))[: round(test_share * len(images))]] = True
    return Dataset(name, images[~test], labels[~test], images[test], labels[test], classes)


def _fashion_mnist(folder: Path | None, side: int) -> Dataset:
    place = folder or DEBIAN_FASHION
    parts = [
        _one_of(place, [f"{part}.gz", part, f"FashionMNIST/raw/{part}", f"FashionMNIST/raw/{part}.gz"])
        for part in (
            "train-images-idx3-ubyte",
            "train-labels-idx1-ubyte",
            "t10k-images-idx3-ubyte",
            "t10k-labels-idx1-ubyte",
        )
    ]
    if not all(parts):
        raise SettingsError(
            f"data set fashion-mnist: {place} lacks its four IDX files (train-images-idx3-ubyte.gz and so on); "
            "install Debian's dataset-fashion-mnist, or get them from github.com/zalandoresearch/fashion-mnist, "
            "and name their folder with --data"
        )
    images, labels, test_images, test_labels = (readers.read_idx(part) for part in parts if part)
    return Dataset(
        "fashion-mnist",
        readers.in_colour(images),
        labels.astype(np.int64),
        readers.in_colour(test_images),
        test_labels.astype(np.int64),
        FASHION,
    )


def _one_of(folder: Path, names: list[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _cifar(name: str, n_classes: int, folder: Path | None) -> Dataset:
    binary, python = f"{name}-binary", f"{name}-python"
    train_files = [f"data_batch_{i}" for i in range(1, 6)] if n_classes == 10 else ["train"]
    test_files = ["test_batch"] if n_classes == 10 else ["test"]
    unpacked = {10: ("cifar-10-batches-bin", "cifar-10-batches-py"), 100: ("cifar-100-binary", "cifar-100-python")}
    for place in [] if folder is None else [folder, *(folder / sub for sub in unpacked[n_classes])]:
        if all((place / f"{file}.bin").is_file() for file in (*train_files, *test_files)):
            read = [[place / f"{file}.bin" for file in files] for files in (train_files, test_files)]
            train, test = (readers.read_cifar_binary(paths, 1 if n_classes == 10 else 2) for paths in read)
        elif all((place / file).is_file() for file in (*train_files, *test_files)):
            read = [[place / file for file in files] for files in (train_files, test_files)]
            key = b"labels" if n_classes == 10 else b"fine_labels"
            train, test = (readers.read_cifar_python(paths, key) for paths in read)
        else:
            continue
        names = CIFAR10 if n_classes == 10 else _names(place / "fine_label_names.txt", n_classes)
        return Dataset(f"cifar{n_classes}", *train, *test, names)
    raise SettingsError(
        f"data set cifar{n_classes}: "
        + (f"{folder} does not hold it" if folder else "its folder is not named")
        + f"; get {binary}.tar.gz or {python}.tar.gz from www.cs.toronto.edu/~kriz/cifar.html, unpack it, "
        "and name the folder with --data"
    )


def _names(file: Path, n_classes: int) -> tuple[str, ...]:
    if file.is_file():
        names = tuple(line.strip() for line in file.read_text().splitlines() if line.strip())
        if len(names) == n_classes:
            return names
    return tuple(f"class {code}" for code in range(n_classes))


def _tiny_imagenet(folder: Path | None, side: int) -> Dataset:
    place = next((p for p in (folder, folder and folder / "tiny-imagenet-200") if p and (p / "train").is_dir()), None)
    if place is None or not (place / "val").is_dir():
        raise SettingsError(
            f"data set tiny-imagenet: {folder or 'its folder'} {'has no train/ and val/' if folder else 'is not named'}"
            "; get tiny-imagenet-200.zip from cs231n.stanford.edu, unpack it, and name the folder with --data"
        )
    images, labels, wnids = readers.read_class_folders(place / "train", 64)
    codes = {wnid: code for code, wnid in enumerate(wnids)}
    rows = list(readers.tiny_imagenet_rows(place))
    unknown = next((wnid for wnid, _ in rows if wnid not in codes), None)
    if unknown is not None:
        raise SettingsError(f"data set tiny-imagenet: {place}/val names class {unknown}, which train/ lacks")
    test_labels = np.array([codes[wnid] for wnid, _ in rows], np.int64)
    words = place / "words.txt"
    names = (
        dict(line.split("\t", 1) for line in words.read_text().splitlines() if "\t" in line) if words.exists() else {}
    )
    classes = tuple(names.get(wnid, wnid).split(",")[0] for wnid in wnids)
    return Dataset(
        "tiny-imagenet", images, labels, readers.read_pictures([path for _, path in rows], 64), test_labels, classes
    )


def _folder(folder: Path | None, side: int) -> Dataset:
    if folder is None or not folder.is_dir():
        raise SettingsError(
            f"data set folder: {folder or 'no folder'} is not there; name one with --data that holds train/CLASS/… and "
            "test/CLASS/…, or CLASS/… alone"
        )
    if not (folder / "train").is_dir():
        images, labels, names = readers.read_class_folders(folder, side)
        return _split(folder.name, images, labels, names, FOLDER_TEST_SHARE)
    images, labels, names = readers.read_class_folders(folder / "train", side)
    test = next((folder / part for part in ("test", "val") if (folder / part).is_dir()), None)
    if test is None:
        return _split(folder.name, images, labels, names, FOLDER_TEST_SHARE)
    test_images, test_labels, test_names = readers.read_class_folders(test, side)
    if test_names != names:
        raise SettingsError(f"data set folder: {folder}/train and {test} have different classes")
    return Dataset(folder.name, images, labels, test_images, test_labels, names)


LOADERS: dict[str, Callable[[Path | None, int], Dataset]] = {
    "cifar10": lambda folder, side: _cifar("cifar-10", 10, folder),
    "cifar100": lambda folder, side: _cifar("cifar-100", 100, folder),
    "tiny-imagenet": _tiny_imagenet,
    "fashion-mnist": _fashion_mnist,
    "digits": _digits,
    "folder": _folder,
}
