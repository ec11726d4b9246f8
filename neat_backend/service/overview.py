"""What people are shown of a project as a whole: how much is left, what a random order would have found, the map.

Answered from what the worker has left in the arrays (see insight.py), without PyTorch or scikit-learn, so that the web
process can.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neat_backend.records import SKIPPED, Round, WithoutLabel, in_words
from neat_backend.store import insights, prequential, snapshots
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.insights import LEAST_OF_EACH, UNLABELLED, Insight, States
from neat_backend.store.prefills import Kept
from neat_backend.store.prequential import SHOWN_FROM, SPEAKERS, Prequential

GO_ON, SOON, STOP, UNSURE, NOTHING_LEFT = "go on", "stop soon", "stop", "too early to say", "nothing left"
ALL_BUT_FOUND = 0.95  # share of the known images; when surely more are found, a lead can stop
FEW_IN_BATCH = 0.1  # share of a batch; when fewer are expected to be known, most of the work is lost
MEASURED = 3  # rounds that are looked at for whether the accuracy still moves
WILSON_Z = 1.96  # 95 %
IN_BATCH = -10  # in the map's marks: the first of the next batch, the second is -11, …
CLASSIFIERS = {"resnet18": "ResNet-18", "linear": "the linear classifier", "vote": "the neighbours' vote"}
_MOST_ID = 2**32  # the map keeps ids in four bytes


def describe(arrays: ProjectArrays, done: Sequence[Round]) -> dict[str, Any]:
    """How the project does and what is left of it, JSON-ready. done: its query rounds, first to last."""
    found = insights.read_insight(arrays)
    left = None if found is None or math.isnan(found.left) else found
    verdict, advice = advise(found, done)
    return {
        "labelled": found.labelled if found else 0,
        "known": found.known if found else 0,
        "pool": found.pool if found else 0,
        "k": found.k if found else 0,
        "left": None if left is None else {"known": left.left, "low": left.left_low, "high": left.left_high},
        "found": None if left is None else _found(left),
        "random": None if left is None else _share(left, 0, 0),
        "gain": None if left is None else _gain(left),
        "next_batch": {"size": found.head if found else 0, "known": left.in_head if left else None},
        "batches": [
            {
                "round": one.number,
                "precision": one.precision,
                "random": None if left is None else random_share(left, one),
            }
            for one in done
        ],
        "classes": _classes(found),
        "scores": {
            "candidates": found.candidates.tolist() if found else [],
            "others": found.others.tolist() if found else [],
        },
        "mistakes": [asdict(one) for one in found.mistakes] if found else [],
        "more_mistakes": found.more_mistakes if found else 0,
        "verdict": verdict,
        "advice": advice,
    }


def interval(right: int, of: int) -> tuple[float, float] | None:
    """Wilson's 95 % interval of a share, which keeps to [0, 1] where few were measured; None of none.

    Worked example: 8 of 10 → 0.490 … 0.943.
    """
    if of <= 0:
        return None
    share, z2 = right / of, WILSON_Z**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = WILSON_Z * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return max(0.0, middle - half), min(1.0, middle + half)


def random_share(found: Insight, round: Round) -> dict[str, float]:
    """What share of a batch would have been of known classes, had it been drawn at random from the pool of then.

    Worked example: 100 images, 20 labelled with 15 known, 25 ± 5 more estimated: 40 known in all. A batch that
    began with 10 labels, 5 of them known, was drawn from 90 images with 35 known: 0.39, 0.33 … 0.44.
    """
    return _share(
        found,
        round.known - round.queried_known,
        round.known + round.invalid - round.queried,
    )


def _share(found: Insight, known_before: int, labelled_before: int) -> dict[str, float]:
    """Of known ones in the pool that there was when so many were labelled."""
    pool = max(found.labelled + found.pool - labelled_before, 1)

    def share(left: float) -> float:
        return min(max((found.known + left - known_before) / pool, 0.0), 1.0)

    return {"share": share(found.left), "low": share(found.left_low), "high": share(found.left_high)}


def _found(found: Insight) -> dict[str, float]:
    """Which share of all known images is labelled."""

    def share(left: float) -> float:
        return found.known / max(found.known + left, 1e-9)

    return {"share": share(found.left), "low": share(found.left_high), "high": share(found.left_low)}


def _gain(found: Insight) -> dict[str, float]:
    """How many times as many labels of known classes there are as a random order would have brought."""
    here, random = found.known / max(found.labelled, 1), _share(found, 0, 0)
    # With any known label random's share is above 0, since that image is one of the pool's.
    ends = {"factor": random["share"], "low": random["high"], "high": random["low"]}
    return {name: here / share if share else 1.0 for name, share in ends.items()}


def _classes(found: Insight | None) -> list[dict[str, Any]]:
    """Labels of each class, and about how many of the pool are of it."""
    if found is None:
        return []
    columns = zip(found.classes, found.class_labels, found.class_left, strict=True)
    return [
        {"name": name, "labels": labels, "left": None if math.isnan(left) else left} for name, labels, left in columns
    ]


def classifier(arrays: ProjectArrays) -> dict[str, Any]:
    """Which classifier is in force and why, and how often each was right before it learnt a label; JSON-ready."""
    told = prequential.read(arrays)
    counts = {name: told.counts(name) for name in SPEAKERS}
    return {
        "in_force": told.in_force,
        "why": _why(told, counts),
        "tested": told.tested,
        **{name: {"right": right, "of": of} for name, (right, of) in counts.items()},
    }


def without_label(found: Sequence[WithoutLabel]) -> dict[str, Any]:
    """Answered tasks that have no label: how many, why, and the same in a sentence ("" = none); JSON-ready."""
    return {
        "tasks": sum(one.tasks for one in found),
        "reasons": [asdict(one) for one in found],
        "unexpected": any(one.reason != SKIPPED for one in found),
        "said": in_words(found),
    }


def prefilled(found: Kept) -> dict[str, Any]:
    """How many answers found a choice filled in and how many kept it, also in a sentence ("" = none); JSON-ready."""
    return {**asdict(found), "said": _prefilled(found)}


# in words


def _prefilled(found: Kept) -> str:
    if not found.answered:
        return ""
    answers = "1 answer" if found.answered == 1 else f"{found.answered:,} answers"
    kept = f", kept {_share_of(found.kept, found.filled)}" if found.filled else ""
    return f"Pre-filled {_share_of(found.filled, found.answered)} of {answers}{kept}."


def _share_of(part: int, whole: int) -> str:
    """In percent, never rounded up to all."""
    return f"{min(round(100 * part / whole), 100 if part == whole else 99)} %"


def _why(told: Prequential, counts: dict[str, tuple[int, int]]) -> str:
    """Which classifier is in force and why, in one sentence; "" = none yet."""
    if told.in_force not in CLASSIFIERS:
        return ""
    asked = told.why.partition(";")[0] if told.why.startswith("NEAT_CLASSIFIER=") else ""
    rival = "linear" if told.in_force == "resnet18" else "resnet18"
    (right, of), (rivals, of_rival) = counts[told.in_force], counts[rival]
    tested = of >= SHOWN_FROM
    why = f", as {asked} asks" if asked else ""
    if tested and of_rival >= SHOWN_FROM and not asked:
        why = ", since it was right more often" if right * of_rival > rivals * of else ""
        why = why or f", since {CLASSIFIERS[rival]} is not clearly better"
    said = f"{CLASSIFIERS[told.in_force]} is in force{why}"
    others = [name for name in SPEAKERS if name != told.in_force and counts[name][1] >= SHOWN_FROM]
    scores = [f"{CLASSIFIERS[name]} on {counts[name][0]} of {counts[name][1]}" for name in others]
    if tested:
        said += f": right on {right} of the last {of} labels before it learnt them"
        said += f"; {', '.join(scores)}" if scores else ""
    else:
        said += f": how often it is right is shown from {SHOWN_FROM} labels of your classes on, {of} are tested"
        said += f"; right before learning them: {', '.join(scores)}" if scores else ""
    return said[:1].upper() + said[1:] + "."


def advise(found: Insight | None, done: Sequence[Round]) -> tuple[str, list[str]]:
    """Whether to go on, in a word, and plain sentences that say why, the most important first."""
    if found is None or not found.labelled:
        return UNSURE, ["Nothing is labelled yet. The first batch is spread over the whole pool."]
    moved = _accuracy(done)
    if not found.pool:
        without = f", but for {found.answered:,} whose answer is no label" if found.answered else ""
        return NOTHING_LEFT, [f"Every image that could be read is labelled{without}.", *moved]
    if math.isnan(found.left):
        invalid = found.labelled - found.known
        return UNSURE, [
            f"Too few labels to estimate what the pool still holds: it takes {LEAST_OF_EACH} of your classes and"
            f" {LEAST_OF_EACH} that are none of them; there are {found.known} and {invalid}.",
            *moved,
        ]
    share, expected = _found(found), found.in_head / max(found.head, 1)
    by_chance = found.left / found.pool
    said = [
        f"{_about(found.left, found.left_low, found.left_high)} of the {found.pool:,} unlabelled images"
        f" {'is' if round(found.left) == 1 else 'are'} of your classes; so {_percent(share)} of them are found.",
        f"Of the next {found.head}, {_some(found.in_head)} would be of your classes by the model; drawn at random,"
        f" {_some(by_chance * found.head)}.",
        *moved,
    ]
    if share["low"] >= ALL_BUT_FOUND:
        return STOP, said
    if expected < FEW_IN_BATCH:
        return SOON, said
    if share["high"] - share["low"] > 0.5:
        said.insert(1, "That is a wide range: more labels will narrow it.")
    return GO_ON, said


def _accuracy(done: Sequence[Round]) -> list[str]:
    """Whether the accuracy has moved by more than its uncertainty over the last rounds."""
    measured = [one for one in done if one.held_out][-MEASURED:]
    if len(measured) < MEASURED:
        return []
    first, last = measured[0], measured[-1]
    before, now = interval(first.held_out_correct, first.held_out), interval(last.held_out_correct, last.held_out)
    assert before is not None
    assert now is not None
    if now[0] > before[1]:
        return [f"The classifier still gets better: its accuracy has risen since round {first.number}."]
    if now[1] < before[0]:
        return [f"The classifier's accuracy has fallen since round {first.number}: harder images, or wrong labels?"]
    return [f"The classifier's accuracy has not changed by more than its uncertainty since round {first.number}."]


def _some(count: float) -> str:
    return "hardly any" if count < 0.5 else f"about {round(count):,}"


def _about(count: float, low: float, high: float) -> str:
    """ "About 120 (80 to 150)" with no more digits than are known."""
    low, high = math.floor(low), math.ceil(high)
    return f"About {round(count):,} ({low:,} to {high:,})" if high >= 1 else "Hardly any"


def _percent(share: dict[str, float]) -> str:
    low, high = round(100 * share["low"]), round(100 * share["high"])
    return f"{low} to {high} %" if low < high else f"{low} %"


# the map


def places_tag(arrays: ProjectArrays) -> str:
    """Another text whenever `places` gives something else; "" = there is no map yet."""
    return arrays.snapshot_tag("map")


def marks_tag(arrays: ProjectArrays) -> str:
    """Another text whenever `marks` gives something else; "" = there is no map yet."""
    tags = [arrays.snapshot_tag(name) for name in ("map", "states", "head")]
    return f"{zlib.crc32('/'.join(tags).encode()):08x}-{len(tags[0])}" if tags[0] else ""


def places(arrays: ProjectArrays) -> bytes | None:
    """Where every task is on the map; None while there is none. Little-endian, eight bytes a task:

    uint32 n, uint32 check, uint32 [n] task ids ascending, uint16 [n, 2] places on a square of 65,535 steps.
    """
    found = insights.read_map(arrays)
    if found is None:
        return None
    shown = found.ids < _MOST_ID
    ids = found.ids[shown].astype("<u4")
    return _start(ids) + ids.tobytes() + found.places[shown].astype("<u2").tobytes()


def marks(arrays: ProjectArrays, batch_size: int) -> bytes | None:
    """What every task of the map is labelled with, in the map's order. Little-endian, two bytes a task:

    uint32 n, uint32 check (that of the map which it belongs to), int16 [n]: 0 … = place of the class among the head's,
    -1 = invalid, -3 = unlabelled, -10 = first of the next batch, -11 = second, …
    """
    found, states = insights.read_map(arrays), insights.read_states(arrays)
    if found is None:
        return None
    ids = found.ids[found.ids < _MOST_ID]
    codes: NDArray[np.int16] = np.full(len(ids), UNLABELLED, np.int16)
    head = snapshots.read_head(arrays)
    if states is not None and len(states.ids):
        at, there = _lookup(states.ids, ids)
        codes[there] = _renamed(states, head.classes if head else states.classes)[at[there]]
    batch = np.array([one.task for one in head.tasks[:batch_size]] if head else [], np.int64)
    if len(batch) and len(ids):
        at, there = _lookup(ids, batch)
        codes[at[there]] = (IN_BATCH - np.arange(len(batch)))[there]
    return _start(ids.astype("<u4")) + codes.astype("<i2").tobytes()


def _renamed(states: States, classes: Sequence[str]) -> NDArray[np.int16]:
    """The codes of `states` under the classes that there are now; a label whose class is gone counts as none."""
    if states.classes == tuple(classes):
        return states.codes
    places = {name: place for place, name in enumerate(classes)}
    now = np.array([*(places.get(name, UNLABELLED) for name in states.classes), 0], np.int16)
    return np.where(states.codes >= 0, now[np.maximum(states.codes, -1)], states.codes).astype(np.int16)


def _start(ids: NDArray[Any]) -> bytes:
    return np.array([len(ids), zlib.crc32(ids.tobytes())], "<u4").tobytes()


def _lookup(ids: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where each of `wanted` is in ascending `ids`, and whether it is there."""
    at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return at, ids[at] == wanted
