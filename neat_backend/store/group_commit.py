"""Group commit: webhooks that arrive together are filed in one transaction, with one sync to disk.

The first thread commits for those that queued up meanwhile. A single webhook does not wait.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from neat_backend.errors import DataRefused, StoreError
from neat_backend.store import inbox
from neat_backend.store.database import Database

PATIENCE_SECONDS = 10.0  # Label Studio gives up after one, but its event is still filed


@dataclass(eq=False)
class _Waiting:
    project: int
    action: str
    payloads: Sequence[Mapping[str, Any]]
    event: int = 0  # the last one's id once they are durable
    error: Exception | None = None
    done: bool = False


class GroupCommit:
    """Files events in the inbox; safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: list[_Waiting] = []
        self._queue_lock = threading.Lock()
        self._committing = threading.Lock()

    def file(self, project: int, action: str, *payloads: Mapping[str, Any]) -> int:
        """File an event for each payload, all or none; returns the last id once they are durable.

        Events of one thread keep their order. Raises StoreError, in time.
        """
        mine = _Waiting(project, action, payloads)
        with self._queue_lock:
            self._queue.append(mine)
        if not self._committing.acquire(timeout=PATIENCE_SECONDS):
            with self._queue_lock, suppress(ValueError):  # else a thread is committing it, and may still succeed
                self._queue.remove(mine)
            raise StoreError(f"Events have not been filed for {PATIENCE_SECONDS:.0f} s")
        try:
            if not mine.done:
                with self._queue_lock:
                    batch, self._queue = self._queue, []
                self._commit(batch)
        finally:
            self._committing.release()
        if mine.error is not None:
            raise mine.error
        return mine.event

    def _commit(self, batch: Sequence[_Waiting]) -> None:
        try:
            with self._database.begin() as conn:
                filed = iter(
                    inbox.append_many(
                        conn, [(one.project, one.action, payload) for one in batch for payload in one.payloads]
                    )
                )
                events = [[next(filed) for _ in one.payloads][-1] for one in batch]
        except Exception as error:
            of_all = isinstance(error, StoreError) and not isinstance(error, DataRefused)
            if len(batch) > 1 and not of_all:  # perhaps only one of them is at fault
                for one in batch:
                    self._commit([one])
                return
            for one in batch:
                one.error = error
        else:
            for one, event in zip(batch, events, strict=True):
                one.event = event
        for one in batch:
            one.done = True
