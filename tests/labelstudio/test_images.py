from __future__ import annotations

import base64
import io
import resource

import numpy as np
import pytest
from PIL import Image

from neat_backend.errors import ImageError
from neat_backend.labelstudio.images import ImageFetcher, decode, thumbnail
from tests.fuzz.images import bombs, ico_around, many_scans


def encoded(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


RED = Image.new("RGB", (4, 2), (200, 10, 20))


class FakeClient:
    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def fetch_bytes(self, path_or_url, limit_bytes, timeout_seconds=None):
        self.asked.append(path_or_url)
        answer = self.answers.pop(0) if self.answers else b"bytes"
        if isinstance(answer, Exception):
            raise answer
        return answer


def fetcher(client, max_bytes=1000):
    return ImageFetcher(client, max_bytes, 1000, sleep=lambda seconds: None)


@pytest.mark.parametrize(
    ("ref", "asked"),
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
def test_where_each_reference_is_fetched(ref, asked):
    client = FakeClient()
    assert fetcher(client).fetch(7, ref) == b"bytes"
    assert client.asked == [asked]


@pytest.mark.parametrize(
    "ref", [None, "", " ", "file:///etc/passwd", "ftp://a/b", "a.png", "//host/a.png", "C:\\a.png", "javascript:x"]
)
def test_references_that_are_refused(ref):
    client = FakeClient()
    with pytest.raises(ImageError) as caught:
        fetcher(client).fetch(7, ref)
    assert not caught.value.transient
    assert client.asked == []


def test_an_image_inside_the_task():
    data = encoded(RED)
    ref = "data:image/png;base64," + base64.b64encode(data).decode()
    assert fetcher(FakeClient()).fetch(7, ref) == data
    for bad in ("data:text/html,hi", "data:image/png;base64,%%%", ref + "A" * 3000):
        with pytest.raises(ImageError):
            fetcher(FakeClient()).fetch(7, bad)


def test_a_passing_failure_is_tried_again_and_a_lasting_one_is_not():
    passing = ImageError("busy", transient=True)
    client = FakeClient(passing, passing)
    assert fetcher(client).fetch(7, "/a") == b"bytes"
    assert len(client.asked) == 3
    client = FakeClient(passing, passing, passing)
    with pytest.raises(ImageError) as caught:
        fetcher(client).fetch(7, "/a")
    assert caught.value.transient
    client = FakeClient(ImageError("gone"))
    with pytest.raises(ImageError):
        fetcher(client).fetch(7, "/a")
    assert len(client.asked) == 1


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


def test_a_photo_is_turned_upright():
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90° to the right to see it"
    turned = decode(encoded(image, "PNG", exif=exif), 100)
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == (255, 255, 255)


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
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image"),
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
