"""Explains a task's place in the order: its neighbours, their vote, the classifier's prediction, its place.

Uses the store and the arrays, without PyTorch, FAISS or numba, so that the web process can run it. The numbers behind a
place are those that the worker published. The neighbours are searched here, exactly as the engine does it (features on
the grid, ties to the smaller id), among the labels in the store. Where the classes are kept in balance, the explanation
has the terms of `ranking.queues`' formula, so that a priority can be computed by hand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from neat_backend.errors import UnknownTask
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.ranking import formulas
from neat_backend.ranking.formulas import ASIDE
from neat_backend.ranking.linear_head import LinearHead
from neat_backend.records import Label, Project, Ranked, Round, because
from neat_backend.service import similar
from neat_backend.settings import Settings
from neat_backend.store import insights, kinds, prequential, rounds, snapshots, tasks
from neat_backend.store.arrays import ProjectArrays, image_key

UNLABELLED, LABELLED, INVALID, SKIPPED = "unlabelled", "labelled", "invalid", "skipped"
FAILED, PENDING = "failed", "pending"  # no features: the image can't be read, or is not encoded yet
_CLOSE = 1e-5  # inconsistencies nearer than this count as equal: probabilities are stored in single precision
_CLOSE_PRIORITY = 1e-4  # the root of the 2^-32 that qualities are rounded to, and the same
_MOST_NAMED = 3  # classes in a sentence


@dataclass(frozen=True)
class Neighbour:
    """A labelled task near the explained one."""

    task: int
    label: str | None  # None = invalid
    invalid: bool
    similarity: float  # cosine


@dataclass(frozen=True)
class _Found:
    """The stored data about the task."""

    state: str
    label: str | None
    without_label: str  # why an answer gave no label, in words
    error: str  # of its image
    encoded: bool
    neighbours: Sequence[Neighbour]  # nearest first
    classifier: str  # in force: "linear", "resnet18", or "" before either is
    probabilities: NDArray[np.float32] | None  # [C]; None = not classified
    known_chance: float | None  # by the linear classifier; None = there is none
    place: Ranked | None  # as published; None = not in the pool
    pool: int
    labels: Mapping[str, int]  # of each class, this task's included
    invalid: int  # labels
    published: tuple[int, int]  # known and invalid labels that the published order reflects
    any_label: bool  # of another task
    near_duplicates: Sequence[int]
    suspected: bool  # its label is among the likely mistakes


@dataclass(frozen=True)
class Balance:
    """The terms of a priority where the classes are kept in balance: √quality · weight."""

    spread: bool  # queried to find classes without a label; else it waits in a class's queue
    quality: float  # in a class's queue, known_chance · I / max I; in the spread, by its place there
    labels: float  # labels that its queue counts as having
    least: float  # the fewest that a queue counts as having
    least_of: str | None  # the class that has them; None = the search for classes without a label
    weight: float  # (1 + least) / (1 + labels + place), at most 1


def explain(conn: Connection, settings: Settings, project: Project, task: int) -> dict[str, Any]:
    """The explanation of one task, JSON-ready; settings are the project's own.

    Raises UnknownTask, or BadLabelConfig while the project's label config can't be used.
    """
    config = label_config.read(project.label_config, settings)
    arrays = ProjectArrays(settings.data_dir, project.id)
    found = _find(conn, arrays, settings, config, project.id, task)
    votes = Counter(one.label for one in found.neighbours if one.label is not None)
    limit = formulas.max_inconsistency(settings.k, len(config.classes))
    doubt = None
    if found.encoded:
        given = None if found.probabilities is None else [found.probabilities]
        doubt = float(formulas.inconsistency([[votes[name] for name in config.classes]], given)[0])
    known = sum(votes.values())
    candidate = bool(formulas.is_candidate(known, len(found.neighbours) - known, settings.known_rule))
    predicted = None
    if found.probabilities is not None:
        predicted = config.classes[int(np.argmax(found.probabilities))]
    place, behind, balance = found.place, False, None
    if place is not None:  # it is ranked by the worker's numbers
        stale = doubt is None or abs(place.inconsistency - doubt) > _CLOSE * limit
        behind = stale or (place.known_neighbours, place.candidate) != (known, candidate)
        known, candidate, doubt, predicted = (
            place.known_neighbours,
            place.candidate,
            place.inconsistency,
            place.predicted,
        )
        # Neither drawn, nor set aside, nor a repeat.
        waits = found.state == UNLABELLED and not place.drawn and place.priority > ASIDE
        if _leads(settings) and settings.rerank == "live" and waits:  # a batch's order is kept
            counts = [found.labels.get(name, 0) for name in config.classes]
            balance = balanced(place, counts, found.invalid, config.classes, settings.k)
        if balance is not None:
            now = math.sqrt(balance.quality) * balance.weight
            behind = behind or abs(now - place.priority) > _CLOSE_PRIORITY
            behind = behind or (sum(counts), found.invalid) != found.published
    explanation = {
        "project": project.id,
        "task": task,
        "state": found.state,
        "label": found.label,
        "rank": place.rank if place else None,
        "pool": found.pool,
        "priority": place.priority if place else None,
        "inconsistency": doubt,
        "max_inconsistency": limit,
        "candidate": candidate,
        "rule": settings.known_rule,
        "k": settings.k,
        "known_neighbours": known,
        "predicted": predicted,
        "classifier": found.classifier,
        "known_chance": place.known_chance if place else found.known_chance,
        "queue": place.queue if place else None,
        "place": place.place if place else None,
        "drawn": bool(place and place.drawn),
        "balance": None if balance is None else vars(balance),
        "classes": [
            {
                "name": name,
                "votes": votes[name],
                "probability": None if found.probabilities is None else float(found.probabilities[at]),
                "labels": found.labels.get(name, 0),
            }
            for at, name in enumerate(config.classes)
        ],
        "invalid_votes": sum(one.invalid for one in found.neighbours),
        "invalid_labels": found.invalid,
        "neighbours": [vars(one) for one in found.neighbours],
        "near_duplicates": list(found.near_duplicates),
    }
    return explanation | {"reasons": _reasons(explanation, found, settings, balance, behind)}


def balanced(place: Ranked, counts: Sequence[int], invalid: int, classes: Sequence[str], k: int) -> Balance | None:
    """The terms of an unlabelled task's priority, as in `formulas.py`; counts [C]: labels of each class.

    None where it is in no queue although every class has a label: the order is an older one.
    """
    seen = [count for count in counts if count]
    searching = len(seen) < len(counts)
    if place.queue is None and not searching:
        return None
    search = float(formulas.label_counts(np.array(counts), sum(seen) + invalid)[len(counts)])
    queues: list[tuple[float, str | None]] = [
        (float(count), name) for count, name in zip(counts, classes, strict=True) if count
    ]
    least, least_of = min([*queues, *([(search, None)] if searching else [])], key=lambda one: one[0])
    has = search if place.queue is None else float(counts[classes.index(place.queue)])
    weight = min((1 + least) / (1 + has + place.place), 1.0)
    if place.queue is None:
        share = (place.priority - 2 * ASIDE) / (1 - 3 * ASIDE)
        quality = min((share / weight) ** 2, 1.0)  # no stored number has it
    else:
        quality = float(formulas.quality(place.inconsistency, place.known_chance, k, len(classes)))
    return Balance(place.queue is None, quality, has, least, least_of, weight)


def labels(conn: Connection, project: int, config: LabelConfig) -> Iterator[tuple[Label, int | None]]:
    """Every labelled task, by ascending id, with the key of its image; None = no image is named."""
    for answered, images in tasks.answered(conn, project):
        for task, answers in answered.items():
            label, image = label_config.resolve(task, answers, config), images.get(task)
            if label.invalid or label.choice is not None:
                yield label, None if image is None else image_key(image)


def nearest(
    arrays: ProjectArrays, kind: str, feature: NDArray[np.float32], labelled: Sequence[tuple[Label, int]], k: int
) -> list[Neighbour]:
    """The k labelled tasks whose features are nearest to `feature` [dim], nearest first, ties by smaller id.

    labelled: labels by ascending task, with the keys of their images; a task without features of that image is left
    out. Similarities are exact products rounded to single precision, as in `ranking.neighbors`.
    """
    ids = np.array([label.task for label, _ in labelled], np.int64)
    keys = np.array([key for _, key in labelled], np.int64)
    similarity = np.full(len(ids), -np.inf, np.float32)
    query = feature.astype(np.float64)
    for part in arrays.some(kind, ids):
        at = np.searchsorted(ids, part.ids)
        current = keys[at] == part.keys
        similarity[at[current]] = (part.values[current].astype(np.float64) @ query).astype(np.float32)
    best = np.lexsort((ids, -similarity))[:k]
    chosen = [(labelled[at][0], float(similarity[at])) for at in best.tolist() if similarity[at] > -np.inf]
    return [Neighbour(label.task, label.choice, label.invalid, near) for label, near in chosen]


def _find(
    conn: Connection, arrays: ProjectArrays, settings: Settings, config: LabelConfig, project: int, task: int
) -> _Found:
    image = tasks.image(conn, project, task) if 0 < task < 2**63 else None
    if image is None:
        raise UnknownTask(
            f"project {project} has no task {task} here; `neat-backend sync {project}` finds it if Label Studio has it",
            "task",
        )
    label = label_config.resolve(task, tasks.annotations_of(conn, project, [task]).get(task, []), config)
    head, insight = snapshots.read_head(arrays), insights.read_insight(arrays)
    key = None if image.image is None else image_key(image.image)
    kind = snapshots.features_kind(arrays, head)
    stored = arrays.one(kind, task) if kind else None
    feature = stored[1] if stored is not None and stored[0] == key and image.state != tasks.FAILED else None
    every = list(labels(conn, project, config))
    labelled = [(one, key) for one, key in every if key is not None and one.task != task]
    in_force = prequential.read(arrays).in_force
    probabilities, known_chance = _by_the_linear_head(arrays, config.classes, feature)
    if in_force != "linear":
        done = rounds.latest(conn, project)
        probabilities = None if feature is None else _of_the_round(arrays, done, config.classes, task, key)
    near = nearest(arrays, kind, feature, labelled, settings.k) if kind and feature is not None else []
    return _Found(
        state=_state(label, image.state),
        label=label.choice,
        without_label=because(label.set_aside, label.answer),
        error=image.error,
        encoded=feature is not None,
        neighbours=near,
        classifier=in_force,
        probabilities=probabilities,
        known_chance=known_chance,
        place=snapshots.place(arrays, head, task),
        pool=head.unlabelled if head else 0,
        labels=Counter(one.choice for one, _ in every if one.choice is not None),
        invalid=sum(one.invalid for one, _ in every),
        published=(head.known, head.invalid) if head else (0, 0),
        any_label=bool(labelled),
        near_duplicates=similar.groups(arrays).with_task(task),
        suspected=insight is not None and any(one.task == task for one in insight.mistakes),
    )


def _by_the_linear_head(
    arrays: ProjectArrays, classes: Sequence[str], feature: NDArray[np.float32] | None
) -> tuple[NDArray[np.float32] | None, float | None]:
    """The linear classifier's probabilities [C], and that of a known class; None where it can't predict."""
    found = prequential.read_head(arrays)
    if feature is None or found is None or found.keys() != {one.name for one in fields(LinearHead)}:
        return None, None
    head = LinearHead(**found)
    if head.weights.shape[1:] != feature.shape:  # of another encoder
        return None, None
    probabilities, chance = head.predict(feature[None].astype(np.float32))
    return _under(classes, probabilities[0].tolist(), head.classes), float(chance[0])


def _of_the_round(
    arrays: ProjectArrays, done: Round | None, classes: Sequence[str], task: int, key: int | None
) -> NDArray[np.float32] | None:
    """The last round's probabilities of the task for the present classes, [C]; None where there are none."""
    found = arrays.one(kinds.probabilities_kind(done.number), task) if done is not None else None
    if done is None or found is None or found[0] != key or len(found[1]) != len(done.classes):
        return None
    return _under(classes, found[1].tolist(), done.classes)


def _under(classes: Sequence[str], chances: Sequence[float], of: Sequence[str]) -> NDArray[np.float32] | None:
    """Probabilities `of` other classes converted to the present ones, [C]; None where nothing is left."""
    by_name = dict(zip(of, chances, strict=True))
    carried = np.array([by_name.get(name, 0.0) for name in classes], np.float32)
    if tuple(classes) == tuple(of):
        return carried
    return carried / carried.sum() if carried.sum() > 0 else None


def _state(label: Label, image: str) -> str:
    if label.invalid or label.choice is not None:
        return INVALID if label.invalid else LABELLED
    if image != tasks.READY:
        return FAILED if image == tasks.FAILED else PENDING
    return SKIPPED if label.set_aside else UNLABELLED


# in words


def _leads(settings: Settings) -> bool:
    """Whether the order keeps the classes in balance."""
    return settings.balanced and settings.strategy == "neat"


def _reasons(
    explanation: dict[str, Any], found: _Found, settings: Settings, balance: Balance | None, behind: bool
) -> list[str]:
    """Plain sentences, the most important first."""
    said = list(_about_its_place(explanation, found, settings))
    if not found.encoded:
        return said
    leads = _leads(settings)
    drawn = found.place is not None and found.place.drawn
    if leads and found.place is not None and not drawn and found.state == UNLABELLED and found.place.priority > ASIDE:
        said += _about_its_queue(explanation)
    if balance is not None:
        said += _about_the_balance(explanation, balance)
    if not found.any_label:
        equal = "" if leads else ": all tasks count as equal, and a seed spreads them"
        return [*said, f"Nothing else is labelled yet{equal}."]
    said += _about_its_neighbours(explanation, settings.known_rule, leads)
    said += _about_the_classifier(explanation, found)
    if behind:
        said.append("Labels or rounds have come in since this order was made; it will be another one in a moment.")
    return said


def _about_its_place(explanation: dict[str, Any], found: _Found, settings: Settings) -> Iterator[str]:
    if found.state == LABELLED:
        yield f"It is labelled “{found.label}”, so it is not queried again."
    elif found.state == INVALID:
        yield "It is marked as none of the classes, so it is not queried again."
    elif found.state == FAILED:
        yield (
            f"It can't be ranked, because its image failed: {found.error or 'no reason was kept'}. Once that is mended,"
            f" `neat-backend retry-images {explanation['project']}` tries again."
        )
    elif not found.encoded:
        yield "Its image has not been encoded yet, so nothing can be said of its neighbours."
    elif found.place is None:
        yield "It is not in the published order yet."
    else:
        yield f"It is number {found.place.rank + 1} of {found.pool} unlabelled tasks."
    if found.state == UNLABELLED and found.place is not None and found.place.drawn:
        yield (
            f"It was drawn at random, as {settings.random_share:.0%} of the tasks asked for are: from these the"
            " dashboard estimates what the pool holds."
        )
    elif found.state == UNLABELLED and found.place is not None and found.place.priority <= ASIDE:
        yield "A near-duplicate of it is labelled or comes first, so it waits until all others are answered."
    if found.state == SKIPPED:
        yield f"Somebody has answered it without a label ({found.without_label}), so all others come first."
    elif found.place is not None and settings.strategy != "neat":
        yield f"The order of the next tasks is planned by the strategy {settings.strategy}; below is NEAT's view."


def _about_its_queue(explanation: dict[str, Any]) -> Iterator[str]:
    """Describe the tasks of its queue."""
    queue, before = explanation["queue"], explanation["place"]
    better = f"{before} of them {'comes' if before == 1 else 'come'} before it" if before else "it is the first of them"
    classes = explanation["classes"]
    unseen = [one["name"] for one in classes if not one["labels"]]
    if queue is not None and explanation["predicted"] is None and not any(one["votes"] for one in classes):
        yield f"Nothing tells its class yet. It waits with the tasks of “{queue}”: {better}."
    elif queue is not None:
        yield f"It waits with the tasks that are likeliest to be “{queue}”: {better}."
    elif unseen:
        yield (
            "It is one of the tasks that are spread over the pool, to find the classes that have no label yet"
            f" ({_named(unseen)}): {better}."
        )


def _about_the_balance(explanation: dict[str, Any], balance: Balance) -> Iterator[str]:
    """Describe the terms of its priority."""
    queue, before, has = explanation["queue"], explanation["place"], balance.labels
    if balance.spread:
        yield f"The search for these classes counts as having {has:.4g} labels; {_about_the_least(balance)}."
        yield f"Its quality is {balance.quality:.3f}, by its place in the spread."
    else:
        yield f"“{queue}” has {has:.0f} label{'' if has == 1 else 's'}; {_about_the_least(balance)}."
        scaled = min(explanation["inconsistency"] / explanation["max_inconsistency"], 1.0)
        yield (
            f"Its quality is {balance.quality:.3f} = {explanation['known_chance']:.3f} · {scaled:.3f}: the probability"
            " that it is of a known class, times its share of the largest inconsistency."
        )
    most = ", at most 1" if 1 + balance.least > 1 + has + before else ""
    yield (
        f"Its weight is {balance.weight:.3f} = (1 + {balance.least:.4g}) / (1 + {has:.4g} + {before}){most}: the fewest"
        f" labels, over its own queue's and the tasks before it. Its priority is √{balance.quality:.3f} ·"
        f" {balance.weight:.3f} = {explanation['priority']:.4f}."
    )


def _about_the_least(balance: Balance) -> str:
    if balance.least >= balance.labels:
        return "none has fewer"
    if balance.least_of is None:
        return f"the search for classes without a label counts as {balance.least:.4g}"
    return f"“{balance.least_of}” has the fewest, {balance.least:.0f}"


def _named(names: Sequence[str]) -> str:
    """ "“cat”, “dog”, “owl” and 4 more"."""
    shown = ", ".join(f"“{name}”" for name in names[:_MOST_NAMED])
    return shown if len(names) <= _MOST_NAMED else f"{shown} and {len(names) - _MOST_NAMED} more"


def _about_its_neighbours(explanation: dict[str, Any], rule: str, leads: bool) -> Iterator[str]:
    there, known = len(explanation["neighbours"]), explanation["known_neighbours"]
    if not there:
        yield "No labelled task has been encoded yet that could be its neighbour."
        return
    all_of = f"its {there} nearest labelled tasks" if there > 1 else "its nearest labelled task"
    if there < explanation["k"]:
        yield f"Only {there} of the {explanation['k']} neighbours that are looked at are there: more labels are needed."
    if leads:
        which = f"{known} of {all_of}" if there > 1 else f"{all_of[:1].upper()}{all_of[1:]}"
        verb = "are" if there > 1 and known != 1 else "is"
        yield f"{which} {verb} {'' if there > 1 or known else 'not '}of a known class."
        return
    if explanation["candidate"]:
        share = "all" if known == there else f"{known}"
        which = f"{share} of {all_of}" if there > 1 else all_of
        yield f"It is held to be of a known class, since {which} {'are' if there > 1 and known != 1 else 'is'}."
        return
    needed = "all" if rule == "all" else "most"
    yield (
        f"It is not held to be of a known class: {known} of {all_of} {'is' if known == 1 else 'are'}, and {needed}"
        " would have to be. So it comes after the tasks that are, among its like by how many of them are known."
    )


def _about_the_classifier(explanation: dict[str, Any], found: _Found) -> Iterator[str]:
    votes = {one["name"]: one["votes"] for one in explanation["classes"] if one["votes"]}
    ranked = sorted(votes, key=lambda name: -votes[name])
    voted = ", ".join(f"{votes[name]} for “{name}”" for name in ranked) or "none for a class"
    if explanation["invalid_votes"]:
        voted += f", {explanation['invalid_votes']} for none of the classes"
    if found.state in (LABELLED, INVALID):
        yield f"Its neighbours' votes: {voted}."
        mostly_invalid = explanation["invalid_votes"] > sum(votes.values())
        without = found.state == LABELLED and ranked and votes.get(found.label or "", 0) == 0
        but_known = found.state == INVALID and ranked and not explanation["invalid_votes"]
        if found.suspected or without or but_known or (found.state == LABELLED and mostly_invalid):
            yield "None or few of them agree with its label: worth a second look."
    else:
        yield f"The neighbours' votes: {voted}."
    if explanation["predicted"] is None:
        if explanation["classifier"] == "linear":
            yield "There is no classifier yet: it takes labels of two kinds. Until then every class is equally likely."
        else:
            yield "No classifier has seen it yet: until the next round every class counts as equally likely."
        return
    chance = {one["name"]: one["probability"] for one in explanation["classes"]}.get(explanation["predicted"])
    sure = f" with probability {chance:.2f}" if chance is not None else ""
    doubt, limit = explanation["inconsistency"], explanation["max_inconsistency"]
    agrees = not ranked or votes.get(explanation["predicted"], 0) == votes[ranked[0]]
    word = "which agrees with them" if agrees and ranked else "which differs" if ranked else "with no vote to compare"
    name = "linear classifier" if explanation["classifier"] == "linear" else "classifier"
    yield (
        f"The {name} says “{explanation['predicted']}”{sure}, {word}: inconsistency {doubt:.2f} of at most {limit:.2f};"
        " the higher it is, the more a label teaches."
    )
