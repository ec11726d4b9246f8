"""Progress of a live project: its settings in Label Studio, the events applied."""

from __future__ import annotations

from datetime import datetime

from neat_backend.labelstudio.client import ProjectInfo
from neat_backend.labelstudio.events import ProjectFields
from neat_backend.labelstudio.values import EPOCH
from neat_backend.records import Project


class Followed:
    """Title, label config and sampling last reported by Label Studio; written with the engine's lock held.

    Nearly every event carries the settings of its time, and events arrive in any order. Settings of an event from
    before the last reading of the project, or older than the present ones, are ignored.

    applied    the highest event that the engine has applied
    answered   the highest event with an answer since the start, -1 = none
    connected  whether Label Studio has confirmed its connection since the start
    calls      calls of /setup since the start, counted by events
    """

    def __init__(self, project: Project) -> None:
        self.title, self.label_config, self.sampling = project.title, project.label_config, project.sampling
        self.applied, self.answered = 0, -1
        self.connected = False
        self.calls = 0
        self._at, self._event = EPOCH, 0  # time and event of the latest settings

    def news(self, fields: ProjectFields | None, event: int) -> dict[str, str]:
        """The settings that this event changes."""
        if fields is None or fields.updated_at < self._at or event <= self._event:
            return {}
        ours = {name: getattr(self, name) for name in ("title", "label_config", "sampling")}
        theirs = {name: getattr(fields, name) for name in ours}
        return {name: value for name, value in theirs.items() if value and value != ours[name]}

    def follow(self, fields: ProjectFields | None, event: int) -> dict[str, str]:
        """Apply the settings that this event changes; returns them."""
        changed = self.news(fields, event)
        if fields is not None:
            self._at = max(self._at, fields.updated_at)
        if changed:
            self._event = event
        for name, value in changed.items():
            setattr(self, name, value)
        return changed

    def read(self, info: ProjectInfo, began: datetime, seen: int) -> None:
        """Apply the settings found by a reading of the whole project, unless a later event has newer ones.

        began: start of the reading, by Label Studio's clock. seen: the highest event at that moment.
        """
        if self._event <= seen:
            self._event, self._at = seen, min(self._at, began)
            self.title, self.label_config, self.sampling = info.title, info.label_config, info.sampling
