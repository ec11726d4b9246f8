from __future__ import annotations

import pytest
import torch

from neat_backend.errors import SettingsError
from neat_backend.models.networks import NETWORKS, activations, build_network, last_linear, load_fitting


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


def filled(network: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state dict of the network's shapes with other values."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(value.shape, generator=generator) + 0.1 if value.is_floating_point() else value + 7
        for name, value in network.state_dict().items()
    }


def test_weights_that_fit_are_loaded_and_the_last_layer_stays_fresh():
    network = build_network("resnet18", 3, 64)
    head = network.fc.weight.clone()
    state = filled(build_network("resnet18", 3, 64))
    load_fitting(network, state)
    now = network.state_dict()
    assert torch.equal(network.fc.weight, head)
    assert all(torch.equal(now[name], state[name]) for name in now if not name.startswith("fc.") and "num_" not in name)


def test_weights_for_a_thousand_classes_may_lack_the_counters_of_old_files():
    state = filled(build_network("resnet18", 1000, 64))
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    network = build_network("resnet18", 2, 64)
    load_fitting(network, state)
    assert torch.equal(network.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])


def test_a_small_stem_gets_the_middle_of_each_filter():
    network = build_network("resnet18", 2, 32)
    state = filled(build_network("resnet18", 2, 64))
    load_fitting(network, state)
    middle, loaded = state["conv1.weight"][:, :, 2:5, 2:5], network.conv1.weight.detach()
    assert torch.allclose(
        torch.nn.functional.cosine_similarity(loaded.flatten(1), middle.flatten(1)), torch.ones(64), atol=1e-5
    )
    assert torch.equal(network.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


@torch.no_grad()
def test_a_filters_response_keeps_its_size():
    """An even 7×7 filter of ones has norm 7, its middle 3: each weight becomes 7/3."""
    state = filled(build_network("resnet18", 2, 64))
    state["conv1.weight"] = torch.zeros(64, 3, 7, 7)
    state["conv1.weight"][0, 0] = 1
    state["conv1.weight"][1:] = torch.randn(63, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    network = build_network("resnet18", 2, 32)
    load_fitting(network, state)
    assert torch.allclose(network.conv1.weight[0, 0], torch.full((3, 3), 7 / 3))
    noise = torch.randn(8, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    small = network.conv1(noise)[:, :, 1:-1, 1:-1].std(dim=(0, 2, 3))
    large = torch.nn.functional.conv2d(noise, state["conv1.weight"]).std(dim=(0, 2, 3))
    assert torch.allclose(small / large, torch.ones(64), atol=0.1)


def test_a_filter_that_is_empty_in_its_middle_is_not_made_large():
    state = filled(build_network("resnet18", 2, 64))
    state["conv1.weight"][0] = 1
    state["conv1.weight"][0, :, 2:5, 2:5] = 1e-6
    state["conv1.weight"][1] = 0
    network = build_network("resnet18", 2, 32)
    load_fitting(network, state)
    assert network.conv1.weight[:2].abs().max() < 1e-4
    assert network.conv1.weight.isfinite().all()


def test_a_first_layer_of_another_shape_stays_fresh():
    network = build_network("resnet18", 2, 64)
    stem = network.conv1.weight.clone()
    state = filled(build_network("resnet18", 2, 32))  # 3×3
    load_fitting(network, state)
    assert torch.equal(network.conv1.weight, stem)
    assert torch.equal(network.layer1[0].conv1.weight, state["layer1.0.conv1.weight"])


@pytest.mark.parametrize("other", ["resnet34", "resnet50", "vgg16"])
def test_weights_of_another_network_are_refused_and_change_nothing(other):
    network = build_network("resnet18", 2, 64)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ValueError, match="weights"):
        load_fitting(network, build_network(other, 2, 64).state_dict())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
