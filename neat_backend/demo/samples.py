"""Sample images for the demo: scikit-learn's handwritten digits, four of them wanted, the rest not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

KNOWN = ("two", "four", "six", "nine")
INVALID = "Not one of these"
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SIDE = 96  # pixels; the originals have 8

LABEL_CONFIG = (
    '<View>\n  <Image name="image" value="$image" maxWidth="420px"/>\n'
    '  <Choices name="class" toName="image" choice="single" showInLine="true">\n'
    + "".join(f'    <Choice value="{name}"/>\n' for name in KNOWN)
    + f'    <Choice value="{INVALID}" invalid="true"/>\n  </Choices>\n</View>'
)


@dataclass(frozen=True)
class Sample:
    """One image file and what an annotator would choose for it."""

    file: str
    choice: str


def make_samples(folder: Path, count: int, seed: int = 0) -> list[Sample]:
    """Write `count` digits, drawn by the seed, as PNG files; the same files are found again later.

    What they show is in no file name: it is kept in `folder`/../truth.json, which nobody but the simulated
    annotator reads.
    """
    from sklearn.datasets import load_digits

    truth = folder.parent / "truth.json"
    if truth.exists():
        return [Sample(**item) for item in json.loads(truth.read_text())]
    digits = load_digits()
    chosen = np.random.default_rng(seed).permutation(len(digits.images))[:count]
    folder.mkdir(parents=True, exist_ok=True)
    samples = []
    for number, at in enumerate(chosen):
        pixels = (255 - digits.images[at] * 255 / 16).astype(np.uint8)  # [8, 8], ink on white
        file = f"{number:04d}.png"
        Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB").save(folder / file)
        name = _NAMES[int(digits.target[at])]
        samples.append(Sample(file, name if name in KNOWN else INVALID))
    truth.write_text(json.dumps([sample.__dict__ for sample in samples]))
    return samples
