"""An encoder without weights: the picture itself, at 16 × 16 pixels. `NEAT_ENCODER=thumbnail`, or `thumbnail:8`."""

from pathlib import Path

from torch import nn

from neat_backend.models.encoders import Preprocessing


def load(name: str, weights: Path | None) -> tuple[nn.Module, Preprocessing, str]:
    """The network, what is done to a picture before it, and a text that differs wherever the network does."""
    side = int(name.partition(":")[2] or 16)
    network = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten())  # float32 [n, 3, 64, 64] -> [n, 3 · side²]
    return network, Preprocessing(64, 64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), f"thumbnail of {side}"
