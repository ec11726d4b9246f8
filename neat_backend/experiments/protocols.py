"""Protocols of experiments: queries of B labels with strategies, or one label at a time with the engine's orders."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

from neat_backend.errors import SettingsError
from neat_backend.ranking.pool import TARGET_PRECISION

if TYPE_CHECKING:
    from typing_extensions import Self

CLASSIFIERS = ("linear", "resnet18", "resnet34", "resnet50", "vgg16")


@dataclass(frozen=True)
class Values:
    """Common methods of both protocols.

    kind: as --protocol names it. compared: what it compares. may_vary: what --vary may name.
    """

    kind: ClassVar[str]
    compared: ClassVar[str]
    may_vary: ClassVar[tuple[str, ...]]

    dataset: str

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The protocol of these values. Raises SettingsError for invalid ones."""
        try:
            return cls(**values)
        except TypeError as error:
            raise SettingsError(f"this is no protocol of an experiment: {error}") from None

    def changed(self, **values: Any) -> Self:
        """The protocol with the values that are not None replaced. Raises SettingsError for an unknown one."""
        changes = {name: value for name, value in values.items() if value is not None}
        for name in changes.keys() - self.as_dict().keys():
            raise SettingsError(
                f"--{name.replace('_', '-')} means nothing to the {self.kind} protocol; leave it out, or choose "
                "another --protocol or --preset"
            )
        return dataclasses.replace(self, **changes)

    def varied(self, name: str, text: str) -> Self:
        """The protocol with one of may_vary set from text. Raises SettingsError if it can't be parsed."""
        if name not in self.may_vary:
            raise SettingsError(f"--vary {name!r}: must be one of {', '.join(self.may_vary)}")
        kind = get_type_hints(type(self))[name]
        try:
            value: Any = kind(text) if kind in (int, float) else text
            return self.changed(**{name: value})
        except ValueError:
            raise SettingsError(f"--vary {name}={text}: must be a number") from None

    def _check(self, classifiers: tuple[str, ...], **least: int) -> None:
        """Raise SettingsError for numbers that are too small and unknown words."""
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise SettingsError(f"--{name.replace('_', '-')} {value}: must be at least {smallest}")
        for name, words in (("classifier", classifiers), ("rule", ("all", "majority"))):
            if getattr(self, name) not in words:
                raise SettingsError(f"--{name} {getattr(self, name)!r}: must be one of {', '.join(words)}")


@dataclass(frozen=True)
class Protocol(Values):
    """All parameters of a batch experiment's figures except strategies and seeds.

    known       how many classes are known
    choice      which: "seed" = drawn anew by each seed; "first" = 0..C-1; "draw:N" = N draws, each with every seed;
                "draw:A-B" = draws A to B of the same list; or the classes themselves, "0,1;8,9"
    initial     labels to begin with: a share of the known classes' samples if below 1, else their number
    batch       B, labels of a query; rounds = queries
    """

    kind = "batch"
    compared = "strategy"
    may_vary = (
        "encoder",
        "k",
        "batch",
        "classifier",
        "initial",
        "known",
        "rounds",
        "epochs",
        "rule",
        "target_precision",
        "components",
    )

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
    target_precision: float = TARGET_PRECISION  # of neat_plus
    cut: int | None = None  # candidates kept, in batches, before they are ranked; None = all (the paper)
    components: int | None = None  # of the features, the strongest; None = the features as they are

    def __post_init__(self) -> None:
        self._check(
            CLASSIFIERS,
            known=1,
            batch=1,
            rounds=1,
            epochs=1,
            k=1,
            side=8,
            train_images=1,
            test_images=1,
            cut=1,
            components=1,
        )
        if not 0 < self.initial < float("inf") or (self.initial >= 1 and self.initial % 1):
            raise SettingsError(f"--initial {self.initial}: a share below 1, or a whole number of labels")
        if not 0 <= self.target_precision <= 1:
            raise SettingsError(f"--target-precision {self.target_precision}: must be between 0 and 1")


@dataclass(frozen=True)
class LiveProtocol(Values):
    """All parameters of a live experiment's figures except orders and seeds. The rest is as in `Protocol`.

    labels      number of labels to query, one at a time
    start       labels of each class to begin with; 0 = nothing is labelled
    batch       B, labels between two rounds of the orders that have rounds
    random_share  of the tasks asked for, drawn at random, as NEAT_RANDOM_SHARE; of all orders but random
    classifier  what such a round trains; accuracy is of a linear one for all orders
    """

    kind = "live"
    compared = "order"
    may_vary = ("encoder", "k", "batch", "classifier", "labels", "start", "known", "epochs", "rule", "random_share")

    known: int
    encoder: str
    data: str = ""
    side: int = 64
    train_images: int | None = None
    test_images: int | None = None
    choice: str = "seed"
    labels: int = 300
    start: int = 4
    batch: int = 50
    classifier: str = "linear"
    epochs: int = 100
    k: int = 10
    rule: Literal["all", "majority"] = "all"
    random_share: float = 0.0

    def __post_init__(self) -> None:
        self._check(
            ("linear", "resnet18"),
            known=1,
            labels=1,
            start=0,
            batch=1,
            epochs=1,
            k=1,
            side=8,
            train_images=1,
            test_images=1,
        )
        if not 0 <= self.random_share <= 0.5:
            raise SettingsError(f"--random-share {self.random_share}: must be from 0 to 0.5")


PROTOCOLS: dict[str, type[Protocol | LiveProtocol]] = {one.kind: one for one in (Protocol, LiveProtocol)}
