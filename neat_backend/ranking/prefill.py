"""Which choice an annotator finds filled in. docs/prefilling.md measures the rules."""

from __future__ import annotations

from neat_backend.records import Ranked

MODES = ("agree", "vote", "classifier", "off")  # of NEAT_PREFILL

AGREEING = 0.9  # share of the K nearest labelled tasks that have the class
LIKELY_KNOWN = 0.8  # probability that the task is of a known class at all
TRUSTED_FROM = 0.75  # share of the last labels that the classifier in force was right on before it learnt them
LEAST_TESTED = 20  # of fewer labels, a share means little


def filled_in(ranked: Ranked, prefill: str, tested: tuple[int, int], k: int) -> str | None:
    """The choice that an annotator finds filled in; None = none.

    tested: how often the classifier in force was right on the last labels, and of how many.

    A wrong one costs a click, and one that is not noticed costs a label. So by default it takes two that agree, the
    classifier in force and nearly all neighbours, and a classifier that has proved right: what stands first in the
    order is there because they disagree.
    """
    if prefill == "agree":
        agree = ranked.predicted == ranked.vote and ranked.votes >= AGREEING * k
        return ranked.predicted if agree and ranked.known_chance >= LIKELY_KNOWN and _trusted(*tested) else None
    if prefill == "off" or not ranked.candidate:
        return None
    return ranked.vote if prefill == "vote" else ranked.predicted


def _trusted(right: int, of: int) -> bool:
    return of >= LEAST_TESTED and right >= TRUSTED_FROM * of
