"""Models of a project's people and pace; see service/lead.py."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Compared(BaseModel):
    """How many of an annotator's labels are the same as another's."""

    same: int
    of: int = Field(description="Labels that could be compared.")


class Annotator(BaseModel):
    """One annotator's work."""

    annotator: int | None = Field(description="Label Studio's number; nothing = it names nobody.")
    name: str = Field(description='"" = not known.')
    labels: int = Field(description="Annotations without skips.")
    skips: int
    hours: float = Field(ge=0, description="Of measured work: gaps of at most five minutes between annotations.")
    per_hour: float | None = Field(description="Labels an hour of work; nothing = too few to say.")
    others: Compared = Field(description="With other annotators' labels of the same tasks, one by one.")
    vote: Compared = Field(description="With the vote of the nearest labelled images.")


class People(BaseModel):
    """The annotators, the most labels first."""

    people: list[Annotator]


class Day(BaseModel):
    """One day in UTC."""

    day: str = Field(json_schema_extra={"format": "date"})
    labels: int = Field(description="Tasks that were first answered on that day.")


class Needed(BaseModel):
    """How many labels are needed, estimated."""

    labels: float = Field(ge=0)
    low: float = Field(ge=0)
    high: float = Field(ge=0)


class Duration(BaseModel):
    """How long that takes at the present pace."""

    time: float = Field(ge=0)
    low: float = Field(ge=0)
    high: float = Field(ge=0)


class Pace(BaseModel):
    """Labels a day, and what is left to the target. Null = it can't be estimated yet."""

    target: float = Field(description="Which share of the images of known classes is to be found.")
    days: list[Day] = Field(description="The latest thirty up to the last one with a label.")
    per_day: float | None = Field(description="Mean of the latest seven of these days.")
    per_hour: float | None = Field(description="Labels an hour of one person's work.")
    labels_needed: Needed | None
    hours_needed: Duration | None = Field(description="Hours of one person's work.")
    days_needed: Duration | None = Field(description="Days at the pace of `per_day`.")


class Target(BaseModel):
    """The stored target."""

    found: float


ANSWERS: tuple[type[BaseModel], ...] = (People, Pace, Target)
