"""The labelled tasks, one row each, read from the store in one transaction and bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from neat_backend.errors import BadRequest
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.records import Annotation, Label, Round
from neat_backend.settings import Settings
from neat_backend.store import projects, rounds, selections, tasks
from neat_backend.store.database import Database
from neat_backend.store.selections import Selection


@dataclass(frozen=True)
class Wanted:
    """Which labels are exported. min_agreement: share of the annotators, 0 to 1."""

    include_invalid: bool = False
    since: datetime | None = None  # labelled at this moment or later, by Label Studio's clock
    round: int | None = None  # labelled for this round: after the one before began, before it began
    min_agreement: float = 0.0


@dataclass(frozen=True)
class Row:
    """One labelled task; the fields are the columns of the tables, in their order."""

    task: int
    image: str  # as the task names it
    label: str  # "" for an invalid one
    invalid: bool
    annotators: int  # whose latest answer is a vote
    agreement: float  # share of these votes that are for the label
    labelled_at: str  # the last change of an annotation that is for the label, ISO 8601, UTC
    round: int | None  # the first round that began after it; None: no round has it yet
    rank: int | None = None  # in the order served when it was labelled, 0 = next; None: not labelled in that order
    inconsistency: float | None = None  # of that moment, Eq. 5


def rows(settings: Settings, database: Database, project: int, wanted: Wanted) -> Iterator[Row]:
    """The labelled tasks by ascending id, as of the first row's moment.

    Raises UnknownProject, BadLabelConfig, and BadRequest for invalid conditions.
    """
    if not 0 <= wanted.min_agreement <= 1:
        raise BadRequest(f"min_agreement={wanted.min_agreement}: give a share from 0 to 1", "min_agreement")
    if wanted.since is not None and wanted.since.tzinfo is None:
        raise BadRequest(f"since={wanted.since}: the time needs a zone, such as 2026-01-31T12:00+00:00", "since")
    with database.read() as conn:
        found = projects.known(conn, project)
        own = settings.for_project(found.extra_params)
        config = label_config.read(found.label_config, own)
        begun = rounds.all(conn, project)
        if wanted.round is not None and wanted.round not in {each.number for each in begun}:
            there = f"it has rounds 1 to {begun[-1].number}" if begun else "it has had no round yet"
            raise BadRequest(f"project {project} has no round {wanted.round}: {there}", "round")
        for answered, images in tasks.answered(conn, project):
            chosen = selections.of(conn, project, answered)
            for task, answers in answered.items():
                row = _row(task, images.get(task), answers, config, begun, chosen.get(task))
                if row is not None and _is_wanted(row, wanted):
                    yield row


def _row(
    task: int,
    image: str | None,
    answers: Sequence[Annotation],
    config: LabelConfig,
    begun: Sequence[Round],
    chosen: Selection | None,
) -> Row | None:
    """The task's row; None when it has no label."""
    label = label_config.resolve(task, answers, config)
    if label.choice is None and not label.invalid:
        return None
    latest: dict[tuple[bool, int], Annotation] = {}
    for answer in sorted(answers, key=lambda answer: (answer.updated_at, answer.id)):
        alone = answer.annotator is None  # counts as an annotator of its own
        latest[(alone, answer.id if answer.annotator is None else answer.annotator)] = answer
    votes = [vote for one in latest.values() if (vote := _vote(task, one, config)) is not None]
    same = [one for one in answers if _vote(task, one, config) == label]
    at = max(one.updated_at for one in same)
    number = next((each.number for each in begun if each.started_at is not None and each.started_at >= at), None)
    agreement = sum(vote == label for vote in votes) / len(votes)
    return Row(
        task,
        image or "",
        label.choice or "",
        label.invalid,
        len(votes),
        agreement,
        at.isoformat(),
        number,
        *((chosen.rank, chosen.inconsistency) if chosen is not None else ()),
    )


def _vote(task: int, answer: Annotation, config: LabelConfig) -> Label | None:
    label = label_config.resolve(task, [answer], config)
    return label if label.choice is not None or label.invalid else None


def _is_wanted(row: Row, wanted: Wanted) -> bool:
    return (
        (wanted.include_invalid or not row.invalid)
        and row.agreement >= wanted.min_agreement
        and (wanted.since is None or datetime.fromisoformat(row.labelled_at) >= wanted.since)
        and (wanted.round is None or row.round == wanted.round)
    )
