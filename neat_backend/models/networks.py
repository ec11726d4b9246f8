"""The image networks that can be trained: ResNet-18, 34 and 50, VGG-16 (with batch normalisation).

Small images (below 64 pixels) get a 3×3 first convolution of stride 1 and no max-pool after it, as is usual for
CIFAR; VGG-16 then has one linear layer in place of three and as many max-pools as the image has halvings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torchvision import models

from neat_backend.errors import SettingsError

NETWORKS = ("resnet18", "resnet34", "resnet50", "vgg16")
ORDINARY_STEM_FROM = 64  # pixels; below, the 7×7 stride-2 stem and its max-pool would leave too few pixels
STEM, HEAD = "conv1.weight", "fc."  # of a ResNet's state dict
MOST_GROWTH = 7.0  # of a filter with a 49th of its energy in 3×3 of 7×7; an even one's is 7/3


def build_network(name: str, n_classes: int, side: int) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator, for images of side × side pixels.

    Raises SettingsError for an unknown name.
    """
    if name not in NETWORKS:
        raise SettingsError(f"classifier {name!r}: must be one of {', '.join(NETWORKS)}")
    if name == "vgg16":
        return models.vgg16_bn(num_classes=n_classes) if side >= ORDINARY_STEM_FROM else _small_vgg(n_classes, side)
    network: Any = models.get_model(name, weights=None, num_classes=n_classes)
    if side < ORDINARY_STEM_FROM:
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    return network


def load_fitting(network: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Copy the weights of a ResNet of the same depth into `network`, in place; its last layer stays as it is.

    A first convolution of 7×7 gives the centres of its filters to one of 3×3 (see `_centres`); of any other shape it
    is left out. Raises ValueError where `state` lacks another weight, has it in another shape, or has
    more.
    """
    own = network.state_dict()  # the network's own tensors, not copies
    stem = state.get(STEM)
    if stem is not None and stem.shape != own[STEM].shape:
        centred = stem.shape[2:] == (7, 7) and own[STEM].shape[2:] == (3, 3)
        state = {**state, STEM: _centres(stem) if centred else own[STEM]}
    wanted = [name for name in own if not name.startswith(HEAD) and not name.endswith("num_batches_tracked")]
    wrong = [name for name in wanted if getattr(state.get(name), "shape", None) != own[name].shape]
    if wrong:
        raise ValueError(f"{len(wrong)} of {len(wanted)} weights are missing or of another shape, {wrong[0]} first")
    more = [name for name in state if name not in own and not name.startswith(HEAD)]
    if more:  # the weights are of a deeper network
        raise ValueError(f"there are {len(more)} weights more than it has, {more[0]} first")
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(state[name])


def _centres(filters: torch.Tensor) -> torch.Tensor:
    """[n, c, 7, 7] -> [n, c, 3, 3]: the middle of each filter, scaled to the norm of all of it.

    A 3×3 stem of stride 1 is for small images, whose 3 pixels show as much as many pixels of a large one, so the middle
    of a 7×7 filter, at its own resolution, fits. Alone it would respond less, and the following batch normalisation,
    whose statistics come with the weights, expects the whole filter's response: for independent inputs, its standard
    deviation is the input's times the filter's norm. No filter is scaled by more than MOST_GROWTH: a filter that is
    empty in its middle would become amplified noise.
    """
    centres = filters[:, :, 2:5, 2:5].float()
    whole, part = filters.float().flatten(1).norm(dim=1), centres.flatten(1).norm(dim=1)  # [n], [n]
    growth = (whole / part.clamp_min(1e-12)).clamp_max(MOST_GROWTH)
    return centres * growth[:, None, None, None]


def _small_vgg(n_classes: int, side: int) -> nn.Module:
    layers = []
    for layer in models.vgg16_bn(num_classes=1, init_weights=False).features:
        if isinstance(layer, nn.MaxPool2d):
            if side < 2:
                continue
            side //= 2
        layers.append(layer)
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, n_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return network


def last_linear(network: nn.Module) -> nn.Linear:
    """The layer from penultimate activations to logits. Raises ValueError where there is none."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("the network has no linear layer")
    return linear[-1]


def activations(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images [b, 3, s, s] -> penultimate activations [b, h] and logits [b, C]."""
    seen: list[torch.Tensor] = []
    hook = last_linear(network).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits: torch.Tensor = network(images)
    finally:
        hook.remove()
    return seen[0], logits
