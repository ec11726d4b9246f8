"""Encoders computed by OpenVINO: PyTorch's features, under a key of their own."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from neat_backend.doctor import installation
from neat_backend.errors import EncoderError
from neat_backend.models import openvino_network
from neat_backend.models.backends import backend_of, key_of_network, reason_for_torch, with_backend
from neat_backend.models.encoders import Encoder, Preprocessing, build_encoder
from neat_backend.models.openvino_network import BATCH, OpenVinoNetwork
from neat_backend.settings import Settings
from neat_backend.store.arrays import ProjectArrays
from neat_backend.worker import live
from tests.waiting import HANGS

CUT = Preprocessing(12, 14, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
CPU = torch.device("cpu")


def layers() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return nn.Sequential(nn.Conv2d(3, 12, 6, stride=6), nn.ReLU(), nn.Flatten())


@pytest.fixture
def encoder() -> Encoder:
    return Encoder("tiny-0123", layers(), CUT, CPU)


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO can't be imported."""
    monkeypatch.setitem(sys.modules, "openvino", None)


def noise(n: int, side: int = 12) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_the_offline_encoders_features_of_photos_are_pytorchs() -> None:
    encoder = build_encoder("efficientnet_lite0", device="cpu")
    china, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    parts = [photo.crop((x, x // 2, x + 200, x // 2 + 180)) for photo in (china, flower) for x in range(0, 400, 80)]
    batch = torch.stack([encoder.preprocess(part) for part in parts])
    by_openvino = with_backend(encoder, "auto")
    assert by_openvino.key == f"{encoder.key}-openvino"
    assert (by_openvino.dim, by_openvino.input_size) == (encoder.dim, encoder.input_size)
    np.testing.assert_allclose(by_openvino.encode(batch), encoder.encode(batch), atol=1e-4)


@pytest.mark.parametrize("n", [0, 1, BATCH, 2 * BATCH + 3])
def test_any_number_of_images_has_pytorchs_features(encoder: Encoder, n: int) -> None:
    given = with_backend(encoder, "openvino").encode(noise(n))
    assert given.shape == (n, encoder.dim)
    np.testing.assert_allclose(given, encoder.encode(noise(n)), atol=1e-5)


def test_threads_that_encode_at_once_get_the_features_of_their_own_images(encoder: Encoder) -> None:
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (CUT.mean, CUT.std))
    network = OpenVinoNetwork(encoder.network, mean, std, 12, threads=2, streams=2)
    images = noise(60)
    parts = [images[start : start + 3 * BATCH] for start in range(20)] * 5
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(network, parts))
    for part, given in zip(parts, found, strict=True):
        torch.testing.assert_close(given, network(part))


def test_names_are_read_by_the_same_text_side(encoder: Encoder) -> None:
    reading = Encoder("tiny-0123", layers(), CUT, CPU, lambda texts: torch.eye(len(texts), 48))
    given = with_backend(reading, "openvino").encode_names(["cat", "dog"])
    assert given is not None
    np.testing.assert_array_equal(given, np.eye(2, 48, dtype=np.float32))


class TestTheChoice:
    def test_auto_keeps_what_made_the_stored_features(self, encoder: Encoder) -> None:
        assert with_backend(encoder, "auto", stored="tiny-0123") is encoder
        assert with_backend(encoder, "auto", stored="tiny-0123-openvino").key == "tiny-0123-openvino"
        assert with_backend(encoder, "auto", stored="another-4567").key == "tiny-0123-openvino"
        assert with_backend(encoder, "openvino", stored="tiny-0123").key == "tiny-0123-openvino"
        assert with_backend(encoder, "torch", stored="tiny-0123-openvino") is encoder

    def test_a_live_project_keeps_what_made_its_features(self, encoder: Encoder, tmp_path: Any) -> None:
        def key(number: int, **settings: Any) -> str:
            context = SimpleNamespace(settings=Settings(**settings), arrays=ProjectArrays(tmp_path, number))
            return live._encoder(cast(Any, context), encoder).key

        row = np.zeros((1, encoder.dim), np.float32)
        ProjectArrays(tmp_path, 1).append("features/tiny-0123", np.array([1]), np.array([5]), row)
        assert key(1) == "tiny-0123"
        assert key(1, encoder_backend="openvino") == "tiny-0123-openvino"
        assert key(2) == "tiny-0123-openvino"
        assert key(2, encoder_backend="torch") == "tiny-0123"
        assert key(2, compute="ray") == "tiny-0123"

    def test_the_network_is_converted_once(self, encoder: Encoder) -> None:
        assert with_backend(encoder, "auto") is with_backend(encoder, "openvino")

    def test_a_gpu_computes_by_pytorch(self) -> None:
        on_gpu = cast(Any, SimpleNamespace(key="tiny-0123", device=torch.device("cuda"), variants={}))
        assert with_backend(on_gpu, "auto") is on_gpu
        with pytest.raises(EncoderError, match=r"NEAT_ENCODER_BACKEND=openvino: .*NEAT_DEVICE is cuda"):
            with_backend(on_gpu, "openvino")

    def test_ray_computes_by_pytorch_and_is_sent_nothing_else(self, encoder: Encoder) -> None:
        assert backend_of("auto", "ray") == "torch"
        assert backend_of("auto", "local") == "auto"
        with pytest.raises(EncoderError, match="NEAT_ENCODER_BACKEND=torch"):
            with_backend(encoder, "openvino").on(CPU)

    @pytest.mark.parametrize("key", ["tiny-0123", "tiny-0123-openvino", "tiny-0123-openvino-bf16"])
    def test_a_key_tells_the_networks(self, key: str) -> None:
        assert key_of_network(key) == "tiny-0123"

    def test_bfloat16_is_refused_where_the_cpu_has_none(
        self, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        core = SimpleNamespace(get_property=lambda *_: ["FP32", "INT8"])
        monkeypatch.setattr(openvino_network, "_openvino", lambda: SimpleNamespace(Core=lambda: core))
        with pytest.raises(EncoderError, match=r"NEAT_ENCODER_BACKEND=openvino-bf16: .*no bfloat16"):
            with_backend(encoder, "openvino-bf16")


class TestWithoutOpenVino:
    @pytest.mark.usefixtures("missing")
    def test_auto_takes_pytorch_and_says_so_once(self, encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)
        assert with_backend(encoder, "auto") is with_backend(encoder, "auto") is encoder
        (said,) = caplog.messages
        assert said.startswith("encoder tiny-0123: computed by PyTorch: OpenVINO can't be imported")
        assert reason_for_torch(encoder).startswith("OpenVINO can't be imported")

    @pytest.mark.usefixtures("missing")
    def test_what_is_asked_for_by_name_is_refused(self, encoder: Encoder) -> None:
        with pytest.raises(EncoderError, match=r"NEAT_ENCODER_BACKEND=openvino: OpenVINO can't be imported.*set auto"):
            with_backend(encoder, "openvino")

    def test_a_network_that_becomes_another_by_conversion_is_left_to_pytorch(self) -> None:
        class Branching(nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return images.flatten(1)[:, :5] + (1 if images.mean() > 0 else 7)

        encoder = Encoder("branching", Branching(), Preprocessing(12, 12, (0.1,) * 3, (1.0,) * 3), CPU)
        assert with_backend(encoder, "auto") is encoder
        assert "other features than PyTorch" in reason_for_torch(encoder)

    def test_a_network_that_cannot_be_converted_is_left_to_pytorch(self) -> None:
        class Foreign(nn.Module):
            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return torch.from_numpy(np.sort(images.flatten(1).numpy())[:, :4].copy())

        encoder = Encoder("foreign", Foreign(), CUT, CPU)
        assert with_backend(encoder, "auto") is encoder
        assert reason_for_torch(encoder)

    @pytest.mark.usefixtures("missing")
    def test_doctor_says_why(self) -> None:
        said = installation._encoder(Settings(encoder="efficientnet_lite0", device="cpu"))
        assert "computed by PyTorch (OpenVINO can't be imported" in said


def test_doctor_says_what_computes() -> None:
    settings = Settings(encoder="efficientnet_lite0", device="cpu")
    assert installation._encoder(settings).endswith("1280 features, computed by OpenVINO")
    settings = settings.model_copy(update={"encoder_backend": "torch"})
    assert installation._encoder(settings).endswith("computed by PyTorch")


WATCHED = """
import json, os, socket, sys, threading
tried = []
def noted(name):
    def call(*arguments, **_):
        tried.append(name)
        raise OSError("no network in this test")
    return call
socket.socket.connect = noted("connect")
socket.getaddrinfo = noted("getaddrinfo")
import torch
from torch import nn
from neat_backend.models.encoders import Encoder, Preprocessing
from neat_backend.models.backends import with_backend
torch.set_num_threads(1)
network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten())
encoder = Encoder("tiny", network, Preprocessing(32, 32, (0.5,) * 3, (0.5,) * 3), torch.device("cpu"))
before = len(os.listdir("/proc/self/task"))
converted = with_backend(encoder, "openvino")
converted.encode(torch.zeros(40, 3, 32, 32, dtype=torch.uint8) + 9)
begun = len(os.listdir("/proc/self/task")) - before
for thread in threading.enumerate():
    if thread is not threading.current_thread():
        thread.join(60)
print(json.dumps({"tried": tried, "telemetry": sys.modules["openvino_telemetry"] is not None, "threads": begun}))
"""


@pytest.fixture(scope="module")
def watched() -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_nothing_is_sent_to_openvinos_makers(watched: dict[str, Any]) -> None:
    assert (watched["tried"], watched["telemetry"]) == ([], False)


def test_openvino_has_no_more_threads_than_pytorch(watched: dict[str, Any]) -> None:
    assert watched["threads"] <= 2, "one that computes, and the one that hands out requests"
