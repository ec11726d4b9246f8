"""The JSON of the answers, as models: for the OpenAPI document. Tests compare the answers with them."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from neat_backend.web.openapi import lead_responses


class Error(BaseModel):
    """What went wrong."""

    error: str = Field(description="In plain words, with the remedy.")
    field: str = Field(description="Path of what is wrong in the request; empty = all of it.")


class Health(BaseModel):
    """The web process is alive."""

    status: Literal["UP"]
    model_class: str
    version: str


class Queue(BaseModel):
    """Events that are still to be applied."""

    count: int
    oldest_seconds: float = Field(description="How long the oldest has waited; 0 when there is none.")


class ProjectQueue(Queue):
    """The same for one project."""

    set_aside: int = Field(description="Events that failed too often.")


class Readiness(BaseModel):
    """Whether a worker is at work and keeps up."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    status: Literal["READY", "NOT READY"]
    reasons: list[str]
    workers: list[str] = []
    queue: Queue = Queue(count=0, oldest_seconds=0)


class Connected(BaseModel):
    """The answer to a connection."""

    model_version: str


class Filed(BaseModel):
    """The request is in the queue; it is done when `applied_event` of the project's status has reached `event`."""

    event: int = Field(description="Its number in the queue.")


class Acknowledged(BaseModel):
    """The webhook is stored."""

    status: Literal["accepted", "ignored"]
    event: int = Field(description="Its number in the queue, 0 when the action is of no use here.")


class Prediction(BaseModel):
    """One task's prediction in Label Studio's form."""

    result: list[dict[str, Any]] = Field(description="The class that is filled in, if any.")
    score: float = Field(ge=0, le=1)
    model_version: str


class Predictions(BaseModel):
    """One for each task, in order."""

    results: list[Prediction]
    model_version: str | None


class Versions(BaseModel):
    """Model versions."""

    versions: list[str]


class Progress(BaseModel):
    """Of the reading or encoding that goes on; total 0 = none does."""

    done: int
    total: int
    eta_seconds: float | None


class Tasks(BaseModel):
    """How many tasks there are; pending + ready + failed = tasks."""

    tasks: int
    pending: int = Field(description="Whose image is not encoded yet.")
    ready: int
    failed: int = Field(description="Whose image can't be had.")
    annotated: int = Field(description="With an annotation, skips included.")
    annotations: int = Field(description="Without skips.")
    skips: int


class Labelled(BaseModel):
    """How many tasks are labelled."""

    known: int
    invalid: int = Field(description="With none of the classes.")


class WithoutLabel(BaseModel):
    """Answered tasks that have no label, of one reason."""

    reason: Literal["not in config", "several", "empty", "unreadable", "skipped"]
    answer: str = Field(description="The choice, where it is not in the label config; empty = several others.")
    tasks: int


class WithoutLabels(BaseModel):
    """Answered tasks that have no label."""

    tasks: int
    reasons: list[WithoutLabel] = Field(description="The most frequent first.")
    unexpected: bool = Field(description="Some were not just skipped.")
    said: str = Field(description="In one sentence; empty = there are none.")


class Tested(BaseModel):
    """How often a classifier was right on the last 100 labels of known classes, before it had learnt them."""

    right: int
    of: int = Field(description="Labels on which it said anything.")


class Classifier(BaseModel):
    """The classifier that gives probabilities and predicted classes."""

    in_force: Literal["", "resnet18", "linear"] = Field(description="Empty = none yet.")
    why: str = Field(description="In one sentence; empty = none is in force yet.")
    tested: int = Field(description="Labels in all.")
    resnet18: Tested
    linear: Tested
    vote: Tested


class Prefilled(BaseModel):
    """Of the published tasks that were answered, by what was published for them at that time."""

    answered: int
    filled: int = Field(description="With a choice filled in.")
    kept: int = Field(description="Of these, answered with that choice.")
    said: str = Field(description="In one sentence; empty = nothing is counted yet.")


class NearDuplicates(BaseModel):
    """Images whose features are nearly the same, by NEAT_DUPLICATE_SIMILARITY."""

    tasks: int
    groups: int
    skipped: bool = Field(description="One of each group is queried, the others come last.")
    said: str = Field(description="In one sentence; empty = there are none, or they were not looked for yet.")


class Round(BaseModel):
    """A query round: the labels since the last round, and the classifier trained after them."""

    number: int
    trigger: Literal["batch", "requested", "classes"]
    state: Literal["running", "done", "failed"]
    known: int
    invalid: int
    unlabelled: int
    queried: int = Field(description="Newly labelled since the round before.")
    queried_known: int
    classes: list[str]
    started_at: datetime | None
    finished_at: datetime | None
    seconds: float | None
    held_out: int
    held_out_correct: int
    error: str | None
    precision: float | None = Field(description="Share of the queried tasks that were of known classes.")
    held_out_accuracy: float | None


class Project(BaseModel):
    """The status of a project."""

    id: int
    title: str
    state: Literal["connecting", "syncing", "embedding", "ready", "blocked", "away", "disconnected"]
    detail: str = Field(description="The state in words, with the remedy where one is needed.")
    progress: Progress
    sampling: str
    model_version: str
    tasks: Tasks
    labelled: Labelled
    unlabelled: int
    without_label: WithoutLabels
    classes: list[str]
    classifier: Classifier
    prefilled: Prefilled
    near_duplicates: NearDuplicates
    queue: ProjectQueue
    received_through: int
    applied_event: int
    published_event: int
    caught_up: bool = Field(description="Everything received is in what annotators are served.")
    synced_at: datetime | None = Field(description="When it was last read as a whole.")
    reconciled_at: datetime | None = Field(description="When it was last found, or made, equal to Label Studio's data.")
    rounds: list[Round]


class Projects(BaseModel):
    """All connected projects."""

    projects: list[Project]


class Ranked(BaseModel):
    """An unlabelled task with the numbers behind its place."""

    task: int
    rank: int = Field(description="0 = label this one next.")
    priority: float = Field(ge=0, le=1)
    inconsistency: float = Field(ge=0)
    known_neighbours: int
    candidate: bool = Field(description="Held to be of a known class.")
    predicted: str | None
    vote: str | None = Field(description="The class that most known neighbours have; only for the first 2B tasks.")
    votes: int = Field(description="How many have it.")
    known_chance: float = Field(
        ge=0, le=1, description="Probability of a known class by the linear classifier; 1 without one."
    )
    queue: str | None = Field(
        description="The class whose tasks it waits with; nothing = spread over the pool, skipped or not balanced."
    )
    place: int = Field(description="How many of these come before it.")
    drawn: bool = Field(description="Asked for at random, for the estimates; told of the first 2B tasks.")


class Ranking(BaseModel):
    """A page of the order, best first."""

    ranking: list[Ranked]
    limit: int
    offset: int


class Rounds(BaseModel):
    """All rounds, first to last."""

    rounds: list[Round]


class FailedImage(BaseModel):
    """A task whose image can't be read."""

    task: int
    image: str | None
    error: str


class FailedImages(BaseModel):
    """A page of them, by ascending task."""

    failed_images: list[FailedImage]
    limit: int
    offset: int


class Count(BaseModel):
    """An estimated number of images."""

    known: float
    low: float
    high: float


class Share(BaseModel):
    """An estimated share, from 0 to 1."""

    share: float = Field(ge=0, le=1)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)


class Accuracy(Share):
    """Of the linear classifier on images of known classes, with its 95 % interval."""

    right: int
    of: int = Field(description="Images of known classes, drawn at random, that it had not learnt.")


class Gain(BaseModel):
    """The number of known labels as a multiple of the number that a random order would have found."""

    factor: float = Field(ge=0)
    low: float = Field(ge=0)
    high: float = Field(ge=0)


class NextBatch(BaseModel):
    """Expected labels of the next batch."""

    size: int
    known: float | None = Field(description="How many of it are expected to be of known classes.")


class Batch(BaseModel):
    """A query round's share of known classes beside that of a random one."""

    round: int
    precision: float | None
    random: Share | None = Field(description="Had it been drawn at random from the pool of then.")


class Scores(BaseModel):
    """Number of unlabelled tasks by priority: 20 equal steps from 0 to 1."""

    candidates: list[int]
    others: list[int]


class ClassCount(BaseModel):
    """A class with its labelled tasks and those left."""

    name: str
    labels: int = Field(description="0 = not seen yet.")
    left: float | None = Field(description="About how many of the pool; nothing = too few labels to say.")


class Mistake(BaseModel):
    """A labelled task whose label may be wrong."""

    task: int
    label: str | None = Field(description="Nothing = invalid.")
    chance: float = Field(ge=0, le=1, description="Of its being a mistake.")
    neighbours_say: str | None = Field(description="Nothing = invalid.")
    votes: int = Field(description="How many of its K nearest labelled tasks say that.")
    own_votes: int = Field(description="How many have its own label.")
    similarity: float = Field(description="Mean cosine of those that say otherwise.")


class Insight(BaseModel):
    """How a project does and what is left of it, as of some moments ago. Estimates are nothing below five labels of
    images that were drawn at random."""

    labelled: int = Field(description="Labels that it was made from.")
    target: float = Field(description="Share of the images of known classes at which one can stop.")
    known: int
    pool: int = Field(description="Unlabelled tasks whose image is encoded.")
    k: int
    left: Count | None = Field(description="Images of known classes in the pool.")
    found: Share | None = Field(description="Which share of all images of known classes is labelled.")
    random: Share | None = Field(description="Known ones among labels that were drawn at random from all images.")
    gain: Gain | None
    accuracy: Accuracy | None
    draws: int = Field(description="Labels of images that were drawn at random, which the estimates are made from.")
    no_estimate: str = Field(description='Why there is none, in a sentence; "" where there is one.')
    next_batch: NextBatch
    batches: list[Batch]
    classes: list[ClassCount]
    scores: Scores
    mistakes: list[Mistake] = Field(description="The likeliest 100, likeliest first.")
    more_mistakes: int
    verdict: Literal["go on", "stop soon", "stop", "too early to say", "nothing left"]
    advice: list[str] = Field(description="Plain sentences that say why.")


class ClassVote(BaseModel):
    """A class, the neighbours' votes for it and the classifier's probability."""

    name: str
    votes: int
    probability: float | None = Field(description="By the classifier in force; nothing before there is one.")
    labels: int


class Balance(BaseModel):
    """The terms of a priority where the classes are kept in balance: √quality · weight."""

    spread: bool = Field(description="Asked to find classes without a label; else it waits in its class's queue.")
    quality: float = Field(
        ge=0,
        le=1,
        description="In a class's queue, known_chance times the share of the largest inconsistency; else by"
        " its place in the spread.",
    )
    labels: float = Field(description="What its queue counts as having.")
    least: float = Field(description="The fewest that a queue counts as having.")
    least_of: str | None = Field(description="Whose that is; nothing = of the search for classes without a label.")
    weight: float = Field(ge=0, le=1, description="(1 + least) / (1 + labels + place), at most 1.")


class Neighbour(BaseModel):
    """A labelled task nearby."""

    task: int
    label: str | None
    invalid: bool
    similarity: float = Field(description="Cosine.")


class Explanation(BaseModel):
    """The explanation of a task's place in the order."""

    project: int
    task: int
    state: Literal["unlabelled", "labelled", "invalid", "skipped", "failed", "pending"]
    label: str | None
    rank: int | None = Field(description="0 = next; nothing = not in the order.")
    pool: int = Field(description="Unlabelled tasks.")
    priority: float | None
    inconsistency: float | None = Field(description="Nothing while the image is not encoded.")
    max_inconsistency: float
    candidate: bool
    rule: Literal["all", "majority"]
    k: int
    known_neighbours: int
    predicted: str | None
    classifier: Literal["", "resnet18", "linear"] = Field(description="In force; empty = none yet.")
    known_chance: float | None = Field(
        ge=0, le=1, description="Probability of a known class by the linear classifier; 1 in the order without one."
    )
    queue: str | None = Field(description="The class whose tasks it waits with.")
    place: int | None = Field(description="How many tasks of its queue come before it.")
    drawn: bool = Field(description="Asked for at random, for the estimates.")
    balance: Balance | None = Field(description="Nothing where the classes don't lead the order.")
    classes: list[ClassVote]
    invalid_votes: int
    invalid_labels: int
    neighbours: list[Neighbour] = Field(description="Nearest first.")
    near_duplicates: list[int] = Field(description="Tasks of its group, ascending.")
    reasons: list[str] = Field(description="Plain sentences.")


class Alike(BaseModel):
    """A found image."""

    task: int
    similarity: float = Field(description="Cosine of its features and those that were searched for.")
    label: str | None = Field(description="Nothing = of no class, or unlabelled.")
    invalid: bool


class Similar(BaseModel):
    """The images most like that of a task."""

    task: int
    found: list[Alike] = Field(description="Most similar first.")


class Found(BaseModel):
    """The images most like a text."""

    text: str
    found: list[Alike] | None = Field(description="Most similar first; nothing = the worker has not answered yet.")
    problem: str = Field(description="Why the text can't be searched for; empty = it can.")


class Selected(BaseModel):
    """The result for chosen tasks."""

    tasks: int = Field(description="In the tab.")
    left_out: int = Field(description="Not in the tab, which takes 100: those that come last in the order.")
    tab: int | None = Field(description="Its number in Label Studio; nothing = the worker makes it in a moment.")


ANSWERS: tuple[type[BaseModel], ...] = (
    Error,
    Health,
    Readiness,
    Connected,
    Filed,
    Acknowledged,
    Predictions,
    Versions,
    Projects,
    Project,
    Ranking,
    Rounds,
    FailedImages,
    Insight,
    Explanation,
    *lead_responses.ANSWERS,
    Similar,
    Found,
    Selected,
)
