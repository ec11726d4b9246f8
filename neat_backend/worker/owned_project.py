"""A project that this worker has the lease of, loaded or not."""

from __future__ import annotations

import math
import threading
import time

from neat_backend.errors import Disconnected, LeaseLate, LeaseLost, Replaced
from neat_backend.records import Project
from neat_backend.settings import Settings
from neat_backend.store import projects
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.keeper import Keeper
from neat_backend.store.objects import Objects
from neat_backend.store.owned import OwnedDatabase
from neat_backend.worker.steps.comparing import Basis
from neat_backend.worker.steps.shown_state import ShownState


class OwnedProject:
    """The lease of one project, and the writes that it allows.

    leased_until   time.monotonic(); after it another worker may own the project
    stopping       set when the project is to be unloaded
    left           why Label Studio's project is no longer connected to this backend, if so
    """

    def __init__(
        self,
        project: Project,
        owner: str,
        settings: Settings,
        database: Database,
        objects: Objects | None = None,
        basis: Basis | None = None,
    ) -> None:
        """settings: the project's own. objects: the object store for the arrays, if there is one.

        basis: how far this process has read the project before; then only later changes are read.
        """
        self.id, self.owner, self.settings = project.id, owner, settings
        self.database = OwnedDatabase(database, project.id, owner)
        self.arrays = ProjectArrays(settings.data_dir, project.id, fence=self.check_lease)
        self.keeper = None if objects is None else Keeper(objects, self.arrays, project.id, self.database)
        self.state = ShownState(project.id, self.update)
        self.basis = basis or Basis()
        self.stopping = threading.Event()
        self.leased_until = math.inf
        self.left: Disconnected | Replaced | None = None

    def update(self, **fields: object) -> None:
        """Set columns of the project's row."""
        with self.database.begin() as conn:
            projects.update(conn, self.id, **fields)

    def lease_may_be_over(self) -> bool:
        return time.monotonic() > self.leased_until

    def check_lease(self) -> None:
        """Raise LeaseLate unless the lease certainly holds."""
        if self.lease_may_be_over():
            raise LeaseLate("The lease could not be renewed in time: nothing is published until it is")

    def check_ownership(self) -> None:
        """Raise LeaseLost unless this worker owns the project and is not unloading it."""
        self.check_lease()
        with self.database.read() as conn:
            owner = projects.lease_owner(conn, self.id)
        if owner != self.owner or self.stopping.is_set():
            raise LeaseLost(f"project {self.id} belongs to another worker now, or is being put away")
