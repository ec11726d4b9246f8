"""Checks of what all projects share: settings, database, folder, disk, encoder, GPU, worker, Label Studio's address."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from neat_backend.doctor.findings import WARNING, Complaint, Examination
from neat_backend.labelstudio import inspection
from neat_backend.labelstudio.image_hosts import shown
from neat_backend.records import Project
from neat_backend.settings import Settings
from neat_backend.store import projects
from neat_backend.store.database import Database
from neat_backend.store.objects import Objects

SHARED_FILESYSTEMS = ("nfs", "cifs", "smb", "9p", "fuse", "ceph", "gluster", "lustre")
FULL_BYTES, NEARLY_FULL_BYTES = 200 * 1024**2, 2 * 1024**3


def examine_installation(
    examination: Examination, env: Mapping[str, str] | None, wanted: int | None
) -> tuple[Settings, Database | None, list[Project]]:
    """The settings, the database if there is one, and the projects to check (empty: none can be checked)."""
    settings = Settings.from_env({})
    database: Database | None = None
    connected: list[Project] = []

    def read_settings() -> str:
        nonlocal settings
        settings = Settings.from_env(env)
        misspelt = Settings.misspelt(env)
        if misspelt:
            said = f"not read, because there is no such setting: {', '.join(misspelt)}"
            raise Complaint(said, f"did you mean {', '.join(misspelt.values())}?", WARNING)
        return "every setting has a value that can be used"

    def open_database() -> str:
        nonlocal database
        opened = Database(settings.sqlalchemy_url)
        opened.migrate()
        database = opened
        return f"{opened.shown} answers, its tables are up to date"

    def find_projects() -> str:
        nonlocal connected
        assert database is not None
        with database.read() as conn:
            found = [one for one in projects.all(conn) if wanted in (None, one.id)]
        if not found:
            which = "no project" if wanted is None else f"project {wanted} is not"
            raise Complaint(
                f"{which} connected to this backend",
                "paste this backend's URL into Label Studio: Settings → Model → Connect Model",
            )
        connected = found
        return ", ".join(f"{one.id} {one.title}".strip() for one in found)

    def reach() -> str:
        url = settings.label_studio_url or next((p.label_studio_url for p in connected if p.label_studio_url), "")
        if not url:
            raise Complaint("nobody has said where Label Studio is", "set LABEL_STUDIO_URL")
        release = inspection.version(url, settings.request_timeout_seconds)
        return f"{shown(url)} answers, version {release}, {inspection.known_of(release)}"

    examination.check("settings", read_settings, "mend the named variable; `neat-backend config` shows all")
    folder = settings.data_dir
    needs = ("settings",)
    examination.check(
        "database", open_database, "check DATABASE_URL and that its server is up; for SQLite, NEAT_DATA_DIR", needs
    )
    examination.check(
        "data folder",
        lambda: _folder(folder, on_sqlite="sqlite" in settings.sqlalchemy_url),
        f"make {folder} a folder that this user may write to, or set NEAT_DATA_DIR to another",
        needs,
    )
    examination.check("disk space", lambda: _disk(folder), "free some space", ("data folder",))
    if settings.arrays_url:
        examination.check(
            "object store",
            lambda: _objects(settings, database),
            "see that NEAT_ARRAYS_URL is right and that its credentials may list, read, write and delete there",
            ("database", "data folder"),
        )
    examination.check(
        "encoder weights",
        lambda: _encoder(settings),
        "set NEAT_ENCODER_WEIGHTS to a file, or NEAT_ENCODER=efficientnet_lite0, which needs no download",
        needs,
    )
    examination.check("GPU", lambda: _gpu(settings), "set NEAT_DEVICE=auto", needs)
    examination.check("projects", find_projects, "connect the backend in Label Studio: Settings → Model", ("database",))
    examination.check(
        "worker",
        lambda: _worker(database),
        "start `neat-backend worker`, or `neat-backend serve`, with the same database",
        ("projects",),
    )
    examination.check("Label Studio", reach, "start Label Studio, and let LABEL_STUDIO_URL say where it is", needs)
    return settings, database, connected


def _folder(folder: Path, on_sqlite: bool) -> str:
    remedy = f"make {folder} a folder that this user may write to, or set NEAT_DATA_DIR to another"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-") as file:
            file.write(b"0" * 4096)
            file.flush()
    except OSError as error:
        raise Complaint(f"{folder} can't be written to ({error.strerror})", remedy) from None
    kind = _filesystem(folder.resolve())
    if kind.startswith(SHARED_FILESYSTEMS) and on_sqlite:
        raise Complaint(
            f"{folder} is on {kind}, shared between machines, and SQLite's file lies in it",
            "SQLite needs a local disk: set DATABASE_URL to a PostgreSQL database, or move NEAT_DATA_DIR",
            WARNING,
        )
    where = "shared" if kind.startswith(SHARED_FILESYSTEMS) else "local"
    return f"{folder.absolute()} can be written to ({where}{f', {kind}' if kind else ''})"


def _filesystem(folder: Path) -> str:
    """The kind of the file system that holds the folder, "" where it is unknown (not on Linux)."""
    try:
        lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return ""
    mounts = {Path(line[1].replace("\\040", " ")): line[2] for line in lines if len(line) > 2}
    return next((mounts[place] for place in (folder, *folder.parents) if place in mounts), "")


def _disk(folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    said = f"{free / 1024**3:.1f} GiB free"
    if free < NEARLY_FULL_BYTES:
        remedy = f"free some space where {folder} lies, or let NEAT_DATA_DIR name a larger disk"
        raise Complaint(f"only {said}", remedy, "failed" if free < FULL_BYTES else WARNING)
    return said


def _objects(settings: Settings, database: Database | None) -> str:
    assert database is not None
    Objects(settings.arrays_url, settings.data_dir, database).probe()
    return "an object can be written, read and deleted"


def _encoder(settings: Settings) -> str:
    from neat_backend.models.backends import backend_of, reason_for_torch, with_backend
    from neat_backend.models.encoders import build_encoder

    encoder = build_encoder(settings.encoder, settings.encoder_weights, settings.device)
    computed = with_backend(encoder, backend_of(settings.encoder_backend, settings.compute))
    reason = reason_for_torch(encoder)
    by = "PyTorch" if computed is encoder else "OpenVINO"
    return f"{settings.encoder} is there, {encoder.dim} features, computed by {by}" + (f" ({reason})" if reason else "")


def _gpu(settings: Settings) -> str:
    from neat_backend.models.devices import resolve_device
    from neat_backend.ranking.gpus import count_gpus

    device = resolve_device(settings.device)
    torch_sees, faiss_sees = count_gpus()
    said = f"PyTorch sees {torch_sees}, FAISS {faiss_sees}; computing on {device}"
    if device.type == "cuda" and not faiss_sees:
        raise Complaint(said, "searches stay on the CPU: install a FAISS with GPU support if they are slow", WARNING)
    return said


def _worker(database: Database | None) -> str:
    """Check for a running worker by its heartbeat: it renews each project's lease every few seconds."""
    assert database is not None
    with database.read() as conn:
        owners = {owner for one in projects.all(conn) if (owner := projects.lease_owner(conn, one.id))}
    if not owners:
        raise Complaint(
            "no worker is at work: none holds the lease of a project",
            "start `neat-backend worker`, or `neat-backend serve`, with the same database",
        )
    return f"at work: {', '.join(sorted(owners))}"
