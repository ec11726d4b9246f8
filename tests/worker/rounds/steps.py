"""Labels and rounds of a live project."""

from __future__ import annotations

from neat_backend.worker.live import LiveProject
from tests.living import PROJECT, Backend, engine_of, take_in


def train(backend: Backend, live: LiveProject) -> None:
    backend.deliver(backend.server.press_train(PROJECT))
    take_in(live)


def untrained(live: LiveProject) -> list[int]:
    return engine_of(live).untrained()
