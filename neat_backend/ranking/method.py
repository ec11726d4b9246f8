"""The settings of NEAT that decide an order."""

from __future__ import annotations

from dataclasses import dataclass

from neat_backend.ranking.scores import KnownRule


@dataclass(frozen=True)
class Method:
    """The method's settings.

    k: number of nearest labelled tasks. rule: how many of them must be known for a candidate. batch_size: B,
    labels per query round. seed: of ties and samples. balance: classes with few labels come first (`ranking.queues`);
    False gives the paper's order. skip_duplicates: of each group of near-duplicates, all but one come last
    (`ranking.repeats`). random_share: of the tasks asked for, drawn at random (`ranking.draws`).
    """

    k: int = 10
    rule: KnownRule = "all"
    batch_size: int = 50
    seed: int = 0
    balance: bool = False
    skip_duplicates: bool = False
    random_share: float = 0.0
