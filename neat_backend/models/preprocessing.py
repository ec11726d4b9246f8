"""Converting pictures to what an encoder's network takes; without PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Part of every key: raise it when features change although name, weights and preprocessing did not.
FEATURES_VERSION = 3

# A large picture is first averaged down to this many times the size wanted, as Pillow's own thumbnails are:
# 512 px to 128 px takes a third of the time.
REDUCING_GAP = 2.0


@dataclass(frozen=True)
class Preprocessing:
    """Converting a picture of any shape to side × side pixels, and their normalisation."""

    side: int  # pixels of the square that the network sees
    resize: int  # pixels: the shorter edge is scaled to this before the centre is cut out
    mean: tuple[float, ...]  # of channels in [0, 1]
    std: tuple[float, ...]
    bicubic: bool = True  # else bilinear
    squash: bool = False  # resize to the square, cutting nothing off

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """One picture of any size -> uint8 [3, side, side]; nothing about it is random."""
        return np.array(self.apply(image)).transpose(2, 0, 1)

    def apply(self, image: Image.Image) -> Image.Image:
        """The side × side RGB part of `image` that gets encoded; the same every time."""
        image = image if image.mode == "RGB" else image.convert("RGB")  # which copies
        resample = Image.Resampling.BICUBIC if self.bicubic else Image.Resampling.BILINEAR
        if self.squash:
            return image.resize((self.side, self.side), resample, reducing_gap=REDUCING_GAP)
        image = _without_far_ends(image)
        width, height = image.size
        if width <= height:
            size = (self.resize, int(self.resize * height / width))
        else:
            size = (int(self.resize * width / height), self.resize)
        image = image.resize(size, resample, reducing_gap=REDUCING_GAP)
        left, top = round((size[0] - self.side) / 2), round((size[1] - self.side) / 2)
        return image.crop((left, top, left + self.side, top + self.side))


def _without_far_ends(image: Image.Image) -> Image.Image:
    """The middle of a very long image: scaled up whole, a 1 × 100000 strip would take gigabytes."""
    width, height = image.size
    longest = 4 * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, min(width, left + longest), min(height, top + longest)))
