"""Sample pictures for the demo: emoji, of which three kinds are wanted, or handwritten digits, four of them wanted."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from neat_backend.labelstudio.recommended import NONE_OF_THESE

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGIT_SIDE = 96  # pixels; the originals have 8

Draw = Callable[[Sequence[int]], Iterator[tuple[Image.Image, str]]]


@dataclass(frozen=True)
class Pictures:
    """A set of pictures that the demo can show."""

    title: str  # of the project
    classes: tuple[str, ...]  # the wanted ones
    total: int  # how many there are
    usual: int  # how many are shown unless a number is given
    draw: Draw  # numbers below `total` → the picture, and what an annotator would choose for it


@dataclass(frozen=True)
class Sample:
    """One image file and what an annotator would choose for it."""

    file: str
    choice: str


def make_samples(pictures: Pictures, folder: Path, count: int, seed: int = 0) -> list[Sample]:
    """Write `count` pictures, drawn by the seed, as PNG files; the same files are found again later.

    File names don't reveal the classes: these are in `folder`/../truth.json, which only the simulated annotator reads.
    """
    truth = folder.parent / "truth.json"
    if truth.exists():
        return [Sample(**item) for item in json.loads(truth.read_text())]
    chosen = np.random.default_rng(seed).permutation(pictures.total)[:count]
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number, (picture, choice) in enumerate(pictures.draw(chosen.tolist())):
        file = f"{number:04d}.png"
        picture.save(folder / file)
        samples.append(Sample(file, choice if choice in pictures.classes else NONE_OF_THESE))
    truth.write_text(json.dumps([asdict(sample) for sample in samples]))
    return samples


def _emoji(numbers: Sequence[int]) -> Iterator[tuple[Image.Image, str]]:
    packed = resources.files(__package__) / "pictures" / "openmoji.zip"
    with packed.open("rb") as file, zipfile.ZipFile(file) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("pictures.csv").decode())))
        for number in numbers:
            with Image.open(io.BytesIO(archive.read(rows[number]["file"]))) as picture:
                yield picture.convert("RGB"), rows[number]["choice"]


def _digits(numbers: Sequence[int]) -> Iterator[tuple[Image.Image, str]]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number in numbers:
        pixels = (255 - digits.images[number] * 255 / 16).astype(np.uint8)  # [8, 8], ink on white
        large = Image.fromarray(pixels).resize((DIGIT_SIDE, DIGIT_SIDE), Image.Resampling.BICUBIC)
        yield large.convert("RGB"), DIGITS[int(digits.target[number])]


EMOJI, DIGIT = "emoji", "digits"
PICTURES = {
    EMOJI: Pictures(
        "NEAT demo: find animals, persons and vehicles", ("animal", "person", "vehicle"), 1074, 1074, _emoji
    ),
    DIGIT: Pictures("NEAT demo: find 2, 4, 6 and 9", ("two", "four", "six", "nine"), 1797, 600, _digits),
}
