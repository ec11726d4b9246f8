from __future__ import annotations

import numpy as np

from neat_backend.experiments.features import features_of


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
