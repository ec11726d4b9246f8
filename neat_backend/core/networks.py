"""The image networks that can be trained from scratch: ResNet-18, 34 and 50, VGG-16 (with batch normalisation).

Small images (below 64 pixels) get a 3×3 first convolution of stride 1 and no max-pool after it, as is usual for
CIFAR; VGG-16 then has one linear layer in place of three and as many max-pools as the image has halvings.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchvision import models

from neat_backend.errors import SettingsError

NETWORKS = ("resnet18", "resnet34", "resnet50", "vgg16")
ORDINARY_STEM_FROM = 64  # pixels; below, the 7×7 stride-2 stem and its max-pool would leave nothing to look at


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
    """The layer that makes logits of the penultimate activations. Raises ValueError where there is none."""
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError("the network has no linear layer")
    return linear[-1]


def activations(network: nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images [b, 3, s, s] -> what the last linear layer sees [b, h], and its logits [b, C]."""
    seen: list[torch.Tensor] = []
    hook = last_linear(network).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logits: torch.Tensor = network(images)
    finally:
        hook.remove()
    return seen[0], logits
