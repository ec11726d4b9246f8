"""The label config in force, and what depends on its classes."""

from __future__ import annotations

import logging
from functools import cache

from neat_backend.compute.embedding import ReadingEncoder
from neat_backend.errors import BadLabelConfig
from neat_backend.labelstudio import label_config
from neat_backend.labelstudio.label_config import LabelConfig
from neat_backend.labelstudio.publisher import Publisher
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.store import projects
from neat_backend.worker.steps.context import Context
from neat_backend.worker.steps.learning import Learning
from neat_backend.worker.steps.publishing import Publishing
from neat_backend.worker.steps.query_rounds import CLASSES, Rounds
from neat_backend.worker.steps.shown_state import ShownState

log = logging.getLogger(__name__)


class Schema:
    """Switches to another label config; updates the engine's classes and all that depends on them."""

    def __init__(
        self,
        context: Context,
        engine: SharedEngine,
        config: LabelConfig,
        encoder: ReadingEncoder,
        publishing: Publishing,
        rounds: Rounds,
        learning: Learning,
        state: ShownState,
    ) -> None:
        self.config = config
        self._context, self._engine, self._encoder = context, engine, encoder
        self._publishing, self._rounds, self._learning, self._state = publishing, rounds, learning, state
        self._name_classes()

    def use(self, xml: str) -> bool:
        """Switch to this label config, if it has changed; True if labels may have changed.

        A config that can't be used is shown as a problem, and the old one stays.
        """
        try:
            config = label_config.read(xml, self._context.settings)
        except BadLabelConfig as error:
            self._state.problem("label config", projects.BLOCKED, str(error))
            return False
        self._state.solved("label config")
        before, self.config = self.config, config
        if config == before:
            return False
        log.info("project %d: classes are now %s", self._context.project, ", ".join(config.classes))
        self._publishing.publisher = Publisher(self._context.client, self._context.project, config)
        with self._engine() as engine:
            if config.classes != engine.classes:
                engine.set_classes(config.classes)
                self._rounds.follow_classes()
                self._name_classes()
                self._rounds.request(CLASSES)
            elif config.texts != before.texts:
                self._name_classes()
        return True

    def _name_classes(self) -> None:
        """Set the class names' features, where the strategy begins with them and the encoder reads text."""
        with self._engine() as engine:
            classes = engine.classes
            if self._context.settings.strategy != "neat":
                engine.class_features = self._encoder.encode_names(classes)
        texts = [*self.config.texts, "thing"]
        self._learning.name_classes(classes, cache(lambda: self._encoder.encode_names(texts)))
