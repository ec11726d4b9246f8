"""Files of arrays, written atomically and read with checksums; damage and refused access raise different errors."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import secrets
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

import numpy as np

from neat_backend.errors import StoreError

BLOCK_BYTES = 8 * 2**20  # read at a time


# Numbers and text; temporary_npz refuses objects, and nothing here has fields.
_HEADER = re.compile(r"\{'descr': '([<>|]?\w\d*)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \} *\n")


class Corrupt(Exception):
    """A damaged file."""


@contextmanager
def temporary_npz(folder: Path, arrays: Mapping[str, np.ndarray]) -> Iterator[Path]:
    """A complete .npz on disk under a temporary name; deleted afterwards unless renamed."""
    temporary = folder / f".tmp-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        with open(temporary, "xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for name, array in arrays.items():
                    array = np.asarray(array)
                    if array.dtype.hasobject:
                        raise StoreError(f"{name}: only arrays of numbers and text can be kept")
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


class NpzFile:
    """An open .npz, checked against the archive's CRC-32."""

    def __init__(self, file: BufferedReader) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        with damage():
            self._members = {info.filename.removesuffix(".npy"): info for info in zipfile.ZipFile(file).infolist()}
        self.names = list(self._members)

    def layout(self, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and dtype."""
        with damage():
            shape, _, dtype, _ = self._start(name)
            return shape, dtype

    def array(self, name: str) -> np.ndarray:
        with damage():
            shape, fortran, dtype, crc = self._start(name)
            flat = np.empty(math.prod(shape), dtype)
            view = flat.view(np.uint8) if flat.nbytes else np.empty(0, np.uint8)
            for start in range(0, flat.nbytes, BLOCK_BYTES):
                piece = memoryview(view[start : start + BLOCK_BYTES].data)
                if self._file.readinto(piece) != len(piece):
                    raise Corrupt("it ends early")
                crc = zlib.crc32(piece, crc)
            self._check(name, crc)
            return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)

    def row(self, name: str, at: int) -> np.ndarray:
        """One row, unchecked."""
        return self.rows(name, np.array([at]))[0]

    def rows(self, name: str, at: np.ndarray) -> np.ndarray:
        """Some rows, unchecked."""
        with damage():
            shape, fortran, dtype, _ = self._start(name)
            row_bytes = dtype.itemsize * math.prod(shape[1:])
            start = self._file.tell()
            found = bytearray()
            for row in at.tolist():
                self._file.seek(start + row * row_bytes)
                data = self._file.read(row_bytes)
                if fortran or len(data) != row_bytes:
                    raise Corrupt(f"{name} has no row {row}")
                found += data
            return np.frombuffer(bytes(found), dtype).reshape(len(at), *shape[1:])

    def blocks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) a few megabytes at a time. Damage shows only at the end."""
        with damage():
            shape, fortran, dtype, crc = self._start(name)
            if fortran:
                raise Corrupt(f"{name} is not in rows")
            row_bytes = dtype.itemsize * math.prod(shape[1:])
            step = max(1, BLOCK_BYTES // max(1, row_bytes))
        for first in range(0, shape[0], step):
            count = min(step, shape[0] - first)
            with damage():
                data = self._file.read(count * row_bytes)
                if len(data) != count * row_bytes:
                    raise Corrupt("it ends early")
                crc = zlib.crc32(data, crc)
                block = np.frombuffer(data, dtype).reshape(count, *shape[1:])
            yield first, block
        self._check(name, crc)

    def _start(self, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
        """Seek to the first byte of the data. Returns shape, Fortran order, dtype, CRC of the header."""
        info = self._members.get(name)
        if info is None:
            raise Corrupt(f"it has no {name}")
        self._file.seek(info.header_offset)
        local = self._file.read(30)
        name_bytes, extra_bytes = struct.unpack("<HH", local[26:30])
        if local[:4] != b"PK\3\4" or self._file.read(name_bytes) != info.orig_filename.encode():
            raise Corrupt("its zip headers don't agree")
        start = info.header_offset + 30 + name_bytes + extra_bytes
        self._file.seek(start)
        shape, fortran, dtype = _header(self._file)
        header_bytes = self._file.tell() - start
        size = header_bytes + dtype.itemsize * math.prod(shape)
        if dtype.hasobject or info.file_size != size or start + size > self._size:
            raise Corrupt("its headers don't agree")
        self._file.seek(start)
        return shape, fortran, dtype, zlib.crc32(self._file.read(header_bytes))

    def _check(self, name: str, crc: int) -> None:
        if crc != self._members[name].CRC:
            raise Corrupt(f"the checksum of {name} is wrong")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and dtype of an array that `temporary_npz` wrote.

    NumPy has Python's parser read this, which fails in several threads at once before Python 3.11.8 (gh-106905).
    """
    version = np.lib.format.read_magic(file)
    (length,) = struct.unpack("<H", file.read(2)) if version == (1, 0) else struct.unpack("<I", file.read(4))
    found = _HEADER.fullmatch(file.read(length).decode())
    if found is None:
        raise Corrupt("the header of an array can't be read")
    dtype, order, shape = found.groups()
    return tuple(int(size) for size in shape.split(",") if size.strip()), order == "True", np.dtype(dtype)


@contextmanager
def opened(path: Path) -> Iterator[NpzFile]:
    with foreign_errors(path), open(path, "rb") as file:
        yield NpzFile(file)


@contextmanager
def damage() -> Iterator[None]:
    """Raise Corrupt for any error of the parsers, but not for errors of the disk."""
    try:
        yield
    except (zipfile.BadZipFile, struct.error, ValueError, TypeError, KeyError, IndexError, EOFError) as error:
        raise Corrupt(str(error) or type(error).__name__) from error
    except (NotImplementedError, OverflowError, RuntimeError) as error:
        raise Corrupt(str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek to where no file can be
            raise
        raise Corrupt("its offsets are wrong") from error


@contextmanager
def foreign_errors(path: Path) -> Iterator[None]:
    """Translate OSError to StoreError. FileNotFoundError passes: it has a meaning here."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"The data folder can't be used: {path}: {error.strerror or error}") from error


def make_folder(path: Path) -> None:
    """mkdir -p, synced to disk."""
    if path.is_dir():
        return
    make_folder(path.parent)
    with foreign_errors(path):
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def digested(file: IO[bytes], write: Callable[[bytes], object] | None = None) -> tuple[int, str]:
    """Read a file to its end in blocks and pass each to `write`; returns its size in bytes and SHA-256."""
    digest, size = hashlib.sha256(), 0
    while block := file.read(BLOCK_BYTES):
        if write is not None:
            write(block)
        digest.update(block)
        size += len(block)
    return size, digest.hexdigest()


def sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
