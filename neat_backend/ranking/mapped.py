"""Arrays that may be larger than memory, in unnamed memory-mapped files.

The kernel keeps the pages in use and writes the rest out. The file's space is freed when the process ends, however it
ends. Nothing here outlives the process: the store keeps what a pool is built from.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import StoreError


class MappedArray:
    """A growing array [n, …] in a file in `folder`; `values` is an ordinary array over it, until it grows again."""

    def __init__(self, start: NDArray[Any], folder: Path) -> None:
        """start: the first rows; they set shape and type. Raises StoreError where no file can be made."""
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix="neat-pool-")  # noqa: SIM115
        except OSError as error:
            raise StoreError(f"NEAT_SCRATCH_DIR: no file can be made in {folder}: {error.strerror or error}") from error
        self.values = start[:0]
        self.grow(len(start))
        self.values[:] = start

    def grow(self, n: int) -> None:
        """Grow to n rows, new ones zero. Raises StoreError when the disk has too little space."""
        size = n * self.values.dtype.itemsize * int(np.prod(self.values.shape[1:]))
        if not size:
            return
        try:
            # Allocate now: in a sparse file, a write to a full disk raises SIGBUS.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file.fileno(), 0, size)
            else:
                os.truncate(self._file.fileno(), size)
        except OSError as error:
            raise StoreError(
                f"NEAT_SCRATCH_DIR: {size / 1e9:.1f} GB for the features of a large pool can't be had in "
                f"{self._folder}: {error.strerror or error}"
            ) from error
        mapped = mmap.mmap(self._file.fileno(), size)
        if hasattr(mmap, "MADV_RANDOM"):
            mapped.madvise(mmap.MADV_RANDOM)  # a label reads few rows, far from each other
        shape = (n, *self.values.shape[1:])
        self.values = np.frombuffer(mapped, self.values.dtype).reshape(shape)
