"""The JSON of the requests' bodies, as models: for the OpenAPI document. Nothing is parsed with them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from neat_backend.labelstudio.events import KNOWN_ACTIONS

ProjectNumber = int | str  # 7, "7" or Label Studio's "7.1700000000"


OneOrMany = dict[str, Any] | list[dict[str, Any]] | None  # Label Studio sends many under the name of one, too


class SelectionBody(BaseModel):
    """Tasks that Label Studio's tab “NEAT: selection” is to show."""

    tasks: list[int] = Field(min_length=1)


class SetupBody(BaseModel):
    """What Label Studio posts when the backend is connected."""

    project: ProjectNumber
    schema_: str | None = Field(None, alias="schema", description="The label config.")
    hostname: str | None = None
    access_token: str | None = None
    extra_params: dict[str, Any] | str | None = None


class PredictTask(BaseModel):
    """A task as Label Studio sends it; other fields are ignored."""

    id: int | None = Field(None, gt=0)
    data: dict[str, Any]
    project: int | None = None


class PredictBody(BaseModel):
    """Which tasks to predict."""

    tasks: list[PredictTask]
    project: ProjectNumber | None = None
    label_config: str | None = None


class WebhookProject(BaseModel):
    """The project of a webhook; its other fields are used where they are present."""

    id: int = Field(gt=0)
    title: str | None = None
    label_config: str | None = None
    sampling: str | None = None


class WebhookBody(BaseModel):
    """A webhook of Label Studio; `annotation`, `annotations`, `task` and `tasks` depend on the action."""

    action: str = Field(min_length=1, examples=sorted(KNOWN_ACTIONS))
    project: WebhookProject | None = None
    annotation: OneOrMany = None
    annotations: OneOrMany = None
    task: OneOrMany = None
    tasks: OneOrMany = None


class ProjectBody(BaseModel):
    """Which project."""

    project: ProjectNumber


class TargetBody(BaseModel):
    """The share of the images of known classes to find."""

    found: float = Field(ge=0.5, le=0.99)


BODIES: tuple[type[BaseModel], ...] = (SelectionBody, SetupBody, PredictBody, WebhookBody, ProjectBody, TargetBody)
