"""The repeated work of a live project."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

POLL_SECONDS = 0.05  # between checks for work that is about to be due


class Step(ABC):
    """One kind of work, repeated by one thread at a time: after changes in the project, and when its own time comes."""

    name: ClassVar[str]
    again_at_once: ClassVar[bool] = True  # after a step with work, repeat without a rest
    in_background: ClassVar[bool] = False  # after a change in the project, rest first: the order needs the processor
    rests_in_full: ClassVar[bool] = False  # no change cuts a rest short
    rest_seconds: float = POLL_SECONDS  # the shortest between two steps, but for the above

    @abstractmethod
    def step(self) -> bool:
        """Do one piece of work; True if there was any. Raises NeatError; the work then remains to be done."""

    def wait_seconds(self, done: bool) -> float:
        """Time until there may be work though nothing changes in the project; math.inf: there will be none.

        done: what the last step returned.
        """
        return 0.0 if done else math.inf

    def changes_files(self, done: bool) -> bool:
        """Whether the last step, which returned `done`, may have changed the project's files."""
        return done

    def is_busy(self) -> bool:
        """Whether unloading the project would interrupt anything."""
        return False


def until_first(decided_at: float, now: float, *moments: float) -> float:
    """Seconds from now to the first of the moments after `decided_at`; math.inf if there is none.

    decided_at: the time by which the last step decided what was due. A moment that has passed since then gives 0.
    """
    return min((max(0.0, moment - now) for moment in moments if moment > decided_at), default=math.inf)
