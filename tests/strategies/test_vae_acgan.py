from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from neat_backend.strategies import vae_acgan
from neat_backend.strategies.vae_acgan import Networks, Scale, VaeAcgan, divergence, reconstruction, train_vae_acgan

CLASSES = 5
SHOWN = 80  # digits to train on
CHANCE = 1 / CLASSES


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Digits 0 to 4, 8×8 in [0, 1], in random order."""
    data = load_digits(n_class=CLASSES)
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.images[order] / 16).astype(np.float32), data.target[order].astype(np.int64)


def as_features(images: np.ndarray) -> np.ndarray:
    rows = images.reshape(len(images), -1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def as_pictures(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.repeat(images[:, None], 3, axis=1))


@torch.no_grad()
def named(network: VaeAcgan, inputs: np.ndarray) -> np.ndarray:
    """The classes that the network's class head names."""
    _, logits = network._networks.judge(network._scale.inward(torch.from_numpy(inputs)).to(network._device))
    return logits.argmax(dim=1).cpu().numpy()


@pytest.mark.parametrize("form", [as_features, as_pictures])
def test_what_it_makes_is_recognised_new_and_of_the_right_form(
    form: Callable[[np.ndarray], np.ndarray], digits: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae_acgan, "LEAST_STEPS", 120)
    monkeypatch.setattr(vae_acgan, "MOST_STEPS", 120)
    images, labels = digits
    inputs = form(images)
    network = train_vae_acgan(inputs[:SHOWN], labels[:SHOWN], CLASSES, np.random.default_rng(0))
    made = network.resample(inputs[:SHOWN], labels[:SHOWN], np.random.default_rng(1))
    rest = inputs[SHOWN:].reshape(len(inputs) - SHOWN, -1)
    judge = LogisticRegression(max_iter=1000).fit(rest, labels[SHOWN:])  # has not seen those the network has
    assert judge.score(inputs[:SHOWN].reshape(SHOWN, -1), labels[:SHOWN]) > 0.9
    assert judge.score(made.reshape(SHOWN, -1), labels[:SHOWN]) > 4 * CHANCE
    assert (named(network, made) == labels[:SHOWN]).mean() > 4 * CHANCE
    assert (named(network, inputs[SHOWN:]) == labels[SHOWN:]).mean() > 4 * CHANCE

    assert made.shape == inputs[:SHOWN].shape
    assert made.dtype == np.float32
    unlike = np.abs(made - inputs[:SHOWN]).mean()
    assert unlike > 1e-3  # not the same again
    assert unlike < np.abs(np.roll(inputs[:SHOWN], 1, axis=0) - inputs[:SHOWN]).mean()  # but nearer than another one
    again = network.resample(inputs[:SHOWN], labels[:SHOWN], np.random.default_rng(2))
    assert np.abs(made - again).mean() > 1e-3
    if form is as_features:
        np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1, atol=1e-5)
    else:
        assert made.min() >= 0
        assert made.max() <= 1


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 28, 28), (3, 30, 30), (3, 33, 33), (7,)])
@pytest.mark.parametrize("m", [1, 3])
def test_any_side_any_width_and_a_single_sample_do(
    shape: tuple[int, ...], m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae_acgan, "LEAST_STEPS", 2)
    monkeypatch.setattr(vae_acgan, "MOST_STEPS", 2)
    inputs = np.random.default_rng(0).random((m, *shape), dtype=np.float32)
    network = train_vae_acgan(inputs, np.zeros(m, dtype=np.int64), 1, np.random.default_rng(0))
    made = network.resample(inputs, np.zeros(m, dtype=np.int64), np.random.default_rng(0))
    assert made.shape == inputs.shape
    assert np.isfinite(made).all()
    assert network.resample(inputs[:0], np.zeros(0, dtype=np.int64), np.random.default_rng(0)).shape == (0, *shape)


def test_the_divergence_by_hand() -> None:
    mean, log_variance = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, math.log(4.0)], [0.0, 0.0]])
    # first row: ½ (1 + 1 - 0 - 1) + ½ (4 - ln 4 - 1); second row is N(0, 1) itself
    assert divergence(mean, log_variance).item() == pytest.approx((0.5 + (3 - math.log(4)) / 2) / 2)


def test_the_reconstruction_by_hand() -> None:
    assert reconstruction(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 1.0]])).item() == pytest.approx(5 / 4)
    logits = torch.full((1, 3, 2, 2), math.log(3.0))  # pixels of ¾
    assert reconstruction(logits, torch.ones(1, 3, 2, 2)).item() == pytest.approx(math.log(4 / 3))


def test_the_encoders_loss_moves_the_encoder_alone_and_so_on() -> None:
    networks = Networks(torch.Size([4]), 2)
    training = vae_acgan._Training(networks)
    groups = [training.encoder, training.generator, training.discriminator]
    members = [{id(p) for p in g.param_groups[0]["params"]} for g in groups]
    assert sum(map(len, members)) == len(set.union(*members)) == len(list(networks.parameters()))
    before = [p.detach().clone() for p in networks.parameters()]
    training.step(torch.rand(6, 4), torch.tensor([0, 1] * 3), torch.randn(3, 6, vae_acgan.LATENT))
    moved = [not torch.equal(a, b) for a, b in zip(before, networks.parameters(), strict=True)]
    assert all(moved)


def test_features_go_in_standardised_and_come_out_as_they_were() -> None:
    inputs = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    scale = Scale.of(inputs)
    # mean (2, 5); squares 1, 0, 1, 0: one deviation √½ for all columns
    torch.testing.assert_close(scale.inward(inputs), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]) * math.sqrt(2))
    torch.testing.assert_close(scale.outward(scale.inward(inputs)), inputs)
    assert not scale.unit
    assert Scale.of(torch.nn.functional.normalize(inputs)).unit


def test_torchs_own_generator_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_acgan, "LEAST_STEPS", 1)
    monkeypatch.setattr(vae_acgan, "MOST_STEPS", 1)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    train_vae_acgan(np.eye(3, dtype=np.float32), np.zeros(3, dtype=np.int64), 1, np.random.default_rng(0))
    assert torch.equal(before, torch.get_rng_state())
