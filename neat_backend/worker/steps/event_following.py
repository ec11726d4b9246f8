"""Following changes of the project's settings in Label Studio."""

from __future__ import annotations

import logging

from neat_backend.labelstudio.events import ProjectFields
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.followed import Followed
from neat_backend.worker.steps.label_schema import Schema
from neat_backend.worker.steps.labelling import Labelling
from neat_backend.worker.steps.publishing import Publishing
from neat_backend.worker.steps.wanted import Wanted

log = logging.getLogger(__name__)


class Following:
    """Follows one project's settings; call it with the engine's lock held."""

    def __init__(
        self,
        context: Context,
        followed: Followed,
        publishing: Publishing,
        schema: Schema,
        labelling: Labelling,
        wanted: Wanted,
    ) -> None:
        self.followed = followed
        self._context, self._publishing = context, publishing
        self._schema, self._labelling, self._wanted = schema, labelling, wanted

    def follow(self, fields: ProjectFields | None, event: int) -> None:
        """Apply changes of the settings that an event carries."""
        project = self._context.project
        changed = self.followed.follow(fields, event)
        version = None if fields is None else fields.model_version
        if version is not None and self._publishing.is_switched_off(version, event):
            log.warning("project %d: the model version was set to %r; publishing anew", project, version)
            self._publishing.forget()
        if "sampling" in changed:
            log.info("project %d: sampling is now %r", project, self.followed.sampling)
        if "label_config" in changed:
            self.use_label_config()

    def use_label_config(self) -> None:
        """Switch to the project's label config, if it has changed and can be used."""
        image_key = self._schema.config.image_key
        if self._schema.use(self.followed.label_config):
            self._labelling.relabel()
            if self._schema.config.image_key != image_key:
                self._wanted.read_again()
