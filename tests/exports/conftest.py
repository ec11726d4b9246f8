"""The labelled project that every test here exports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.exports.labelled import Labelled

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # datasets has nothing to ask for there


@pytest.fixture
def labelled(tmp_path: Path) -> Iterator[Labelled]:
    made = Labelled(tmp_path)
    yield made
    made.database.dispose()


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """A wide one, one turned by EXIF, two with EXIF or XMP that browsers ignore, a grey, a transparent, a large one."""
    rng = np.random.default_rng(1)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(rng.integers(0, 256, (40, 71, 3), np.uint8)).save(folder / "wide.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(rng.integers(0, 256, (90, 50, 3), np.uint8)).save(folder / "tall.jpg", exif=turned)
    tall = Image.fromarray(rng.integers(0, 256, (90, 50, 3), np.uint8))
    tall.save(folder / "tall.webp", exif=turned, lossless=True)
    tall.save(folder / "tall-xmp.jpg", xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6"/></x:xmpmeta>')
    Image.fromarray(rng.integers(0, 256, (33, 33), np.uint8)).save(folder / "grey.png")
    Image.fromarray(rng.integers(0, 256, (2100, 101, 3), np.uint8)).save(folder / "large.png")
    Image.fromarray(rng.integers(0, 256, (35, 30, 4), np.uint8)).save(folder / "transparent.png")
    return sorted(folder.iterdir())
