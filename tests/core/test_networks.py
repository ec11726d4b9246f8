from __future__ import annotations

import pytest
import torch

from neat_backend.core.networks import NETWORKS, activations, build_network, last_linear
from neat_backend.errors import SettingsError


@pytest.mark.parametrize(("name", "side"), [*((name, 8) for name in NETWORKS), ("vgg16", 28)])
@torch.no_grad()
def test_every_network_takes_small_images(name, side):
    network = build_network(name, 3, side).eval()
    seen, logits = activations(network, torch.rand(2, 3, side, side))
    assert logits.shape == (2, 3)
    assert torch.allclose(last_linear(network)(seen), logits)


def test_ordinary_images_get_the_ordinary_stem():
    assert build_network("resnet34", 2, 64).conv1.stride == (2, 2)
    assert build_network("resnet34", 2, 63).conv1.stride == (1, 1)


def test_a_name_that_is_no_network_is_refused():
    with pytest.raises(SettingsError, match="resnet18, resnet34"):
        build_network("alexnet", 2, 32)
