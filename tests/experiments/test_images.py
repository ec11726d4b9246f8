from __future__ import annotations

import numpy as np
import pytest
import torch

from neat_backend.experiments.image_files import ImageLearner
from neat_backend.models.networks import last_linear
from neat_backend.ranking.pool import Generated


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("network", ["resnet18", "vgg16"])
def test_the_same_generator_gives_the_same_network_and_embeddings_make_its_logits(data, network):
    learner = ImageLearner(data.images, network, epochs=1, device="cpu")
    train = np.flatnonzero(data.labels < 2)[:16]
    model, again = (learner.fit(train, data.labels[train], 2, np.random.default_rng(3)) for _ in range(2))
    indices = np.array([5, 3, 5])
    assert np.array_equal(model.logits(indices), again.logits(indices))
    layer = last_linear(model._network)
    expected = model.embeddings(indices) @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    assert np.allclose(model.logits(indices), expected, atol=0.05)  # bfloat16 on some processors
    assert model.dropout_logits(indices, 3, np.random.default_rng(0)).shape == (3, 3, 2)


def test_what_was_computed_for_a_sample_is_remembered(data, monkeypatch):
    learner = ImageLearner(data.images, "resnet18", epochs=1, device="cpu")
    model = learner.fit(np.arange(4), np.array([0, 1, 0, 1]), 2, np.random.default_rng(0))
    first = model.logits(np.array([9, 2]))
    monkeypatch.setattr("neat_backend.models.classifier.penultimate", None)
    assert np.array_equal(model.logits(np.array([2, 9])), first[::-1])
    assert model.logits(np.array([], np.int64)).shape == (0, 2)


def test_the_classifier_sees_images_and_learns_from_generated_ones(data):
    learner = ImageLearner(data.images, "resnet18", epochs=1, device="cpu")
    inputs = learner.inputs(np.array([0, 1]))
    assert (inputs.shape, inputs.dtype) == ((2, 3, 8, 8), np.float32)
    assert np.array_equal(np.rint(inputs * 255).astype(np.uint8).transpose(0, 2, 3, 1), data.images[:2])
    made = Generated(inputs, np.array([0, 1]))
    model = learner.fit(np.array([2]), np.array([0]), 2, np.random.default_rng(0), generated=made, temperature=0.5)
    assert model.logits(np.array([0])).shape == (1, 2)
