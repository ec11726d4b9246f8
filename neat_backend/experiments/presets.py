"""Ready-made experiments: the paper's protocol and smaller relatives of it, and the live protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from neat_backend.errors import SettingsError
from neat_backend.experiments.protocols import LiveProtocol, Protocol

PAPER_STRATEGIES = (
    "random",
    "uncertainty",
    "certainty",
    "coreset",
    "bgadl",
    "openmax",
    "badge",
    "mqnet",
    "lfosa",
    "neat",
    "neat_passive",
)
NEWER_STRATEGIES = ("eoal", "bual", "eaoa", "e2oal")  # open-set baselines of 2024 and later
ALL_STRATEGIES = (*PAPER_STRATEGIES, *NEWER_STRATEGIES, "neat_plus")
LIVE_ORDERS = ("random", "paper", "former", "live")
ALL_ORDERS = (*LIVE_ORDERS, "unbalanced", "neat_plus")


@dataclass(frozen=True)
class Preset:
    """A protocol with the strategies (or orders) and seeds that go with it."""

    protocol: Protocol | LiveProtocol
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    about: str


CLIP = "clip:ViT-B-32/openai"
LITE = "efficientnet_lite0"


def _small(dataset: str, known: int, initial: float, train_images: int = 12_000, **more: Any) -> Protocol:
    """The paper's protocol in a size for two cores: a linear classifier on features, B = 100, six queries."""
    fields = {"batch": 100, "rounds": 6, **more}
    return Protocol(dataset, known, initial, LITE, train_images=train_images, classifier="linear", **fields)


def _live(dataset: str, known: int, test_images: int, about: str) -> Preset:
    protocol = LiveProtocol(dataset, known, LITE, train_images=12_000, test_images=test_images, choice="draw:5")
    return Preset(protocol, LIVE_ORDERS, (0, 1, 2), f"live, {about}")


PRESETS = {
    "cifar10": Preset(
        Protocol("cifar10", 2, 0.01, CLIP), PAPER_STRATEGIES, (0, 1, 2), "the paper: 2 of 10 classes, 1 %, B = 400"
    ),
    "cifar100": Preset(
        Protocol("cifar100", 20, 0.08, CLIP), PAPER_STRATEGIES, (0, 1, 2), "the paper: 20 of 100, 8 %, B = 400"
    ),
    "tiny-imagenet": Preset(
        Protocol("tiny-imagenet", 40, 0.08, CLIP), PAPER_STRATEGIES, (0, 1, 2), "the paper: 40 of 200, 8 %, B = 400"
    ),
    "fashion-2of10": Preset(
        _small("fashion-mnist", 2, 0.08, choice="draw:5"),
        (*PAPER_STRATEGIES, "neat_plus"),
        (0, 1, 2),
        "the paper's protocol scaled: 2 known of 10, B = 100, 6 queries",
    ),
    "fashion-5of10": Preset(
        _small("fashion-mnist", 5, 0.01, choice="draw:5"),
        (*PAPER_STRATEGIES, "neat_plus"),
        (0, 1, 2),
        "the same with 5 known of 10 and 1 % initial labels",
    ),
    "fashion-quick": Preset(
        _small("fashion-mnist", 2, 0.08, train_images=3_000, test_images=1_000, batch=50, rounds=4),
        ALL_STRATEGIES,
        (0, 1),
        "all strategies, reduced: minutes on two cores",
    ),
    "cifar10-small": Preset(
        _small("cifar10", 4, 0.01, test_images=3_000, choice="draw:2"),
        ("random", "badge", "neat", "neat_plus"),
        (0,),
        "4 known of 10, two draws: minutes on two cores",
    ),
    "cifar100-small": Preset(
        _small("cifar100", 20, 0.08, test_images=5_000, choice="draw:2"),
        ("random", "badge", "neat", "neat_plus"),
        (0,),
        "20 known of 100, two draws",
    ),
    "digits-quick": Preset(
        Protocol("digits", 4, 20, LITE, batch=20, rounds=4, classifier="linear"),
        ("random", "uncertainty", "neat", "neat_passive"),
        (0, 1),
        "a minute, to see how it goes",
    ),
    "live-cifar10": _live("cifar10", 5, 3_000, "5 known of 10, five draws"),
    "live-cifar10-2of10": _live("cifar10", 2, 3_000, "the same with 2 known of 10"),
    "live-fashion": _live("fashion-mnist", 5, 3_000, "5 known of 10"),
    "live-cifar100": _live("cifar100", 20, 5_000, "20 known of 100"),
}


def preset(name: str) -> Preset:
    """Raises SettingsError for an unknown name."""
    if name not in PRESETS:
        raise SettingsError(f"--preset {name!r}: must be one of {', '.join(PRESETS)}")
    return PRESETS[name]
