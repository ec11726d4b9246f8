from __future__ import annotations

import base64
import io
import resource
import struct
import zlib
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image, ImageOps

from neat_backend.errors import ImageError
from neat_backend.labelstudio.images import ImageFetcher, decode, thumbnail
from tests.fuzz.images import HEIC, bombs, ico_around, many_scans


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (4, 2), (200, 10, 20))


class FakeClient:
    def __init__(self, *answers):
        self.answers = list(answers)
        self.requested = []

    def fetch_bytes(self, path_or_url, limit_bytes, timeout_seconds=None):
        self.requested.append(path_or_url)
        answer = self.answers.pop(0) if self.answers else b"bytes"
        if isinstance(answer, Exception):
            raise answer
        return answer


def fetcher(client, max_bytes=1000):
    return ImageFetcher(client, max_bytes, 1000, sleep=lambda seconds: None)


@pytest.mark.parametrize(
    ("ref", "requested"),
    [
        ("/data/upload/1/a.png", "/data/upload/1/a.png"),
        (" /data/local-files/?d=x/a b.png", "/data/local-files/?d=x/a b.png"),
        ("https://example.com/a.png", "https://example.com/a.png"),
        ("s3://bucket/a.png", "/tasks/7/resolve/?fileuri=czM6Ly9idWNrZXQvYS5wbmc="),
        ("gs://bucket/ä", "/tasks/7/resolve/?fileuri=Z3M6Ly9idWNrZXQvw6Q="),
        ("azure-blob://c/a?", "/tasks/7/resolve/?fileuri=YXp1cmUtYmxvYjovL2MvYT8="),
        ("redis://x/a>>", "/tasks/7/resolve/?fileuri=cmVkaXM6Ly94L2E-Pg=="),
    ],
)
def test_where_each_reference_is_fetched(ref, requested):
    client = FakeClient()
    assert fetcher(client).fetch(7, ref) == b"bytes"
    assert client.requested == [requested]


@pytest.mark.parametrize(
    "ref", [None, "", " ", "file:///etc/passwd", "ftp://a/b", "a.png", "//host/a.png", "C:\\a.png", "javascript:x"]
)
def test_references_that_are_refused(ref):
    client = FakeClient()
    with pytest.raises(ImageError) as caught:
        fetcher(client).fetch(7, ref)
    assert not caught.value.transient
    assert client.requested == []


def test_an_image_inside_the_task():
    data = encoded(RED)
    ref = "data:image/png;base64," + base64.b64encode(data).decode()
    assert fetcher(FakeClient()).fetch(7, ref) == data
    for bad in ("data:text/html,hi", "data:image/png;base64,%%%", ref + "A" * 3000):
        with pytest.raises(ImageError):
            fetcher(FakeClient()).load(7, bad)


FILE = next(file for side in range(1, 99) if len(file := encoded(Image.new("RGB", (side, 2), "red"))) % 3 == 2)
PACKED = base64.b64encode(FILE).decode()  # with one sign of padding


@pytest.mark.parametrize(
    "ref",
    [
        f"data:image/png;base64,{PACKED[:40]}\\n{PACKED[40:]}\\n".replace("\\n", "\n"),
        f"data:image/png;base64,{PACKED.rstrip('=')}",
        f"data:;base64,{PACKED}",
        f"data:application/octet-stream;base64,{PACKED}",
        f"data:text/html;base64,{PACKED}",
        f"data:image/png; base64,{PACKED}",
        f"data:image/png; base64 ,{PACKED}",
        f"data:image/png;charset=utf-8;BASE64,{PACKED}",
        f"DATA:image/png;base64,{PACKED}",
        f"data:image/png;base64,{PACKED[:9]}%0A{PACKED[9:].replace('=', '%3D')}",
        f"data:image/png;base64,{PACKED[:9]} {PACKED[9:]}#fragment",
        f"data:image/png,{quote(FILE)}",
    ],
)
def test_a_data_url_is_read_in_every_form_that_browsers_show(ref):
    assert fetcher(FakeClient()).fetch(7, ref) == FILE


@pytest.mark.parametrize(
    "ref",
    [
        f"data:image/png;base64,{PACKED}=",
        f"data:image/png;base64,{PACKED[:-4]}!{PACKED[-4:]}",
        *(f"data:{head},{PACKED}" for head in ("", "base64", "image/png;base64;x", "image/png")),
        f"data:image/png;base64{PACKED}",
    ],
)
def test_a_data_url_that_browsers_do_not_show_is_not_read_either(ref):
    with pytest.raises(ImageError):
        fetcher(FakeClient()).load(7, ref)


@pytest.mark.parametrize(("ref", "why"), [(None, "lacks the key"), ("", "is empty"), (" ", "is empty")])
def test_the_key_is_said_to_be_missing_only_where_it_is(ref, why):
    with pytest.raises(ImageError, match=why):
        fetcher(FakeClient()).fetch(7, ref)


def test_a_passing_failure_is_tried_again_and_a_lasting_one_is_not():
    passing = ImageError("busy", transient=True)
    client = FakeClient(passing, passing)
    assert fetcher(client).fetch(7, "/a") == b"bytes"
    assert len(client.requested) == 3
    client = FakeClient(passing, passing, passing)
    with pytest.raises(ImageError) as caught:
        fetcher(client).fetch(7, "/a")
    assert caught.value.transient
    client = FakeClient(ImageError("gone"))
    with pytest.raises(ImageError):
        fetcher(client).fetch(7, "/a")
    assert len(client.requested) == 1


def test_a_storage_that_is_not_connected_says_so():
    with pytest.raises(ImageError, match="connect that s3 storage"):
        fetcher(FakeClient(ImageError("Label Studio answered 404 for the image"))).fetch(7, "s3://b/a.png")


def test_load_decodes():
    assert fetcher(FakeClient(encoded(RED))).load(7, "/a").size == (4, 2)
    with pytest.raises(ImageError, match="pixels"):
        fetcher(FakeClient(encoded(Image.new("L", (40, 30))))).load(7, "/a")


def pixel(data, x=0, y=0):
    image = decode(data, 10_000)
    assert image.mode == "RGB"
    return image.getpixel((x, y))


def test_every_kind_of_pixel_becomes_rgb():
    assert pixel(encoded(RED)) == (200, 10, 20)
    assert pixel(encoded(RED.convert("P"))) == pytest.approx((200, 10, 20), abs=30)
    assert pixel(encoded(Image.new("L", (2, 2), 77))) == (77, 77, 77)
    assert pixel(encoded(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    assert pixel(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 0)))) == (255, 255, 255)
    assert pixel(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 255)))) == (0, 0, 0)
    assert pixel(encoded(Image.new("LA", (2, 2), (9, 255)))) == (9, 9, 9)
    assert pixel(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "TIFF")) == (0, 0, 0)
    transparent = Image.new("P", (2, 2), 0)
    assert pixel(encoded(transparent, transparency=0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((2, 2), 65535, np.uint16), 255),
        (np.full((2, 2), 257 * 40, np.uint16), 40),
        (np.full((2, 2), 0.5, np.float32), 128),
        (np.full((2, 2), 300, np.int32), 1),
        (np.full((2, 2), 200, np.int32), 200),
    ],
)
def test_deep_greyscale(values, expected):
    assert pixel(encoded(Image.fromarray(values), "TIFF")) == (expected,) * 3


def png_of(bits, kind, row, transparent):
    """A PNG of one row, whose samples of `bits` are packed in `row`."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", len(row) * 8 // bits // (3 if kind == 2 else 1), 1, bits, kind, 0, 0, 0)),
        *([(b"tRNS", transparent)] if transparent else []),
        (b"IDAT", zlib.compress(b"\0" + row)),
        (b"IEND", b""),
    ]
    packed = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png_of(16, 0, struct.pack(">HH", 1000, 50_000), struct.pack(">H", 1000)), [255, 195]),
        (png_of(16, 0, struct.pack(">HH", 1000, 50_000), b""), [4, 195]),
        (png_of(8, 0, b"\x03\x04", b"\0\x03"), [255, 4]),
        (png_of(4, 0, b"\x3a", b"\0\x03"), [255, 170]),
        (png_of(2, 0, b"\x1b", b"\0\x01"), [0, 255, 170, 255]),
        (png_of(1, 0, b"\x0f", b"\0\x00"), [255] * 8),
        (
            png_of(16, 2, struct.pack(">6H", 1000, 2000, 3000, *[50_000] * 3), struct.pack(">3H", 1000, 2000, 3000)),
            [255, 195],
        ),
    ],
)
def test_a_png_s_transparent_value_is_white_at_every_depth(data, expected):
    """As Chromium shows them on white."""
    image = decode(data, 100)
    assert [image.getpixel((x, 0)) for x in range(image.width)] == [(grey,) * 3 for grey in expected]


ROTATED = Image.Exif()
ROTATED[0x0112] = 6  # "rotate by 90° to the right to see it"
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


@pytest.mark.parametrize(
    ("kind", "options", "turned"),
    [
        ("JPEG", {"exif": ROTATED}, True),
        ("PNG", {"exif": ROTATED}, True),
        ("AVIF", {"exif": ROTATED}, True),  # Pillow writes it as the container's own box
        ("JPEG", {"xmp": XMP}, False),
        ("WEBP", {"exif": ROTATED, "lossless": True}, False),
        ("WEBP", {"xmp": XMP, "lossless": True}, False),
        ("JPEG", {"exif": b"Exif\0\0broken"}, False),
    ],
)
def test_a_photo_is_turned_as_browsers_turn_it(kind, options, turned):
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (0, 0, 16, 16))
    seen = decode(encoded(image, kind, **options), 10_000)
    assert seen.size == ((32, 64) if turned else (64, 32))
    assert min(seen.getpixel((24, 4) if turned else (4, 4))) > 200


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_the_one_of_the_standard(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encoded(Image.effect_noise((64, 32), 90).convert("RGB"), "JPEG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
    assert decode(file, 10_000).tobytes() == expected.tobytes()


def test_a_heic_photo_is_read():
    image = decode(HEIC, 10_000)
    assert image.size == (64, 48)
    assert image.getpixel((10, 10)) == pytest.approx((200, 10, 20), abs=25)
    assert image.getpixel((50, 10)) == pytest.approx((10, 20, 200), abs=25)
    with pytest.raises(ImageError, match="pixels"):
        decode(HEIC, 1000)
    with pytest.raises(ImageError, match="damaged"):
        decode(HEIC[:-40], 10_000)


def test_an_icon_is_no_targa():
    """A TGA file begins with no sign of its own, so that its reader takes some icons for one: this by its size."""
    icon = encoded(Image.new("RGBA", (128, 128), "red"), "ICO", sizes=[(128, 128)], bitmap_format="bmp")
    assert Image.open(io.BytesIO(icon), formats=["TGA", "ICO"]).format == "TGA"
    image = decode(icon, 128 * 128)
    assert (image.size, image.getpixel((64, 64))) == ((128, 128), (255, 0, 0))
    cursor = encoded(Image.new("RGB", (16, 16), "red"), "ICO", bitmap_format="bmp").replace(b"\0\0\1", b"\0\0\2", 1)
    assert pixel(cursor) == (255, 0, 0)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>log in</html>", "web page"),
        (b'<?xml version="1.0"?><svg xmlns="x"/>', "SVG"),
        (b"GIF89a", "cut short|read"),
        (
            encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)))[:2000],
            "cut short",
        ),
        (encoded(Image.new("RGB", (200, 100))), "pixels"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "a PostScript drawing"),
        (b"8BPS\0\1" + bytes(30), "a Photoshop file"),
        (b"qoif" + bytes(30), "a QOI image"),
        (b"\xff\x0a" + bytes(30), "a JPEG XL image"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(30), "a JPEG XL image"),
        (b"%PDF-1.7\n", "a PDF"),
        (bytes(128) + b"DICM" + bytes(30), "a DICOM"),
        (b"\0\0\0\x18ftypmp42" + bytes(30), "a video"),
        (b"PK\3\4" + bytes(30), "an archive"),
    ],
)
def test_files_that_cannot_be_read_say_why(data, why):
    with pytest.raises(ImageError, match=why) as caught:
        decode(data, 10_000)
    assert not caught.value.transient


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_small_file_of_very_many_pixels_is_refused_before_it_is_unpacked():
    bomb = encoded(Image.new("1", (12_000, 12_000)))
    assert len(bomb) < 1_000_000
    with pytest.raises(ImageError, match="pixels"):
        decode(bomb, 100_000_000)


def test_a_thumbnail_is_the_central_square():
    image = Image.new("RGB", (300, 100), "black")
    image.paste((255, 0, 0), (100, 0, 200, 100))
    small = thumbnail(image, 8)
    assert (small.shape, small.dtype) == ((8, 8, 3), np.uint8)
    assert (small == [255, 0, 0]).all()
    assert thumbnail(Image.new("RGB", (1, 5000), "blue"), 4).tolist() == [[[0, 0, 255]] * 4] * 4


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("ours", "said"), [(1000, "1,000 .*NEAT_MAX_IMAGE_PIXELS"), (10**12, "fixed limit")])
def test_pillows_own_limit_is_said_in_plain_words(ours, said):
    bomb = b"P5 20000 20000 255\n" + bytes(100)
    with pytest.raises(ImageError, match=said):
        decode(bomb, ours)


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_of_many_frames_only_the_first_is_read(kind, monkeypatch):
    frames = [Image.new("RGB", (6, 4), (n, 255 - n, 0)) for n in range(200)]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    opened = []
    plugin = type(Image.open(io.BytesIO(file.getvalue())))
    monkeypatch.setattr(plugin, "seek", lambda *_: opened.append("another frame"))
    assert decode(file.getvalue(), 1000).size == (6, 4)
    assert opened == []


class TestBombs:
    """Files that claim or unpack to very much; tests/fuzz/images.py makes more of them."""

    @pytest.mark.parametrize(("name", "data"), [pytest.param(*one, id=one[0]) for one in bombs()])
    def test_are_refused_before_they_unpack(self, name, data):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ImageError):
            decode(data, 1_000_000)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024, "KiB"

    def test_a_jpeg_with_as_many_scans_as_cameras_and_editors_write_is_read(self):
        progressive = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG", progressive=True)
        assert 5 < progressive.count(b"\xff\xda") < 20
        assert decode(progressive, 10_000).size == (64, 64)
        assert decode(many_scans(50, side=32), 10_000).size == (32, 32)
        with pytest.raises(ImageError, match="scans"):
            decode(many_scans(101, side=32), 10_000)

    def test_an_icon_is_measured_by_the_picture_inside_it(self):
        assert decode(encoded(Image.new("RGB", (32, 32)), "ICO"), 1024).size == (32, 32)
        assert decode(ico_around(encoded(Image.new("RGB", (30, 30)))), 1024).size == (30, 30)
        with pytest.raises(ImageError, match="40 × 40"):
            decode(ico_around(encoded(Image.new("RGB", (40, 40)))), 1024)
