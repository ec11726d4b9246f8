"""The repeated work of a live project."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import ClassVar

POLL_SECONDS = 0.05  # between checks for events


class Step(ABC):
    """One kind of work, repeated in a thread of its own."""

    name: ClassVar[str]
    again_at_once: ClassVar[bool] = True  # after a step with work, repeat without a rest
    rest_seconds: float = POLL_SECONDS

    @abstractmethod
    def step(self) -> bool:
        """Do one piece of work; True if there was any. Raises NeatError; the work then remains to be done."""

    def rest(self, stopping: threading.Event) -> None:
        """Wait until the next check for work."""
        stopping.wait(self.rest_seconds)

    def is_busy(self) -> bool:
        """Whether unloading the project would interrupt anything."""
        return False
