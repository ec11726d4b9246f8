"""The repeated work of a live project."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

POLL_SECONDS = 0.05  # between checks for work that is about to be due


class Step(ABC):
    """One kind of work, repeated by one thread at a time: after changes in the project, and when its own time comes.

    decided_at: by the clock, when the last step began, so what it decided by.
    """

    name: ClassVar[str]
    again_at_once: ClassVar[bool] = True  # after a step with work, repeat without a rest
    in_background: ClassVar[bool] = False  # after a change in the project, rest first: the order needs the processor
    rests_in_full: ClassVar[bool] = False  # no change cuts a rest short
    rest_seconds: float = POLL_SECONDS  # the shortest between two steps, but for the above
    decided_at: float = -math.inf
    _clock: Callable[[], float] = time.monotonic

    def step(self) -> bool:
        """Do one piece of work; True if there was any. Raises NeatError; the work then remains to be done."""
        self.decided_at = self._clock()
        return self._work()

    @abstractmethod
    def _work(self) -> bool:
        """As `step`."""

    def moments(self) -> Iterable[float]:
        """Times by the clock from which there may be work though nothing changes in the project."""
        return ()

    def wait_seconds(self, done: bool) -> float:
        """Time until there may be work though nothing changes in the project; math.inf: there will be none.

        done: what the last step returned.
        """
        return 0.0 if done else self.first_moment_seconds()

    def first_moment_seconds(self) -> float:
        """Time until the first of the moments that the last step did not see as passed; math.inf: there is none."""
        now = self._clock()
        return min((max(0.0, moment - now) for moment in self.moments() if moment > self.decided_at), default=math.inf)

    def changes_files(self, done: bool) -> bool:
        """Whether the last step, which returned `done`, may have changed the project's files."""
        return done

    def is_busy(self) -> bool:
        """Whether unloading the project would interrupt anything."""
        return False
