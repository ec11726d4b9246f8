from __future__ import annotations

import numpy as np

from neat_backend.experiments.features import features_of, strongest


def test_features_are_computed_once_and_in_order(data, encoder, tmp_path):
    seen = []
    train, test = features_of(data, encoder, tmp_path, lambda done, total: seen.append((done, total)))
    assert (train.shape, test.shape) == ((200, 4), (60, 4))
    assert seen[-1] == (260, 260)
    assert encoder.seen == 260
    again, _ = features_of(data, encoder, tmp_path)
    assert encoder.seen == 260
    assert np.array_equal(train, again)
    alone = encoder.encode(encoder.preprocess(data.images[77])[None])
    assert np.allclose(train[77], alone[0], atol=1e-6)


def test_another_encoder_or_other_images_are_computed_anew(data, encoder, tmp_path):
    features_of(data, encoder, tmp_path)
    features_of(data.subset(50, None), encoder, tmp_path)
    assert encoder.seen == 260 + 110
    encoder.key = "colour-2"
    features_of(data, encoder, tmp_path)
    assert encoder.seen == 260 + 110 + 260


def test_a_file_that_is_broken_is_computed_anew(data, encoder, tmp_path):
    features_of(data, encoder, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:500])
    train, _ = features_of(data, encoder, tmp_path)
    assert encoder.seen == 520
    assert len(train) == 200


def test_the_strongest_components_keep_cosines_and_more_than_there_are_change_none():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 20))  # rank 5, and a little noise
    features = (flat + 0.01 * rng.normal(size=flat.shape)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    pool, test = features[:200], features[200:]
    kept, kept_test = strongest(pool, test, 5)
    assert (kept.shape, kept_test.shape) == ((200, 5), (100, 5))
    assert np.allclose(kept @ kept_test.T, pool @ test.T, atol=1e-3)
    whole, _ = strongest(pool, test, 99)
    assert np.allclose(whole @ whole.T, pool @ pool.T, atol=1e-5)
    fewer, _ = strongest(pool, test, 2)
    assert np.allclose(np.linalg.norm(fewer, axis=1), 1)
