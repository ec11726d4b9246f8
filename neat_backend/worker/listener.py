"""Hearing the notices of other processes, in a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import closing

from neat_backend.errors import StoreError
from neat_backend.store.database import Database
from neat_backend.store.notices import Heard, Listening
from neat_backend.worker.steps.backoff import Backoff

log = logging.getLogger(__name__)

WAIT_SECONDS = 30.0  # between checks that the way of the notices is still there
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 60.0


class Listener:
    """Listens, and begins anew after failures. is_listening False: notices may be missed at the moment."""

    def __init__(self, database: Database, heard: Callable[[Heard], None]) -> None:
        """heard: called with notices, in the listener's thread; must not raise."""
        self.is_listening = False
        self._database, self._heard = database, heard
        self._stopped = threading.Event()
        self._listening: Listening | None = None
        self._thread = threading.Thread(target=self._run, name="listener", daemon=True)
        self._complained = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended, but for one that the database keeps waiting."""
        self._stopped.set()
        listening = self._listening
        if listening is not None:
            listening.interrupt()
        self._thread.join(1.0)

    def _run(self) -> None:
        backoff = Backoff(FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS)
        while not self._stopped.is_set():
            try:
                with closing(self._database.listen()) as self._listening:
                    backoff.worked()
                    self._complained = False
                    self._listen(self._listening)
            except StoreError as error:
                if not self._complained:
                    log.warning("no notices of new work, so looking for it more often: %s", error)
                self._complained = True
                self._stopped.wait(backoff.failed())
            except Exception:  # a bug must not end the thread
                log.exception("notices can't be heard")
                self._stopped.wait(backoff.failed())

    def _listen(self, listening: Listening) -> None:
        self.is_listening = True
        try:
            self._heard(Heard(complete=False))  # what came before may have been missed
            while not self._stopped.is_set():
                heard = listening.wait(WAIT_SECONDS)
                if heard != Heard():
                    self._heard(heard)
        finally:
            self.is_listening, self._listening = False, None
            self._heard(Heard(complete=False))
