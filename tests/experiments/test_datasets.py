from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from neat_backend.errors import SettingsError
from neat_backend.experiments import datasets, readers


def idx(values: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_idx(folder: Path, names: list[str], n: int) -> None:
    for name in names:
        values = np.arange(n * 4, dtype=np.uint8).reshape(n, 2, 2) if "images" in name else np.arange(n, dtype=np.uint8)
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(values)))


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (9, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_digits_are_split_the_same_way_every_time():
    one, again = datasets.load("digits"), datasets.load("digits")
    assert one.images.shape == (1348, 8, 8, 3)
    assert len(one.images) + len(one.test_images) == 1797
    assert one.fingerprint == again.fingerprint
    assert one.images.max() == 255


def test_a_subset_is_drawn_by_its_seed_and_smaller_ones_lie_within():
    whole = datasets.load("digits")
    part = whole.subset(100, 50)
    assert (len(part.images), len(part.test_images)) == (100, 50)
    assert part.fingerprint == whole.subset(100, 50).fingerprint != whole.subset(100, 50, seed=1).fingerprint
    assert whole.subset(9999, None).fingerprint == whole.fingerprint


def test_fashion_mnist_is_read_from_idx_files(tmp_path):
    names = ["images-idx3-ubyte", "labels-idx1-ubyte"]
    write_idx(tmp_path, [f"train-{name}" for name in names], 4)
    write_idx(tmp_path, [f"t10k-{name}" for name in names], 2)
    data = datasets.load("fashion-mnist", tmp_path)
    assert data.images.shape == (4, 2, 2, 3)
    assert data.images[1, 0, 1].tolist() == [5, 5, 5]
    assert data.test_labels.tolist() == [0, 1]
    assert data.classes[9] == "ankle boot"


def test_an_idx_file_that_is_cut_off_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(idx(np.zeros((2, 2, 2), np.uint8))[:-1])
    with pytest.raises(ValueError, match="cut off"):
        readers.read_idx(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="not an IDX file"):
        readers.read_idx(tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("fashion-mnist", "zalandoresearch"),
        ("cifar10", "cs.toronto.edu"),
        ("cifar100", "cs.toronto.edu"),
        ("tiny-imagenet", "cs231n.stanford.edu"),
        ("folder", "train/CLASS"),
    ],
)
def test_a_data_set_that_is_not_there_says_where_it_can_be_had(name, source, tmp_path):
    with pytest.raises(SettingsError, match=source):
        datasets.load(name, tmp_path / "nowhere")


def test_an_unknown_data_set_is_refused():
    with pytest.raises(SettingsError, match="cifar10, cifar100"):
        datasets.load("imagenet")


def cifar_rows(n: int) -> np.ndarray:
    """[n, 3072]: red is the row's number, green 100, blue 200."""
    rows = np.empty((n, 3, 1024), np.uint8)
    rows[:, 0], rows[:, 1], rows[:, 2] = np.arange(n)[:, None], 100, 200
    return rows.reshape(n, 3072)


def test_cifar_10_is_read_in_its_binary_form(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        rows = np.concatenate([np.array([[3], [9]], np.uint8), cifar_rows(2)], axis=1)
        (folder / name).write_bytes(rows.tobytes())
    data = datasets.load("cifar10", tmp_path)
    assert data.images.shape == (10, 32, 32, 3)
    assert data.images[1, 5, 5].tolist() == [1, 100, 200]
    assert data.labels[:2].tolist() == [3, 9]
    (folder / "test_batch.bin").write_bytes(b"123")
    with pytest.raises(SettingsError, match="no multiple of 3073"):
        datasets.load("cifar10", folder)


def test_cifar_100_is_read_in_both_forms_with_the_fine_labels(tmp_path):
    rows = cifar_rows(2)
    binary = np.concatenate([np.array([[1, 42], [2, 99]], np.uint8), rows], axis=1)
    for name in ("train", "test"):
        (tmp_path / f"{name}.bin").write_bytes(binary.tobytes())
    from_binary = datasets.load("cifar100", tmp_path)
    for name in ("train", "test"):
        (tmp_path / f"{name}.bin").unlink()
        batch = {b"data": rows, b"fine_labels": [42, 99], b"coarse_labels": [1, 2]}
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    from_python = datasets.load("cifar100", tmp_path)
    assert from_binary.labels.tolist() == from_python.labels.tolist() == [42, 99]
    assert from_binary.fingerprint == from_python.fingerprint


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


def test_a_pickle_that_would_run_something_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "test"):
        (tmp_path / name).write_bytes(pickle.dumps({b"data": Evil(), b"fine_labels": [1]}))
    with pytest.raises(SettingsError, match="has no place in a data set"):
        datasets.load("cifar100", tmp_path)
    assert not (tmp_path / "harm").exists()


def test_tiny_imagenet_takes_its_validation_part_to_test(tmp_path):
    for number, wnid in enumerate(("n01", "n02")):
        picture(tmp_path / "train" / wnid / "images" / f"{wnid}_0.JPEG", (number * 200, 0, 0), (64, 64))
    picture(tmp_path / "val" / "images" / "val_0.JPEG", (0, 0, 0), (64, 64))
    (tmp_path / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t62\t62\n")
    (tmp_path / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tnewt\n")
    data = datasets.load("tiny-imagenet", tmp_path)
    assert data.images.shape == (2, 64, 64, 3)
    assert data.test_labels.tolist() == [1]
    assert data.classes == ("goldfish", "newt")


def test_a_folder_of_classes_is_split_or_brings_its_test_part(tmp_path):
    for name in ("ant", "bee"):
        for number in range(10):
            picture(tmp_path / "all" / name / f"{number}.png", (number, 0, 0))
    data = datasets.load("folder", tmp_path / "all", side=8)
    assert data.images.shape == (16, 8, 8, 3)
    assert len(data.test_images) == 4
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            picture(tmp_path / "parts" / part / name / "0.png", (7, 8, 9))
    data = datasets.load("folder", tmp_path / "parts", side=8)
    assert (data.labels.tolist(), data.test_labels.tolist()) == ([0, 1], [0, 1])
    assert data.images[0, 0, 0].tolist() == [7, 8, 9]
    picture(tmp_path / "parts" / "test" / "wasp" / "0.png", (1, 1, 1))
    with pytest.raises(SettingsError, match="different classes"):
        datasets.load("folder", tmp_path / "parts", side=8)


def test_a_broken_picture_is_named(tmp_path):
    for name in ("ant", "bee"):
        picture(tmp_path / name / "0.png", (1, 2, 3))
    (tmp_path / "bee" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(SettingsError, match=r"bee/1\.png"):
        datasets.load("folder", tmp_path)
