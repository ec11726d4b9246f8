"""What one experiment does, and ready-made ones: the paper's protocol and smaller relatives of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from neat_backend.errors import SettingsError

PAPER_STRATEGIES = (
    "random", "uncertainty", "certainty", "coreset", "bgadl", "openmax", "badge", "mqnet", "lfosa",
    "neat", "neat_passive",
)  # fmt: skip
ALL_STRATEGIES = (*PAPER_STRATEGIES, "neat_plus")
CLASSIFIERS = ("linear", "resnet18", "resnet34", "resnet50", "vgg16")


@dataclass(frozen=True)
class Protocol:
    """All that the figures of an experiment depend on, strategies and seeds apart.

    known       how many classes are known
    choice      which: "seed" = drawn anew by each seed; "first" = 0..C-1; "draw:N" = N draws, each with every seed;
                or the classes themselves, "0,1;8,9"
    initial     labels to begin with: a share of the known classes' samples if below 1, else their number
    batch       B, labels asked for in a query; rounds = queries
    """

    dataset: str
    known: int
    initial: float
    encoder: str
    data: str = ""  # its folder
    side: int = 64  # pixels, of image folders
    train_images: int | None = None  # None = all
    test_images: int | None = None
    choice: str = "seed"
    batch: int = 400
    rounds: int = 9
    classifier: str = "resnet18"
    epochs: int = 100
    k: int = 10
    rule: Literal["all", "majority"] = "all"
    cut: int | None = None  # candidates kept, in batches, before they are ranked; None = all (the paper)

    def __post_init__(self) -> None:
        for name, least in (("known", 1), ("batch", 1), ("rounds", 1), ("epochs", 1), ("k", 1), ("side", 8)):
            if getattr(self, name) < least:
                raise SettingsError(f"--{name} {getattr(self, name)}: must be at least {least}")
        for name in ("train_images", "test_images", "cut"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"--{name.replace('_', '-')} {value}: must be at least 1")
        if not 0 < self.initial < float("inf") or (self.initial >= 1 and self.initial % 1):
            raise SettingsError(f"--initial {self.initial}: a share below 1, or a whole number of labels")
        if self.classifier not in CLASSIFIERS:
            raise SettingsError(f"--classifier {self.classifier!r}: must be one of {', '.join(CLASSIFIERS)}")
        if self.rule not in ("all", "majority"):
            raise SettingsError(f"--rule {self.rule!r}: must be all or majority")

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Protocol:
        """Raises SettingsError for what is no protocol."""
        try:
            return cls(**values)
        except TypeError as error:
            raise SettingsError(f"this is no protocol of an experiment: {error}") from None

    def changed(self, **values: Any) -> Protocol:
        """With the values that are not None in place of its own."""
        return dataclasses.replace(self, **{name: value for name, value in values.items() if value is not None})

    def varied(self, name: str, text: str) -> Protocol:
        """With another value, read from text, for one of VARIED. Raises SettingsError if it can't be read."""
        if name not in VARIED:
            raise SettingsError(f"--vary {name!r}: must be one of {', '.join(VARIED)}")
        kind = get_type_hints(Protocol)[name]
        try:
            value: Any = kind(text) if kind in (int, float) else text
            return self.changed(**{name: value})
        except ValueError:
            raise SettingsError(f"--vary {name}={text}: must be a number") from None

    @property
    def folder(self) -> Path | None:
        return Path(self.data) if self.data else None


VARIED = ("encoder", "k", "batch", "classifier", "initial", "known", "rounds", "epochs", "rule")


@dataclass(frozen=True)
class Preset:
    """A protocol with the strategies and seeds that go with it."""

    protocol: Protocol
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    about: str


CLIP = "clip:ViT-B-32/openai"
LITE = "efficientnet_lite0"

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
        Protocol("fashion-mnist", 2, 0.08, LITE, train_images=12_000, choice="draw:5", batch=100, rounds=6,
                 classifier="linear"),
        ALL_STRATEGIES, (0, 1, 2), "the paper's protocol scaled: 2 known of 10, B = 100, 6 queries",
    ),
    "fashion-5of10": Preset(
        Protocol("fashion-mnist", 5, 0.01, LITE, train_images=12_000, choice="draw:5", batch=100, rounds=6,
                 classifier="linear"),
        ALL_STRATEGIES, (0, 1, 2), "the same with 5 known of 10 and 1 % initial labels",
    ),
    "fashion-quick": Preset(
        Protocol("fashion-mnist", 2, 0.08, LITE, train_images=3_000, test_images=1_000, batch=50, rounds=4,
                 classifier="linear"),
        ALL_STRATEGIES, (0, 1), "all strategies, reduced: minutes on two cores",
    ),
    "digits-quick": Preset(
        Protocol("digits", 4, 20, LITE, batch=20, rounds=4, classifier="linear"),
        ("random", "uncertainty", "neat", "neat_passive"), (0, 1), "a minute, to see how it goes",
    ),
}  # fmt: skip


def preset(name: str) -> Preset:
    """Raises SettingsError for an unknown name."""
    if name not in PRESETS:
        raise SettingsError(f"--preset {name!r}: must be one of {', '.join(PRESETS)}")
    return PRESETS[name]
