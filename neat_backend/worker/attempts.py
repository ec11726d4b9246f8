"""Trying a step of a project: what its failures mean, and how long to wait after them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy.exc import DBAPIError

from neat_backend.errors import (
    Disconnected,
    LabelStudioUnavailable,
    LeaseLate,
    LeaseLost,
    NeatError,
    NotFoundInLabelStudio,
    Replaced,
    ShardsLost,
)
from neat_backend.store import projects
from neat_backend.worker.owned_project import OwnedProject
from neat_backend.worker.steps.backoff import Backoff

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 60.0


class Attempts:
    """The attempts at one step of a project; from one thread at a time.

    wait_seconds: after a failed attempt, until the next one.
    """

    def __init__(self, owned: OwnedProject, name: str, on_missing: Callable[[], None] = lambda: None) -> None:
        """on_missing: called when something is missing in Label Studio."""
        self.wait_seconds = 0.0
        self._owned, self._name, self._on_missing = owned, name, on_missing
        self._backoff = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)

    def once(self, step: Callable[[], bool]) -> bool | None:
        """What the step returns; None if it failed. Shows a problem until the step works, and ends a lost project."""
        owned, name = self._owned, self._name
        retry_after: float | None = None
        try:
            done = step()
        except (LeaseLost, ShardsLost) as error:  # some worker will load it again from the store
            log.warning("%s", error)
            owned.stopping.set()
            return None
        except (Disconnected, Replaced) as error:
            owned.left = error
            owned.stopping.set()
            return None
        except LabelStudioUnavailable as error:
            problem, retry_after = (projects.AWAY, str(error)), error.retry_after_seconds
        except NotFoundInLabelStudio as error:
            self._on_missing()  # the project itself may have been deleted
            problem = (projects.BLOCKED, f"{error} (deleted, or not visible to the API key's user)")
        except LeaseLate as error:  # a busy machine: nothing for a person to do
            log.warning("project %d: %s: %s", owned.id, name, error)
            self.wait_seconds = self._backoff.failed()
            return None
        except NeatError as error:
            problem = (projects.BLOCKED, str(error))
        except DBAPIError as error:
            log.error("project %d: %s: the database failed, trying again: %s", owned.id, name, error.orig)
            self.wait_seconds = self._backoff.failed()
            return None
        except Exception as error:  # a bug must not end what others wait for
            log.exception("project %d: %s failed", owned.id, name)
            problem = (projects.BLOCKED, f"internal error in {name}: {error}; see the log")
        else:
            self._backoff.worked()
            self._show(lambda: owned.state.solved(name))
            return done
        self.wait_seconds = max(self._backoff.failed(), retry_after or 0)
        log.warning("project %d: %s: %s; trying again in %.0f s", owned.id, name, problem[1], self.wait_seconds)
        self._show(lambda: owned.state.problem(name, *problem))
        return None

    def _show(self, change: Callable[[], None]) -> None:
        """Show a problem or its end; ignores failures of the database."""
        try:
            change()
        except (DBAPIError, NeatError) as error:
            log.warning("project %d: its state can't be shown: %s", self._owned.id, error)
