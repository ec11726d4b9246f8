"""Overview of a project: how much is left, what a random order would have found, the map.

Computed from the worker's files in the arrays (see insight.py), without PyTorch or scikit-learn, so that the web
process can run it.
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
from neat_backend.store.insights import LEAST_DRAWS, UNLABELLED, Insight, States
from neat_backend.store.prefills import Kept
from neat_backend.store.prequential import PREDICTORS, SHOWN_FROM, Prequential

GO_ON, SOON, STOP, UNSURE, NOTHING_LEFT = "go on", "stop soon", "stop", "too early to say", "nothing left"
TARGET = 0.95  # default share of the known images to find; when surely more are found, people can stop
FEW_IN_BATCH = 0.1  # share of a batch; when fewer are expected to be known, most of the work is wasted
MEASURED = 3  # rounds that decide whether the accuracy still changes
WILSON_Z = 1.96  # 95 %
IN_BATCH = -10  # in the map's marks: the first of the next batch, the second is -11, …
PREDICTED = -20_000  # unlabelled and predicted as the first class, -20,001 as the second, …
CLASSIFIERS = {"resnet18": "ResNet-18", "linear": "the linear classifier", "vote": "the neighbours' vote"}
_MOST_ID = 2**32  # the map keeps ids in four bytes


def describe(arrays: ProjectArrays, done: Sequence[Round], target: float = TARGET) -> dict[str, Any]:
    """The project's progress and what is left, JSON-ready. done: its query rounds, first to last."""
    found = insights.read_insight(arrays)
    left = None if found is None or math.isnan(found.left) else found
    verdict, advice = advise(found, done, target)
    return {
        "target": target,
        "labelled": found.labelled if found else 0,
        "known": found.known if found else 0,
        "pool": found.pool if found else 0,
        "k": found.k if found else 0,
        "left": None if left is None else {"known": left.left, "low": left.left_low, "high": left.left_high},
        "found": None if left is None else _found(left),
        "random": None if left is None else _share(left, 0, 0),
        "gain": None if left is None else _gain(left),
        "accuracy": None if found is None else _drawn_accuracy(found),
        "draws": found.draws if found else 0,
        "no_estimate": no_estimate(found) if left is None else "",
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
    """The expected share of known classes in a batch drawn at random from the pool at that time.

    Worked example: 100 images, 20 labelled with 15 known, 25 ± 5 more estimated: 40 known in all. A batch that
    began with 10 labels, 5 of them known, was drawn from 90 images with 35 known: 0.39, 0.33 … 0.44.
    """
    return _share(
        found,
        round.known - round.queried_known,
        round.known + round.invalid - round.queried,
    )


def _share(found: Insight, known_before: int, labelled_before: int) -> dict[str, float]:
    """The share of known tasks in the pool when so many were labelled."""
    pool = max(found.labelled + found.pool - labelled_before, 1)

    def share(left: float) -> float:
        return min(max((found.known + left - known_before) / pool, 0.0), 1.0)

    return {"share": share(found.left), "low": share(found.left_low), "high": share(found.left_high)}


def _found(found: Insight) -> dict[str, float]:
    """The share of all known images that is labelled."""

    def share(left: float) -> float:
        return found.known / max(found.known + left, 1e-9)

    return {"share": share(found.left), "low": share(found.left_high), "high": share(found.left_low)}


def _gain(found: Insight) -> dict[str, float]:
    """The number of known labels as a multiple of the number that a random order would have found."""
    here, random = found.known / max(found.labelled, 1), _share(found, 0, 0)
    # With any known label random's share is above 0, since that image is one of the pool's.
    ends = {"factor": random["share"], "low": random["high"], "high": random["low"]}
    return {name: here / share if share else 1.0 for name, share in ends.items()}


def _drawn_accuracy(found: Insight) -> dict[str, float] | None:
    """Of the linear classifier on known random draws that it had not learnt; None of too few."""
    of, right = found.draws_tested, found.draws_right
    bounds = interval(right, of)
    if bounds is None or of < LEAST_DRAWS:
        return None
    return {"share": right / of, "low": bounds[0], "high": bounds[1], "right": right, "of": of}


def _classes(found: Insight | None) -> list[dict[str, Any]]:
    """Labels of each class, and its estimated number in the pool."""
    if found is None:
        return []
    columns = zip(found.classes, found.class_labels, found.class_left, strict=True)
    return [
        {"name": name, "labels": labels, "left": None if math.isnan(left) else left} for name, labels, left in columns
    ]


def classifier(arrays: ProjectArrays) -> dict[str, Any]:
    """Which classifier is in force and why, and how often each was right before it learnt a label; JSON-ready."""
    results = prequential.read(arrays)
    counts = {name: results.counts(name) for name in PREDICTORS}
    return {
        "in_force": results.in_force,
        "why": _why(results, counts),
        "tested": results.tested,
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
    """A share in per cent, never rounded up to 100."""
    return f"{min(round(100 * part / whole), 100 if part == whole else 99)} %"


def _why(results: Prequential, counts: dict[str, tuple[int, int]]) -> str:
    """Which classifier is in force and why, in one sentence; "" = none yet."""
    if results.in_force not in CLASSIFIERS:
        return ""
    setting = results.why.partition(";")[0] if results.why.startswith("NEAT_CLASSIFIER=") else ""
    rival = "linear" if results.in_force == "resnet18" else "resnet18"
    (right, of), (rivals, of_rival) = counts[results.in_force], counts[rival]
    tested = of >= SHOWN_FROM
    why = f", as {setting} asks" if setting else ""
    if tested and of_rival >= SHOWN_FROM and not setting:
        why = ", since it was right more often" if right * of_rival > rivals * of else ""
        why = why or f", since {CLASSIFIERS[rival]} is not clearly better"
    said = f"{CLASSIFIERS[results.in_force]} is in force{why}"
    others = [name for name in PREDICTORS if name != results.in_force and counts[name][1] >= SHOWN_FROM]
    scores = [f"{CLASSIFIERS[name]} on {counts[name][0]} of {counts[name][1]}" for name in others]
    if tested:
        said += f": right on {right} of the last {of} labels before it learnt them"
        said += f"; {', '.join(scores)}" if scores else ""
    else:
        said += f": how often it is right is shown from {SHOWN_FROM} labels of your classes on, {of} are tested"
        said += f"; right before learning them: {', '.join(scores)}" if scores else ""
    return said[:1].upper() + said[1:] + "."


def advise(found: Insight | None, done: Sequence[Round], target: float = TARGET) -> tuple[str, list[str]]:
    """Whether to continue, as a verdict, and sentences that say why, the most important first."""
    if found is None or not found.labelled:
        return UNSURE, ["Nothing is labelled yet. The first batch is spread over the whole pool."]
    moved = _accuracy(done)
    if not found.pool:
        without = f", but for {found.answered:,} whose answer is no label" if found.answered else ""
        return NOTHING_LEFT, [f"Every image that could be read is labelled{without}.", *moved]
    if math.isnan(found.left):
        return UNSURE, [no_estimate(found), *moved]
    share, expected = _found(found), found.in_head / max(found.head, 1)
    by_chance = found.left / found.pool
    said = [
        f"{_about(found.left, found.left_low, found.left_high)} of the {found.pool:,} unlabelled images"
        f" {'is' if round(found.left) == 1 else 'are'} of your classes; so {_percent(share)} of them are found. That is"
        f" estimated from {found.draws} images that were drawn at random.",
        f"Of the next {found.head}, {_some(found.in_head)} would be of your classes by the model; drawn at random,"
        f" {_some(by_chance * found.head)}.",
        *moved,
    ]
    if share["low"] >= target:
        return STOP, said
    if expected < FEW_IN_BATCH:
        return SOON, said
    if share["high"] - share["low"] > 0.5:
        said.insert(1, "That is a wide range: more labels will narrow it.")
    return GO_ON, said


def no_estimate(found: Insight | None) -> str:
    """Why there is none."""
    if found is None:
        return "No estimate yet."
    if not found.random_share:
        return (
            "No estimate: no image is drawn at random, and the others are no sample of the pool. Set NEAT_RANDOM_SHARE"
            " (0.05 = one in 20) to get estimates."
        )
    return (
        f"No estimate yet: it takes {LEAST_DRAWS} labels of images that were drawn at random, as one in"
        f" {round(1 / found.random_share)} is; there {'is' if found.draws == 1 else 'are'} {found.draws}."
    )


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
    """A text that changes with the result of `places`; "" = there is no map yet."""
    return arrays.snapshot_tag("map")


def marks_tag(arrays: ProjectArrays) -> str:
    """A text that changes with the result of `marks`; "" = there is no map yet."""
    tags = [arrays.snapshot_tag(name) for name in ("map", "states", "head", "ranking")]
    return f"{zlib.crc32('/'.join(tags).encode()):08x}-{len(tags[0])}" if tags[0] else ""


def places(arrays: ProjectArrays) -> bytes | None:
    """The position of every task on the map; None while there is none. Little-endian, eight bytes a task:

    uint32 n, uint32 check, uint32 [n] task ids ascending, uint16 [n, 2] places on a square of 65,535 steps.
    """
    found = insights.read_map(arrays)
    if found is None:
        return None
    shown = found.ids < _MOST_ID
    ids = found.ids[shown].astype("<u4")
    return _start(ids) + ids.tobytes() + found.places[shown].astype("<u2").tobytes()


def marks(arrays: ProjectArrays, batch_size: int) -> bytes | None:
    """The label code of every task of the map, in the map's order. Little-endian, two bytes a task:

    uint32 n, uint32 check (that of the map which it belongs to), int16 [n]: 0 … = place of the class among the head's,
    -1 = invalid, -3 = unlabelled, -10 = first of the next batch, -11 = second, …, -20000 = unlabelled and predicted as
    the first class, -20001 as the second, …
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
    ranking = snapshots.read_ranking(arrays, head)
    if ranking is not None and len(ranking["ids"]) and len(ids):
        at, there = _lookup(ranking["ids"], ids)
        predicted = ranking["predicted"][at]
        shown = there & (predicted >= 0) & (codes == UNLABELLED)
        codes[shown] = PREDICTED - predicted[shown]
    batch = np.array([one.task for one in head.tasks[:batch_size]] if head else [], np.int64)
    if len(batch) and len(ids):
        at, there = _lookup(ids, batch)
        codes[at[there]] = (IN_BATCH - np.arange(len(batch)))[there]
    return _start(ids.astype("<u4")) + codes.astype("<i2").tobytes()


def _renamed(states: States, classes: Sequence[str]) -> NDArray[np.int16]:
    """The codes of `states` for the present classes; a label of a removed class counts as none."""
    if states.classes == tuple(classes):
        return states.codes
    places = {name: place for place, name in enumerate(classes)}
    now = np.array([*(places.get(name, UNLABELLED) for name in states.classes), 0], np.int16)
    return np.where(states.codes >= 0, now[np.maximum(states.codes, -1)], states.codes).astype(np.int16)


def _start(ids: NDArray[Any]) -> bytes:
    return np.array([len(ids), zlib.crc32(ids.tobytes())], "<u4").tobytes()


def _lookup(ids: NDArray[np.int64], wanted: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The index of each of `wanted` in ascending `ids`, and whether it is there."""
    at = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    return at, ids[at] == wanted
