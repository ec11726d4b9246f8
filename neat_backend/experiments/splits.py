"""Which classes are known, which samples are labelled at the start, and where random numbers come from.

Every stream of random numbers is named by its purpose, the seed and the known classes. So all strategies of one seed
begin with the same labels and train alike, and a continued run draws the same numbers.
"""

from __future__ import annotations

import hashlib
import math
import re

import numpy as np
from numpy.typing import NDArray

from neat_backend.errors import SettingsError
from neat_backend.ranking.scores import INVALID

Known = tuple[int, ...]  # class numbers of the data set, ascending


def stream(*parts: int | str | Known) -> np.random.Generator:
    """A generator of its own for each list of parts; SeedSequence keeps different ones independent."""
    words = [int.from_bytes(hashlib.sha256(repr(part).encode()).digest()[:8], "big") for part in parts]
    return np.random.default_rng(np.random.SeedSequence(words))


def known_choices(choice: str, known: int, n_classes: int, seed: int) -> list[Known]:
    """The sets of known classes that go with a seed; see Protocol.choice.

    Draws are of one list, whose beginning does not depend on its length: a choice by draw:5 can be checked with other
    sets by draw:6-15.

    Raises SettingsError where the choice can't be parsed or does not fit the data set.
    """
    if not 1 <= known <= n_classes:
        raise SettingsError(f"--known {known}: the data set has {n_classes} classes")
    if choice == "first":
        return [tuple(range(known))]
    if choice == "seed":
        return [_sorted(stream("known classes", seed).permutation(n_classes)[:known])]
    if choice.startswith("draw:"):
        found = re.fullmatch(r"(?:(\d+)-)?(\d+)", choice[5:])
        first, last = (int(found[1] or 1), int(found[2])) if found else (0, 0)
        if not 1 <= first <= last:
            raise SettingsError(f"--choice {choice!r}: draw:N, or draw:A-B with 1 ≤ A ≤ B")
        return _draws(last, known, n_classes)[first - 1 :]
    try:
        sets = [_sorted(np.array([int(code) for code in part.split(",")])) for part in choice.split(";")]
    except ValueError:
        raise SettingsError(
            f"--choice {choice!r}: seed, first, draw:N, draw:A-B, or class numbers such as 0,1;8,9"
        ) from None
    for one in sets:
        if len(set(one)) != known or one[0] < 0 or one[-1] >= n_classes:
            raise SettingsError(f"--choice {choice!r}: each set needs {known} different classes in 0..{n_classes - 1}")
    return sets


def _draws(wanted: int, known: int, n_classes: int) -> list[Known]:
    """Different sets that use all classes about equally often: pieces of random permutations."""
    if wanted > math.comb(n_classes, known):
        raise SettingsError(f"--choice draw:{wanted}: there are only {math.comb(n_classes, known)} sets of {known}")
    rng = stream("drawn classes")
    drawn: list[Known] = []
    while len(drawn) < wanted:
        order = rng.permutation(n_classes)
        for start in range(0, n_classes - known + 1, known):
            one = _sorted(order[start : start + known])
            if one not in drawn and len(drawn) < wanted:
                drawn.append(one)
    return drawn


def _sorted(codes: NDArray[np.int64]) -> Known:
    return tuple(sorted(int(code) for code in codes))


def codes_of(labels: NDArray[np.int64], known: Known) -> NDArray[np.int64]:
    """The data set's labels [n] as class codes 0..C-1 in the order of `known`, INVALID for all others."""
    codes = np.full(max(int(labels.max(initial=0)), *known) + 1, INVALID, np.int64)
    codes[list(known)] = np.arange(len(known))
    return codes[labels]


def initial_labels(codes: NDArray[np.int64], initial: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples of known classes that are labelled before the first query, ascending.

    Drawn from all known samples alike, as the paper does, so that small classes get few. Raises SettingsError
    where there are too few known samples.
    """
    known = np.flatnonzero(codes >= 0)
    wanted = max(1, round(initial * len(known))) if initial < 1 else int(initial)
    if wanted > len(known):
        raise SettingsError(f"--initial {wanted}: the known classes have {len(known)} training images")
    return np.sort(rng.permutation(known)[:wanted])


def labels_of_each(codes: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Samples that are labelled before a live run: n of each class, in the order of the classes.

    Raises SettingsError where a class has fewer.
    """
    drawn = [rng.permutation(np.flatnonzero(codes == code))[:n] for code in range(codes.max(initial=-1) + 1)]
    if any(len(one) < n for one in drawn):
        raise SettingsError(f"--start {n}: a known class has {min(map(len, drawn))} training images; use more of them")
    return np.concatenate(drawn)
