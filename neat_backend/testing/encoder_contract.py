"""The contract of encoders: properties of their features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from neat_backend.models.encoders import Encoder, build_encoder
from neat_backend.models.grid import GRID

SIZES = ((64, 48), (9, 8), (30, 300), (1, 1))
CLOSE = 1e-4  # float32 sums of a batch and of one picture differ in their last bits


def pictures() -> list[Image.Image]:
    """Noise of several sizes, the same each time."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(1, 256, (height, width, 3), np.uint8)) for width, height in SIZES]


def encode(encoder: Encoder, images: Sequence[Image.Image]) -> NDArray[np.float32]:
    """Features, float32 [n, dim]."""
    return encoder.encode(torch.stack([encoder.preprocess(image) for image in images]))


class EncoderContract:
    """Inherit it as `class Test…(EncoderContract)` with `names`, as NEAT_ENCODER has them."""

    names: Sequence[str] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.names)

    def test_features_are_unit_rows_on_the_grid(self, name: str) -> None:
        encoder = build_encoder(name, device="cpu")
        features = encode(encoder, pictures())
        assert (features.shape, features.dtype) == ((len(SIZES), encoder.dim), np.float32)
        steps = features.astype(np.float64) / GRID
        np.testing.assert_array_equal(steps, np.rint(steps))
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)

    def test_other_pictures_have_other_features(self, name: str) -> None:
        first, second, *_ = encode(build_encoder(name, device="cpu"), pictures())
        assert np.abs(first - second).max() > 0

    def test_a_picture_has_the_same_features_each_time_and_in_any_batch(self, name: str) -> None:
        encoder = build_encoder(name, device="cpu")
        together = encode(encoder, pictures())
        np.testing.assert_array_equal(together, encode(build_encoder(name, device="cpu"), pictures()))
        alone = np.concatenate([encode(encoder, [picture]) for picture in pictures()])
        np.testing.assert_allclose(alone, together, atol=CLOSE)

    def test_no_picture_has_no_features(self, name: str) -> None:
        encoder = build_encoder(name, device="cpu")
        side = encoder.input_size
        assert encoder.encode(torch.zeros(0, 3, side, side, dtype=torch.uint8)).shape == (0, encoder.dim)

    def test_the_key_is_the_encoders_own_and_can_be_a_folders_name(self, name: str) -> None:
        key = build_encoder(name, device="cpu").key
        assert key == build_encoder(name, device="cpu").key
        assert key != build_encoder("efficientnet_lite0", device="cpu").key or name == "efficientnet_lite0"
        assert all(char.isascii() and (char.isalnum() or char in "-_.") for char in key)
