"""Numbers for a project's lead: labels of each annotator, pace, and the work left to the target.

The database counts them; results are cached until something changes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import date, timedelta
from typing import Any, TypeVar

from neat_backend.errors import BadLabelConfig, BadRequest
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.records import Label
from neat_backend.service.overview import interval
from neat_backend.service.service import Service
from neat_backend.store import answers, people, projects
from neat_backend.store.answers import Content, Pair, Work
from neat_backend.store.arrays import ProjectArrays

T = TypeVar("T")

LEAST_TIMED = 10  # answers with a measured time, below which no pace is given
LATEST_DAYS = 7  # days of the pace
SHOWN_DAYS = 30
LATEST_BATCHES = 3  # rounds of the present share of known labels
LOWEST_TARGET, HIGHEST_TARGET = 0.5, 0.99


class Lead:
    """Annotators and pace of the service's projects."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._kept: dict[tuple[int, str], tuple[object, Any]] = {}

    def people(self, project: int) -> list[dict[str, Any]]:
        """Its annotators, JSON-ready, the most labels first. Raises UnknownProject."""
        found = self._service.project(project)
        self._service.insight(project)  # downloads the files
        arrays = ProjectArrays(self._service.settings.data_dir, project)
        known = people.read(arrays)
        try:
            config = label_config.read(found.label_config, self._service.settings.for_project(found.extra_params))
        except BadLabelConfig:
            config = None
        work = self._of(project, "work", answers.work)
        compared = {} if config is None else agreement(self._of(project, "pairs", answers.pairs), config)
        rows = []
        for one in work:
            who = known.get(one.annotator, people.Person()) if one.annotator is not None else people.Person()
            same, of = compared.get(one.annotator, (0, 0))
            rows.append(
                {
                    "annotator": one.annotator,
                    "name": who.name,
                    "labels": one.labels,
                    "skips": one.skips,
                    "hours": one.seconds / 3600,
                    "per_hour": per_hour(one),
                    "others": {"same": same, "of": of},
                    "vote": {"same": who.agreed, "of": who.compared},
                }
            )
        return sorted(rows, key=lambda row: (-row["labels"], row["annotator"] or 0))

    def pace(self, project: int) -> dict[str, Any]:
        """Labels a day, and what is left to the project's target, JSON-ready. Raises UnknownProject."""
        insight, rounds = self._service.insight(project), self._service.rounds(project)
        target = insight["target"]
        days = series(self._of(project, "days", answers.days))
        work = self._of(project, "work", answers.work)
        needed = labels_needed(insight, rounds, target)
        hourly = per_hour(Work(None, 0, 0, sum(one.timed for one in work), sum(one.seconds for one in work)))
        latest = [one["labels"] for one in days[-LATEST_DAYS:]]
        daily = sum(latest) / len(latest) if latest else None
        return {
            "target": target,
            "days": days[-SHOWN_DAYS:],
            "per_day": daily,
            "per_hour": hourly,
            "labels_needed": needed,
            "hours_needed": _over(needed, hourly),
            "days_needed": _over(needed, daily),
        }

    def set_target(self, project: int, share: object) -> float:
        """Store the target: the share of the known images to find. Raises UnknownProject or BadRequest."""
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise BadRequest(
                f"found={str(share)[:100]!r}: give a share from {LOWEST_TARGET} to {HIGHEST_TARGET}", "found"
            )
        if not LOWEST_TARGET <= share <= HIGHEST_TARGET:
            raise BadRequest(f"found={share!r}: give a share from {LOWEST_TARGET} to {HIGHEST_TARGET}", "found")
        with self._service.database.begin() as conn:
            projects.update(conn, projects.known(conn, project).id, target=float(share))
        return float(share)

    def _of(self, project: int, name: str, count: Callable[[Any, int], T]) -> T:
        """The cached counts, or new ones where annotations may have changed since."""
        with self._service.database.read() as conn:
            found = projects.known(conn, project)
            of = (found.applied_event, found.synced_at, found.compared_at, found.created_at)
            before = self._kept.get((project, name))
            if before is None or before[0] != of:
                before = self._kept[project, name] = (of, count(conn, project))
        value: T = before[1]
        return value


def per_hour(work: Work) -> float | None:
    """Labels an hour of work; None = too few labels.

    Worked example: answers at 0, 20, 40 and 1000 s. The last gap is a break: 2 labels in 40 s, 180 an hour.
    """
    return 3600 * work.timed / work.seconds if work.timed >= LEAST_TIMED and work.seconds else None


def agreement(pairs: Sequence[Pair], config: LabelConfig) -> dict[int | None, tuple[int, int]]:
    """By annotator: answers equal to another annotator's on the same task, and all that can be compared.

    A task that three have answered gives each of them two comparisons. An answer that is no label is not compared.
    """
    read: dict[Content, Label] = {}
    for pair in pairs:
        for content in (pair.one_said, pair.other_said):
            if content not in read:
                read[content] = label_config.label_of(answers.choices_of(content), content.was_cancelled, config)
    found: dict[int | None, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for pair in pairs:
        one, other = read[pair.one_said], read[pair.other_said]
        if _is_label(one) and _is_label(other):
            for who in (pair.one, pair.other):
                same, of = found[who]
                found[who] = same + pair.tasks * (one == other), of + pair.tasks
    return dict(found)


def series(days: Mapping[int, int]) -> list[dict[str, Any]]:
    """Every day from the first label to the last one, those without labels too; the latest SHOWN_DAYS."""
    if not days:
        return []
    last = max(days)
    first = max(min(days), last - SHOWN_DAYS + 1)
    return [
        {"day": (date(1970, 1, 1) + timedelta(days=day)).isoformat(), "labels": days.get(day, 0)}
        for day in range(first, last + 1)
    ]


def labels_needed(
    insight: Mapping[str, Any], rounds: Sequence[Mapping[str, Any]], target: float
) -> dict[str, float] | None:
    """How many more labels find `target` of the known images, with a range; None = it can't be estimated yet.

    known images that are missing = target · (known + left) - known, for the estimate and both ends of its range. What
    a label finds is the share of known ones in the latest LATEST_BATCHES batches. At the low end it is that share's
    upper bound (Wilson, 95 %); at the high end what a random order finds in the pool, since the order finds less and
    less.

    Worked example: 60 known, 40 (20 to 60) left in a pool of 200, target 0.9: 30 (12 to 48) are missing. The latest
    batches found 30 of 60, at most 0.623: 60 labels (19 to 160).
    """
    left = insight["left"]
    if left is None:
        return None
    known, pool = insight["known"], max(insight["pool"], 1)

    def missing(of: float) -> float:
        return max(0.0, target * (known + of) - known)

    latest = list(rounds)[-LATEST_BATCHES:]
    queried, found = sum(one["queried"] for one in latest), sum(one["queried_known"] for one in latest)
    if not queried:
        queried, found = insight["labelled"], known
    bounds = interval(found, queried)
    if bounds is None or not found:
        return None

    def labels(of: float, share: float) -> float:
        return min(missing(of) / share if share else 0.0, float(insight["pool"]))

    low, middle = labels(left["low"], bounds[1]), labels(left["known"], found / queried)
    high = labels(left["high"], left["high"] / pool)
    return {"labels": middle, "low": min(low, middle), "high": max(high, middle)}


def _over(needed: Mapping[str, float] | None, rate: float | None) -> dict[str, float] | None:
    """`needed` in hours or days; rate: labels in one of them."""
    if needed is None or not rate or math.isnan(rate):
        return None
    return {"time": needed["labels"] / rate, "low": needed["low"] / rate, "high": needed["high"] / rate}


def _is_label(label: Label) -> bool:
    return label.choice is not None or label.invalid
