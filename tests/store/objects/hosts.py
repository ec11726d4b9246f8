"""A host with a data folder of its own."""

from __future__ import annotations

from pathlib import Path

from neat_backend.store import projects
from neat_backend.store.arrays import ProjectArrays
from neat_backend.store.database import Database
from neat_backend.store.keeper import Keeper
from neat_backend.store.listed import Item, listing
from neat_backend.store.objects import Objects
from neat_backend.store.owned import OwnedDatabase

KIND = "features/x"


class Host:
    """A machine with a data folder of its own."""

    def __init__(self, name: str, folder: Path, url: str, database: Database) -> None:
        self.name, self.folder, self.database = name, folder / name, database
        self.objects, self.arrays = Objects(url, self.folder, database), ProjectArrays(self.folder, 1)

    def take(self) -> Keeper:
        """A worker of this host takes the project over, whoever owned it."""
        with self.database.begin() as conn:
            holder = projects.lease_owner(conn, 1)
            if holder is not None:
                projects.release_lease(conn, 1, holder)
            assert projects.acquire_lease(conn, 1, self.name, 600)
        keeper = Keeper(self.objects, self.arrays, 1, OwnedDatabase(self.database, 1, self.name))
        self.files_came = keeper.take_over()
        return keeper

    def held(self, kind: str = KIND) -> dict[int, list[float]]:
        found = self.arrays.load(kind)
        return dict(zip(found.ids.tolist(), found.values.tolist(), strict=True))


def listed(db: Database) -> dict[str, Item]:
    with db.read() as conn:
        found = listing(conn, 1)
    assert found is not None
    return dict(found.files)


def on_store(host: Host) -> set[str]:
    return set(host.objects.names(1))


def put_by(host: Host, ids: list[int], value: float, kind: str = KIND) -> None:
    host.arrays.append(kind, ids, ids, [[value]] * len(ids))
