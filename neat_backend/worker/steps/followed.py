"""How far a live project has come: the project's settings in Label Studio, the events taken in."""

from __future__ import annotations

from datetime import datetime

from neat_backend.labelstudio import events as ls_events
from neat_backend.labelstudio.client import ProjectInfo
from neat_backend.records import Project


class Followed:
    """Title, label config and sampling as Label Studio last told; written with the engine's lock held.

    Nearly every event carries the settings of its moment, and they overtake each other: those of an event that was
    there before the project was last read, or older ones, change nothing.

    applied    the highest event that the engine has taken in
    answered   the highest one with an answer of somebody's since the start, -1 = none
    connected  Label Studio has said since the start that it is connected to us
    calls      how often it has called /setup since the start, as far as events tell
    """

    def __init__(self, project: Project) -> None:
        self.title, self.label_config, self.sampling = project.title, project.label_config, project.sampling
        self.applied, self.answered = 0, -1
        self.connected = False
        self.calls = 0
        self._at, self._event = ls_events.EPOCH, 0  # of the latest word on the settings

    def news(self, fields: ls_events.ProjectFields | None, event: int) -> dict[str, str]:
        """Which of the settings this event changes."""
        if fields is None or fields.updated_at < self._at or event <= self._event:
            return {}
        ours = {name: getattr(self, name) for name in ("title", "label_config", "sampling")}
        theirs = {name: getattr(fields, name) for name in ours}
        return {name: value for name, value in theirs.items() if value and value != ours[name]}

    def follow(self, fields: ls_events.ProjectFields | None, event: int) -> dict[str, str]:
        """Take in what this event changes; which settings these are."""
        changed = self.news(fields, event)
        if fields is not None:
            self._at = max(self._at, fields.updated_at)
        if changed:
            self._event = event
        for name, value in changed.items():
            setattr(self, name, value)
        return changed

    def read(self, info: ProjectInfo, began: datetime, seen: int) -> None:
        """Take in what a whole reading found, unless an event that came meanwhile knows better.

        began: of the reading, by Label Studio's clock. seen: the highest event of that moment.
        """
        if self._event <= seen:
            self._event, self._at = seen, min(self._at, began)
            self.title, self.label_config, self.sampling = info.title, info.label_config, info.sampling
