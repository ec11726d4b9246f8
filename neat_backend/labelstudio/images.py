"""Fetching and decoding the images of tasks.

Every failure is an ImageError, in words for the person who can fix it.
"""

from __future__ import annotations

import base64
import functools
import io
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol
from urllib.parse import unquote_to_bytes

import numpy as np
import numpy.typing as npt
import pi_heif
from PIL import IcoImagePlugin, Image

from neat_backend.errors import ImageError
from neat_backend.labelstudio.image_hosts import shown

log = logging.getLogger(__name__)

# Formats that Pillow reads by itself, and HEIF; some of its others start programs (EPS) or only know a header. TGA has
# no sign of its own at its beginning, so it comes last.
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "HEIF", "ICO", "CUR", "TGA")
_RETRY_AFTER_SECONDS = (0.3, 1.0)
# A progressive JPEG has some ten scans; each is a pass over the whole picture that a few bytes can ask for.
MOST_SCANS = 100
_PNG, _PNG_DEPTH = b"\x89PNG", 24  # signature, offset of the bit depth
_ICON = b"\0\0\1\0"
_ORIENTATION = 0x0112  # EXIF's tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Signatures of formats that people may have and that are not supported.
_UNSUPPORTED = (
    (rb"8BPS", "a Photoshop file"),
    (rb"qoif", "a QOI image"),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image"),
    (rb"II\xbc\x01", "a JPEG XR image"),
    (rb"%PDF", "a PDF document"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript drawing"),
    (rb".{128}DICM", "a DICOM image"),
    (rb".{4}ftyp", "a video, or an image of a kind like HEIC"),
    (rb"\x1a\x45\xdf\xa3|RIFF.{4}AVI ", "a video"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf", "an archive"),
)
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # no stuffed zero, no restart inside a scan


class _Client(Protocol):
    """The part of LabelStudioClient that is used here."""

    def fetch_bytes(self, path_or_url: str, limit_bytes: int, timeout_seconds: float | None = None) -> bytes: ...


class ImageFetcher:
    """Fetches the images of tasks. Safe to share between threads; the connections are the client's."""

    def __init__(
        self,
        client: _Client,
        max_bytes: int,
        max_pixels: int,
        timeout_seconds: float = 30,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._max_bytes = max_bytes
        self._max_pixels = max_pixels
        self._timeout_seconds = timeout_seconds
        self._sleep = sleep

    def __enter__(self) -> ImageFetcher:
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing: the client keeps the connections."""

    def load(self, task: int, ref: str | None) -> Image.Image:
        """Fetch and decode. Raises ImageError."""
        return decode(self.fetch(task, ref), self._max_pixels)

    def fetch(self, task: int, ref: str | None) -> bytes:
        """The file that a task's image key points to. Raises ImageError.

        ref: a path on Label Studio (uploads, local files), an http(s) URL, a data: URL, or the URL of
            a cloud storage (s3, gs, azure-blob, …), which Label Studio resolves with its own credentials.
        """
        if ref is None:
            raise ImageError("the task has no image: its data lacks the key that the label config's Image names")
        if not ref.strip():
            raise ImageError("the task has no image: what the label config's Image names is empty, or no text")
        ref = ref.strip()
        scheme = _scheme(ref)
        if scheme == "data":
            return self._inline(ref)
        if scheme in ("http", "https") or (ref.startswith("/") and not ref.startswith("//")):
            return self._download(ref)
        if scheme in ("", "file", "ftp", "javascript", "blob", "about"):
            raise ImageError(
                f"the image's address can't be used: {shown(ref)!r}; it must be a URL, an upload, or a file of a "
                "storage that is connected to the project in Label Studio"
            )
        encoded = base64.urlsafe_b64encode(ref.encode()).decode()
        try:
            return self._download(f"/tasks/{task}/resolve/?fileuri={encoded}")
        except ImageError as error:
            if "answered 404" in str(error):
                raise ImageError(
                    f"Label Studio can't resolve {shown(ref)!r}; connect that {scheme} storage to the project, "
                    "and check its credentials"
                ) from None
            raise

    def _download(self, address: str) -> bytes:
        for wait_seconds in _RETRY_AFTER_SECONDS:
            try:
                return self._client.fetch_bytes(address, self._max_bytes, self._timeout_seconds)
            except ImageError as error:
                if not error.transient:
                    raise
                log.info("%s: trying again in %.1f s", error, wait_seconds)
            self._sleep(wait_seconds)
        return self._client.fetch_bytes(address, self._max_bytes, self._timeout_seconds)

    def _inline(self, ref: str) -> bytes:
        """The file in a data: URL, in every form that browsers accept, with any media type."""
        head, comma, body = ref.partition("#")[0].partition(",")
        if not comma:
            raise ImageError("the task's data: URL has no data: there is no comma in it")
        too_large = ImageError(f"the image in the task's data is larger than {self._max_bytes:,} bytes")
        if len(body) > 4 * self._max_bytes + 100:  # four characters or more carry three bytes
            raise too_large
        data = unquote_to_bytes(body)
        if re.search(r";\s*base64\s*$", head, re.IGNORECASE):
            data = _from_base64(data)
        if len(data) > self._max_bytes:
            raise too_large
        return data


def decode(data: bytes, max_pixels: int) -> Image.Image:
    """An image file as RGB, upright, its transparent parts white. Raises ImageError."""
    if not data:
        raise ImageError("the image file is empty")
    try:
        if data.startswith(_ICON):  # its header may name a wrong size, and opening decodes it
            _check_size(_size_inside_icon(data), max_pixels)
        image = opened(io.BytesIO(data))
        _check_size(image.size, max_pixels)
        if image.format in ("JPEG", "MPO") and _scans(data) > MOST_SCANS:
            raise ImageError(f"the JPEG has more than {MOST_SCANS} scans, which take too long to decode")
        image.load()
        _check_size(image.size, max_pixels)
        return _rgb(_upright(image), data)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        # Pillow's own limit, twice 89 million, applies in addition to NEAT's.
        fixed = 2 * (Image.MAX_IMAGE_PIXELS or max_pixels)
        why = "NEAT_MAX_IMAGE_PIXELS" if max_pixels <= fixed else "a fixed limit; NEAT_MAX_IMAGE_PIXELS can't raise it"
        raise ImageError(f"the image has more than {min(max_pixels, fixed):,} pixels ({why})") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"the file is not an image that can be read ({_looks_like(data)})") from None
    except Exception as error:  # decoders of broken files raise almost anything
        raise ImageError(f"the image file is damaged or cut short ({error})") from error


def thumbnail(image: Image.Image, side: int) -> npt.NDArray[np.uint8]:
    """The central square of an RGB image at `side` × `side` pixels: uint8 [side, side, 3]."""
    square = min(image.size)
    left, top = (image.width - square) // 2, (image.height - square) // 2
    middle = image.crop((left, top, left + square, top + square))
    small = middle.resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(small, dtype=np.uint8)


def opened(file: Path | IO[bytes]) -> Image.Image:
    """An image of a supported format, with its header read but not its pixels."""
    return Image.open(file, formats=_known())


@functools.cache
def _known() -> list[str]:
    pi_heif.register_heif_opener(thumbnails=False)
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]  # Pillow raises for a format that it was built without


def _from_base64(text: bytes) -> bytes:
    """Decode as browsers do: white space is ignored, and padding may be missing."""
    packed = re.sub(rb"[\t\n\f\r ]", b"", text)
    if len(packed) % 4 == 0:
        packed = re.sub(rb"={1,2}$", b"", packed)
    try:
        if b"=" in packed:
            raise ValueError("padding that is too much")
        return base64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
    except ValueError:
        raise ImageError("the image in the task's data is not valid base64") from None


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageError(f"the image has {width} × {height} pixels, more than {max_pixels:,} (NEAT_MAX_IMAGE_PIXELS)")


def _size_inside_icon(data: bytes) -> tuple[int, int]:
    """The size of an icon's largest picture, which is the one used; without decoding it."""
    offset = IcoImagePlugin.IcoFile(io.BytesIO(data)).entry[0].offset
    image = Image.open(io.BytesIO(data[offset:]), formats=["PNG", "DIB"])
    return image.width, image.height // 2 if image.format == "DIB" else image.height  # below a DIB lies its mask


def _scans(data: bytes) -> int:
    """How many scans a JPEG has, by its markers up to the first end of an image."""
    found, at = 0, 2
    while (marker := _JPEG_MARKER.search(data, at)) is not None:
        kind, at = data[marker.end() - 1], marker.end()
        if kind == 0xD9:
            break
        found += kind == 0xDA
        if kind not in (0x01, 0xD8):  # those have no length
            at += int.from_bytes(data[at : at + 2], "big")
    return found


def _upright(image: Image.Image) -> Image.Image:
    """The image rotated as browsers do: by the EXIF block of a JPEG or PNG and the box of an AVIF (Pillow gives it as
    EXIF), not by XMP or a WebP's EXIF. HEIF and TIFF are rotated at decoding.
    """
    if image.format not in ("JPEG", "MPO", "PNG", "AVIF"):
        return image
    try:
        exif = Image.Exif()
        exif.load(image.info["exif"])
        return image.transpose(_UPRIGHT[exif[_ORIENTATION]])
    except Exception:  # none, or a damaged one; the pixels may be intact
        return image


def _rgb(image: Image.Image, file: bytes) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        grey = _to_8_bit(values)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("L", "RGB") and file.startswith(_PNG) and "transparency" in image.info:
        image.info["transparency"] = _in_8_bit(image.info["transparency"], file[_PNG_DEPTH])
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _in_8_bit(value: int | tuple[int, ...], bits: int) -> int | tuple[int, ...]:
    """A PNG's transparent value, which Pillow leaves at the file's own depth, as the pixels have it."""
    if isinstance(value, tuple):
        return tuple(each >> max(bits - 8, 0) for each in value)
    return value * 255 // (2**bits - 1)


def _to_8_bit(values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
    """Deep greyscale values [h, w] as bytes. A 12-bit picture in 16-bit numbers comes out dark but whole."""
    numbers = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    top, bottom = float(numbers.max(initial=0)), float(numbers.min(initial=0))
    if values.dtype.kind == "f" and bottom >= 0 and top <= 1:
        numbers = numbers * 255
    elif bottom < 0 or top > 65535:
        numbers = (numbers - bottom) * (255 / max(top - bottom, 1e-12))
    elif top > 255 or values.dtype == np.uint16:
        numbers = numbers / 257
    return np.rint(numbers).clip(0, 255).astype(np.uint8)


def _scheme(ref: str) -> str:
    """The scheme of a URL in lower case, "" where there is none."""
    match = re.match(r"(data|javascript|blob|about|file)(?=:)|([a-z][a-z0-9+._-]*)(?=://)", ref, re.IGNORECASE)
    return match[0].lower() if match else ""


def _looks_like(data: bytes) -> str:
    start = data[:200].lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is a web page: the address may need a login"
    if b"<svg" in data[:1000].lower():
        return "it is an SVG drawing, which is not supported"
    for pattern, what in _UNSUPPORTED:
        if re.match(pattern, data, re.DOTALL):
            return f"it is {what}, which is not supported"
    return "it is cut short, or of an unknown format"
