"""What a live project does again and again."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import ClassVar

POLL_SECONDS = 0.05  # how soon an event is seen


class Step(ABC):
    """One kind of work, repeated in a thread of its own."""

    name: ClassVar[str]
    again_at_once: ClassVar[bool] = True  # where there was something to do; else it rests all the same
    rest_seconds: float = POLL_SECONDS

    @abstractmethod
    def step(self) -> bool:
        """Do one piece of work; True if there was any. Raises NeatError; what was to be done is still to be done."""

    def rest(self, stopping: threading.Event) -> None:
        """Wait until it is time to look again."""
        stopping.wait(self.rest_seconds)

    def is_busy(self) -> bool:
        """Is there anything that would be interrupted by putting the project away?"""
        return False
