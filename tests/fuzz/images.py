"""Image files: damaged, cut short, lying about their size, or made to unpack without end."""

from __future__ import annotations

import base64
import io
import resource
import struct
import time
import zlib
from collections.abc import Iterator
from random import Random

import numpy as np
from PIL import Image

from neat_backend.errors import ImageError
from neat_backend.labelstudio.images import decode, thumbnail
from tests.fuzz.tally import Tally

AT_LEAST = 800  # mutations, however slow the machine is
MOST_PIXELS = 1_000_000
MOST_GROWTH_MIB = 100  # of this process, in all: far less than any of the bombs unpacks to
_WRITTEN = {
    "JPEG": ({}, {"progressive": True}, {"quality": 5, "comment": b"x" * 300}),
    "PNG": ({}, {"optimize": True}),
    "WEBP": ({}, {"lossless": True}),
    "GIF": ({},),
    "BMP": ({},),
    "TIFF": ({}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "packbits"}),
    "JPEG2000": ({},),
    "PPM": ({},),
    "TGA": ({}, {"rle": True}),
    "ICO": ({},),
    "AVIF": ({},),
}
# 64 × 48, the left half red and the right one blue; what reads such files here can't write them.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA"
    "AAAERAAAEAAQAAAAABoQABAAAAAAAAACQAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/WlwcnAA"
    "AADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AAAAMAkA"
    "AAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAA"
    "AAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAC"
    "xtZGF0AAAAICgBrxmA70mlv//mst/1Ni/5Jshf/6xod9OkH/Ec421v"
)
_MODES = ("RGB", "L", "RGBA", "P", "1", "I;16", "LA", "CMYK", "F", "I")


def good() -> list[bytes]:
    """Small files of every format and mode that can be written here."""
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8)
    picture, found = Image.fromarray(pixels), []
    for name, ways in _WRITTEN.items():
        for mode in _MODES:
            for options in ways:
                file = io.BytesIO()
                try:
                    one = Image.new("I;16", picture.size, 40_000) if mode == "I;16" else picture.convert(mode)
                    one.save(file, name, **options)
                except (KeyError, OSError, ValueError):  # no such mode in this format
                    continue
                found.append(file.getvalue())
    frames = [picture.rotate(90 * n) for n in range(3)]
    for name in ("GIF", "TIFF", "WEBP", "PNG"):
        file = io.BytesIO()
        frames[0].save(file, name, save_all=True, append_images=frames[1:])
        found.append(file.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture.save(file, "JPEG", exif=exif)
    return [*found, file.getvalue(), HEIC]


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that claim or unpack to very much; each must be refused."""
    for side in (20_000, 60_000, 2**31 - 1):
        yield f"a PNG of {side} × {side}", png(side, side)
        yield f"a PPM of {side} × {side}", b"P6 %d %d 255\n" % (side, side) + b"\0" * 1000
        yield f"a BMP of {side} × {side}", _bmp(side)
    yield "a GIF of 65535 × 65535", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + _gif_frame(65535)
    yield "an ICO with a PNG of 12,000 × 12,000 in it", ico_around(png(12_000, 12_000))
    yield "a JPEG of 65000 × 65000", _resized_jpeg(65_000)
    yield "a JPEG with 20,000 scans", many_scans(20_000)
    yield "a PNG with a text of 100 MB", png(4, 4, (b"zTXt", b"a\0\0" + zlib.compress(b"x" * 100_000_000)))
    yield "a PNG with a profile of 300 MB", png(2000, 2000, (b"iCCP", b"a\0\0" + zlib.compress(b"x" * 300_000_000)))
    tiff = io.BytesIO()
    Image.new("1", (16, 16)).save(tiff, "TIFF")
    for size in (50_000, 2**31):
        yield (
            f"a TIFF of {size} × {size}",
            tiff.getvalue()
            .replace(struct.pack("<HHII", 256, 4, 1, 16), struct.pack("<HHII", 256, 4, 1, size))
            .replace(struct.pack("<HHII", 257, 4, 1, 16), struct.pack("<HHII", 257, 4, 1, size)),
        )


def png(width: int, height: int, *more: tuple[bytes, bytes]) -> bytes:
    """A grey PNG whose pixels are all zero, as far as zlib packs them into some 100 kB."""
    packer = zlib.compressobj(9)
    rows = min(height, 400_000_000 // (width + 1)) if width < 100_000 else 0
    packed = b"".join(packer.compress(b"\0" * (width + 1)) for _ in range(rows)) + packer.flush()
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        *more,
        (b"IDAT", packed),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def ico_around(image: bytes) -> bytes:
    """An icon that says 16 × 16 of whatever lies in it."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(image), 22) + image


def many_scans(count: int, side: int = 900) -> bytes:
    """A progressive JPEG whose last scan comes again and again: each is a pass over the whole picture."""
    file = io.BytesIO()
    Image.effect_noise((side, side), 50).save(file, "JPEG", progressive=True, quality=10)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    scan = data[last : last + 2 + struct.unpack(">H", data[last + 2 : last + 4])[0]]  # its header, without any data
    return data[:-2] + scan * count + b"\xff\xd9"


def _bmp(side: int) -> bytes:
    head = struct.pack("<IiiHHIIiiII", 40, min(side, 2**31 - 1), min(side, 2**31 - 1), 1, 8, 1, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54 + 1024) + head + b"\0" * 1024 + b"\xff\0" * 100


def _gif_frame(side: int) -> bytes:
    return b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x08" + b"\x02\x4c\x01\0;"


def _resized_jpeg(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "JPEG")
    return file.getvalue().replace(struct.pack(">BHH", 8, 8, 8), struct.pack(">BHH", 8, side, side))


def mutated(rng: Random, files: list[bytes]) -> bytes:
    data = bytearray(rng.choice(files))
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        change, at = rng.randrange(6), rng.randrange(len(data) + 1)
        if change <= 1:  # most of what matters is in the head
            at = rng.randrange(min(len(data), 120) or 1)
            data[at : at + 1] = bytes([rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))])
        elif change == 2:
            size = rng.choice((2, 4))
            data[at : at + size] = rng.choice((b"\xff", b"\0", b"\x7f")) * size
        elif change == 3:
            del data[at : at + rng.choice((1, 4, 100))]
        elif change == 4:
            data[at:at] = rng.randbytes(rng.choice((1, 4, 300)))
        else:
            del data[at:]
    return bytes(data)


def fuzz(tally: Tally, seed: int, seconds: float) -> None:
    """`bombs()` once, then mutations until the time is over, some hundred at least."""
    rng, until, files, left = Random(seed), time.monotonic() + seconds, good(), AT_LEAST
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in bombs():
        before = max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # making one takes memory too
        if _look(tally, data, name) is not None and not name.startswith("a PNG with"):
            tally.fail(f"images: {name} was taken")
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        if grown > MOST_GROWTH_MIB:
            tally.fail(f"images: {name} took {grown} MiB of memory")
    while left > 0 or time.monotonic() < until:
        left -= 1
        _look(tally, mutated(rng, files), "")


def _look(tally: Tally, data: bytes, name: str) -> Image.Image | None:
    try:
        image = tally.timed("images", lambda: name or data, lambda: decode(data, MOST_PIXELS))
        if image.mode != "RGB" or image.width * image.height > MOST_PIXELS:
            tally.fail(f"images: {image.mode}, {image.size} came out of {name or data!r:.300}")
        if thumbnail(image, 32).shape != (32, 32, 3):
            tally.fail(f"images: no thumbnail of {name or data!r:.300}")
    except ImageError:
        tally.count("images", "refused")
        return None
    except Exception as error:
        tally.fail(f"images: {type(error).__name__}: {error} for {name or data!r:.500}")
        return None
    tally.count("images", "decoded")
    return image
