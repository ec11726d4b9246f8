from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from neat_backend.errors import SettingsError
from neat_backend.models import classifier as module
from neat_backend.models.classifier import Classifier, Schedule, augment, fit, is_flat


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads of a small network wait for each other when the machine has other things to do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """The digits 0, 1 and 2: uint8 [537, 8, 8, 3] and int64 [537]."""
    bunch = load_digits(n_class=3)
    grey = (bunch.images * 15.9).astype(np.uint8)  # [537, 8, 8]
    return np.repeat(grey[..., None], 3, axis=3), bunch.target.astype(np.int64)


@pytest.fixture(scope="module")
def learned(digits) -> Classifier:
    images, labels = digits
    return fit(images[:200], labels[:200], 3, schedule=Schedule(epochs=25), seed=0, device="cpu")


def noise(n: int, side: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def weights_of(classifier: Classifier) -> dict[str, torch.Tensor]:
    return classifier._network.state_dict()


def test_it_learns_digits(learned, digits):
    images, labels = digits
    assert (learned.predict_proba(images[200:]).argmax(axis=1) == labels[200:]).mean() > 0.8


def test_probabilities_are_float32_rows_that_sum_to_one(learned, digits):
    probabilities = learned.predict_proba(digits[0])
    assert (probabilities.dtype, probabilities.shape) == (np.float32, (len(digits[0]), 3))
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert probabilities.min() >= 0
    assert learned.predict_proba(digits[0][:0]).shape == (0, 3)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(digits):
    images, labels = digits[0][:40], digits[1][:40]
    first, again, other = (
        weights_of(fit(images, labels, 3, schedule=Schedule(epochs=2), seed=seed, device="cpu")) for seed in (5, 5, 6)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])


def test_training_leaves_the_callers_random_numbers_alone(digits):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fit(digits[0][:4], digits[1][:4], 3, schedule=Schedule(epochs=1), seed=0, device="cpu")
    assert torch.equal(torch.rand(2), expected)


def test_what_was_saved_classifies_the_same(learned, digits, tmp_path: Path):
    learned.classes = ("null", "eins", "zwei")
    learned.save(tmp_path / "models" / "1.safetensors")
    loaded = Classifier.load(tmp_path / "models" / "1.safetensors", "cpu")
    assert (loaded.n_classes, loaded.side, loaded.classes) == (3, 8, ("null", "eins", "zwei"))
    assert np.array_equal(loaded.predict_proba(digits[0]), learned.predict_proba(digits[0]))


def test_a_save_that_fails_leaves_the_old_file(learned, tmp_path: Path, monkeypatch):
    path = tmp_path / "1.safetensors"
    learned.save(path)
    before = path.read_bytes()

    def full(_descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        learned.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["1.safetensors"]


def test_files_that_are_no_classifier_are_refused(tmp_path: Path):
    (tmp_path / "text").write_text("no weights")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    save_file({"x": torch.zeros(1)}, tmp_path / "half", {"format": module.FORMAT, "n_classes": "2", "side": "16"})
    for name in ("text", "other", "half"):
        with pytest.raises(ValueError, match="is not a classifier saved here"):
            Classifier.load(tmp_path / name, "cpu")
    with pytest.raises(FileNotFoundError, match="no classifier"):
        Classifier.load(tmp_path / "missing", "cpu")


@pytest.mark.parametrize(("n", "side"), [(1, 8), (2, 8), (129, 8), (1, 16), (1, 64), (3, 70)])
def test_few_images_and_a_last_batch_of_one_can_be_trained_on(n, side):
    classifier = fit(noise(n, side), np.arange(n) % 2, 2, schedule=Schedule(epochs=1), seed=0, device="cpu")
    probabilities = classifier.predict_proba(noise(2, side))
    assert np.isfinite(probabilities).all()


def test_no_batch_holds_a_single_image():
    for n in (1, 2, 127, 128, 129, 130, 257):
        batches = list(module._batches(n, torch.Generator()))
        assert min(len(batch) for batch in batches) > 1
        assert set(torch.cat(batches).tolist()) == set(range(n))


def test_one_class_is_certain_and_a_class_without_labels_is_allowed():
    one = fit(noise(4), np.zeros(4, np.int64), 1, schedule=Schedule(epochs=1), seed=0, device="cpu")
    assert one.predict_proba(noise(3)).tolist() == [[1.0]] * 3
    missing = fit(noise(4), np.array([0, 2, 0, 2]), 4, schedule=Schedule(epochs=1), seed=0, device="cpu")
    assert missing.predict_proba(noise(3)).shape == (3, 4)


@pytest.mark.parametrize(
    ("images", "labels", "n_classes", "words"),
    [
        (noise(0), np.zeros(0, np.int64), 2, "no labelled images"),
        (noise(2), np.zeros(3, np.int64), 2, "don't go together"),
        (noise(2), np.array([0, 2]), 2, r"0\.\.1"),
        (noise(2), np.array([-1, 0]), 2, r"0\.\.1"),
        (noise(2), np.array([0, 0]), 0, "at least one class"),
        (noise(2).astype(np.float32), np.array([0, 1]), 2, "uint8"),
        (noise(2)[:, :, :4], np.array([0, 1]), 2, "uint8"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused_in_words(images, labels, n_classes, words):
    with pytest.raises(ValueError, match=words):
        fit(images, labels, n_classes, schedule=Schedule(epochs=1), seed=0, device="cpu")


def test_images_of_another_side_are_refused(learned):
    with pytest.raises(ValueError, match="8, 8, 3"):
        learned.predict_proba(noise(1, 32))


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(SettingsError, match="NEAT_DEVICE"):
        fit(noise(2), np.array([0, 1]), 2, schedule=Schedule(epochs=1), seed=0, device="cuda:99")


def test_every_epoch_is_reported():
    seen = []
    fit(
        noise(4),
        np.array([0, 1, 0, 1]),
        2,
        schedule=Schedule(epochs=3),
        seed=0,
        device="cpu",
        on_epoch=lambda *row: seen.append(row),
    )
    assert [row[:2] for row in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(np.isfinite(loss) for _, _, loss in seen)


def test_unless_asked_otherwise_every_epoch_is_done_from_scratch(digits, monkeypatch):
    """As in the paper; experiments rely on it."""
    monkeypatch.setattr(module, "is_flat", lambda losses: True)
    monkeypatch.setattr(module, "load_fitting", lambda *_: pytest.fail("weights were loaded"))
    seen = []
    fit(
        digits[0][:4],
        digits[1][:4],
        3,
        schedule=Schedule(epochs=3),
        seed=0,
        device="cpu",
        on_epoch=lambda *row: seen.append(row),
    )
    assert len(seen) == 3


def test_a_loss_is_flat_when_ten_epochs_bring_little_of_the_whole_fall():
    """From 2.0 to 1.0 the whole fall is 1 nat: 0.03 of it in ten epochs is flat, 0.05 is not."""
    assert is_flat([2.0] + [1.5] * 39 + [1.03] * 10 + [1.0] * 10)
    assert not is_flat([2.0] + [1.5] * 39 + [1.05] * 10 + [1.0] * 10)


def test_a_loss_that_has_only_begun_to_fall_is_not_flat():
    """Of a hundred classes: a small part of the loss, but half of the fall."""
    losses = [4.6 - 0.002 * epoch for epoch in range(100)]
    assert not any(is_flat(losses[:epoch]) for epoch in range(101))


def test_a_loss_that_goes_on_halving_near_zero_is_flat():
    assert is_flat([2.0 * 0.93**epoch for epoch in range(70)])


def test_one_noisy_epoch_does_not_make_a_loss_flat_or_keep_it_from_being_flat():
    falling = [2.0 - 0.02 * epoch for epoch in range(60)]
    assert not is_flat([*falling[:-1], 1.6])
    assert is_flat([2.0] + [0.5] * 58 + [0.35])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_no_loss_is_flat_before_the_rate_has_been_halved_three_times(value):
    first = next(epochs for epochs in range(1, 101) if is_flat([value] * epochs))
    assert first == 3 * module.HALVED_EVERY_EPOCHS


def test_a_loss_that_is_no_number_is_not_flat():
    assert not is_flat([2.0] * 50 + [float("nan")] * 30)


def test_training_ends_with_the_epoch_after_which_the_loss_is_flat(digits, monkeypatch):
    images, labels = digits[0][:12], digits[1][:12]
    monkeypatch.setattr(module, "is_flat", lambda losses: len(losses) == 2)
    seen = []
    how = {"seed": 0, "device": "cpu"}
    stopped = fit(
        images, labels, 3, schedule=Schedule(epochs=9, early_stop=True), on_epoch=lambda *row: seen.append(row), **how
    )
    assert [row[:2] for row in seen] == [(1, 9), (2, 9)]
    unwatched = fit(images, labels, 3, schedule=Schedule(epochs=9, early_stop=True), **how)
    two = weights_of(fit(images, labels, 3, schedule=Schedule(epochs=2), **how))
    for early in (stopped, unwatched):
        assert all(torch.equal(two[key], value) for key, value in weights_of(early).items())


CPU = torch.device("cpu")


@pytest.fixture
def sides(monkeypatch) -> list[int]:
    """The side of every batch that is trained on from now on."""
    seen: list[int] = []
    monkeypatch.setattr(module, "augment", lambda pixels, _: seen.append(pixels.shape[-1]) or pixels.float() / 255)
    return seen


def test_a_progressive_training_sees_half_the_side_in_the_first_half_of_its_epochs(sides):
    classifier = fit(
        noise(4, 32), np.array([0, 1, 0, 1]), 2, schedule=Schedule(epochs=5, progressive=True), device="cpu"
    )
    assert sides == [16, 16, 32, 32, 32]
    assert classifier.side == 32


def test_unless_asked_otherwise_every_epoch_sees_the_full_side(sides):
    """As in the paper; experiments rely on it."""
    fit(noise(4, 32), np.array([0, 1, 0, 1]), 2, schedule=Schedule(epochs=2), device="cpu")
    assert sides == [32, 32]


@pytest.mark.parametrize(
    ("epochs", "early_stop", "side", "device", "small"),
    [
        (100, False, 64, "cpu", 50),
        (100, True, 64, "cpu", 30),
        (1000, True, 64, "cpu", 30),  # is_flat may end it at 60
        (1000, False, 64, "cpu", 500),
        (40, True, 64, "cpu", 20),
        (1, False, 64, "cpu", 0),
        (10, False, 32, "cpu", 5),
        (10, False, 31, "cpu", 0),  # 15 pixels are too few
        (10, False, 64, "cuda", 0),
    ],
)
def test_how_many_epochs_see_half_the_side(epochs, early_stop, side, device, small):
    schedule = Schedule(epochs=epochs, early_stop=early_stop, progressive=True)
    assert schedule.small_epochs(side, torch.device(device)) == small


def test_flatness_is_judged_by_epochs_of_the_full_side_alone():
    """`is_flat` compares two windows; neither may hold an epoch of another side."""
    small = Schedule(epochs=10_000, early_stop=True, progressive=True).small_epochs(64, CPU)
    assert small + 2 * module.FLAT_WINDOW_EPOCHS <= module.FLAT_FROM_EPOCHS


def test_a_progressive_training_gives_the_same_weights_for_the_same_seed(digits):
    images = np.repeat(np.repeat(digits[0][:12], 4, axis=1), 4, axis=2)  # 32 pixels
    labels = digits[1][:12]
    full = Schedule(epochs=2)
    first, again, other, whole = (
        weights_of(fit(images, labels, 3, schedule=schedule, seed=seed, device="cpu"))
        for schedule, seed in ((replace(full, progressive=True), 5),) * 2
        + ((replace(full, progressive=True), 6), (full, 5))
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], other["conv1.weight"])
    assert not torch.equal(first["conv1.weight"], whole["conv1.weight"])


def test_a_pixel_of_a_shrunk_image_is_the_weighted_mean_of_those_it_covers():
    """To a half, weights in each direction are 1, 3, 3, 1 of 8; outside the image there are none."""
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    pixels[0, :, 2, 3] = 128  # row 2 is inside of small row 1 (weight 3), and next to small row 0 (weight 1)
    small = module.shrunk(pixels, 4)
    assert small.dtype == torch.uint8
    assert small[0, 0, 1, 1] == 18  # 128 · 3/8 · 3/8
    assert small[0, 0, 0, 1] == pytest.approx(128 / 7 * 3 / 8, abs=1)
    assert small[0, 0, 3].tolist() == [0, 0, 0, 0]
    assert torch.equal(module.shrunk(torch.full((2, 3, 8, 8), 77, dtype=torch.uint8), 4).unique(), torch.tensor([77]))


def test_training_begins_with_the_weights_it_is_given_and_a_fresh_last_layer(digits, learned, monkeypatch):
    monkeypatch.setattr(module, "train", lambda *_, **__: None)
    begun, fresh = (
        weights_of(fit(digits[0][:4], digits[1][:4], 3, seed=1, device="cpu", weights=weights))
        for weights in (weights_of(learned), None)
    )
    for key, value in weights_of(learned).items():
        expected = fresh[key] if key.startswith("fc.") or "num_batches" in key else value
        assert torch.equal(begun[key], expected)
    assert not torch.equal(fresh["conv1.weight"], begun["conv1.weight"])


def test_weights_are_a_head_start_and_stay_as_they_are(digits, learned):
    images, labels = digits
    weights = {key: value.clone() for key, value in weights_of(learned).items()}
    accuracy = []
    for given in (weights, None):
        made = fit(images[:30], labels[:30], 3, schedule=Schedule(epochs=4), seed=0, device="cpu", weights=given)
        accuracy.append((made.predict_proba(images[200:]).argmax(axis=1) == labels[200:]).mean())
    assert accuracy[0] > accuracy[1] + 0.2
    assert all(torch.equal(value, weights_of(learned)[key]) for key, value in weights.items())


def test_weights_of_another_network_are_refused(digits):
    with pytest.raises(ValueError, match="100 of 100 weights are missing"):
        fit(digits[0][:4], digits[1][:4], 3, schedule=Schedule(epochs=1), device="cpu", weights={})


def test_the_stem_keeps_small_images_whole():
    small, ordinary = module._network(2, 63), module._network(2, 64)
    assert small.conv1.stride == (1, 1)
    assert isinstance(small.maxpool, torch.nn.Identity)
    assert ordinary.conv1.stride == (2, 2)


def test_augmentation_blends_no_image_with_the_black_outside():
    out = augment(torch.full((64, 3, 8, 8), 255, dtype=torch.uint8), torch.Generator().manual_seed(0))
    assert (out == 0).any()  # black has come in
    assert ((out == 0) | (out > 0.9999)).all()  # and elsewhere all is as white as it was


def test_augmentation_shifts_flips_and_rotates_each_image_within_its_limits():
    side, n = 32, 400
    picture = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    picture[:, :, 14:18, 22:26] = 255  # a square 8 pixels to the right of the centre
    out = augment(picture.expand(n, -1, -1, -1), torch.Generator().manual_seed(0))[:, 0]  # [n, s, s]
    assert 0 <= out.min() <= out.max() <= 1
    place = torch.arange(side) - (side - 1) / 2
    mass = out.sum(dim=(1, 2))
    x = (out.sum(dim=1) * place).sum(dim=1) / mass
    y = (out.sum(dim=2) * place).sum(dim=1) / mass
    assert 0.4 < (x > 0).float().mean() < 0.6  # half are flipped
    reach = np.hypot(4, 4)
    assert x.abs().max() < 8 + reach
    assert x.abs().min() > 8 * np.cos(np.radians(15)) - reach
    assert y.abs().max() < 8 * np.sin(np.radians(15)) + reach
    assert y.std() > 2
    assert len(torch.unique(out, dim=0)) > n * 0.99


def test_a_shift_is_by_whole_pixels_and_what_comes_in_is_black(monkeypatch):
    monkeypatch.setattr(module, "ROTATION_DEGREES", 0)
    image = torch.from_numpy(noise(1, 16)).permute(0, 3, 1, 2)  # 16 px: shifts by up to 2
    out = augment(image.expand(64, -1, -1, -1), torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(image / 255, (2, 2, 2, 2))[0]
    crops = [padded[:, y : y + 16, x : x + 16] for y in range(5) for x in range(5)]
    allowed = torch.stack([*crops, *(crop.flip(-1) for crop in crops)])  # [50, 3, 16, 16]
    distance = (out[:, None] - allowed[None]).abs().amax(dim=(2, 3, 4))  # [64, 50]
    assert distance.amin(dim=1).max() < 1e-4
    assert len(set(distance.argmin(dim=1).tolist())) > 25
