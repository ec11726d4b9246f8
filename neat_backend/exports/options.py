"""The options of an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neat_backend.exports.pictures import Fetch
from neat_backend.exports.rows import Wanted

SPLIT = (0.8, 0.1, 0.1)  # train, val, test


@dataclass(frozen=True)
class Options:
    """The options of `exports.export`.

    features: npy or parquet, with a table: in a file beside it, or in its own column where both are parquet.
    images: of folders, copy (fetched), link (to files below image_root), or for `folder` manifest (no images).
    split, seed: shares of train, val and test; the same labels, split and seed give the same bytes.
    fetch: how images are read; None = from Label Studio, so many `downloads` at a time.
    skip_missing: images that can't be read are left out, and listed in `skipped.csv`.
    raw: texts of CSV files stay as they are, also those that a spreadsheet would run as a formula.
    """

    format: str = "csv"
    wanted: Wanted = Wanted()
    overwrite: bool = False
    features: str = ""
    images: str = "copy"
    image_root: Path | None = None
    split: Sequence[float] = SPLIT
    seed: int = 0
    fetch: Fetch | None = None
    downloads: int | None = None
    skip_missing: bool = False
    raw: bool = False
