"""Imports go downwards only, and the web process stays light. Read from the source, imports inside functions too."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.waiting import HANGS

ROOT = Path(__file__).parents[1]
PACKAGE = "neat_backend"

GROUND = {"records", "errors", "settings", "ports", "logs", "stopping", "backoff"}
WORKER = {"worker", "live", "sync", "embedding", "rounds", "training", "publishing", "planning", "insight"}
WORKER |= {"learning", "tabs", "columns", "showing", "pool_images", "comparing", "upkeep"}
LIGHT = {"web", "service", "connection", "explaining", "overview"}  # what the web process is made of

# Room → the rooms that it may import, itself apart.
ALLOWED: dict[str, set[str]] = {
    "records": set(),
    "errors": set(),
    "ports": {"errors"},
    "backoff": set(),
    "progress": set(),
    "stopping": set(),
    "logs": set(),
    "settings": {"errors"},
    "exposure": {"errors", "settings"},
    "core": {"errors", "records"},
    "labelstudio": {"errors", "records"},
    "store": {"errors", "records"},
    "strategies": {"core", "errors"},
    "experiments": {"core", "engine", "records", "strategies", "errors", "settings"},
    "engine": {"core", "strategies", "errors", "records"},
    **{
        room: GROUND
        | {"connection", "core", "labelstudio", "store", "engine", "strategies", "compute"}
        | (WORKER - {"worker"})
        for room in WORKER
    },
    "embedding": GROUND | {"core", "store"},
    "compute": {"core", "engine", "errors", "records", "strategies", "embedding", "store"},
    "explaining": GROUND | {"core", "labelstudio", "store"},
    "overview": GROUND | {"store"},
    "connection": GROUND | {"labelstudio", "store"},
    "service": GROUND | {"connection", "explaining", "overview", "labelstudio", "store"},
    "web": GROUND | {"exposure", "service", "overview", "labelstudio", "store", "exports"},
    "backup": GROUND | {"store"},
    "serve": GROUND | {"exposure", "store"},  # starts the web and the worker as processes, by their names
    "doctor": GROUND | {"connection", "core", "labelstudio", "store", "sync"},
    "exports": GROUND | {"connection", "core", "labelstudio", "store"},
    "demo": GROUND | {"progress"},  # drives Label Studio and the backend from outside
    "bench": GROUND
    | {
        "core",
        "engine",
        "store",
        "labelstudio",
        "training",
        "embedding",
        "demo",
        "strategies",
        "experiments",
        "compute",
        "insight",
        "learning",
        "exports",
    },
    "cli": GROUND
    | {"progress"}
    | {"backup", "connection", "service", "store", "serve", "worker", "demo", "bench", "experiments", "doctor"}
    | {"exports"},
    "reference": GROUND | {"cli", "service", "store", "web"},  # reads them all to describe them
    "model": GROUND | {"service", "labelstudio", "store"},
    "_wsgi": GROUND | {"cli", "serve", "web"},
}

# Single imports that the table forbids and that are meant: (file, room) → why.
EXCEPTIONS: dict[tuple[str, str], str] = {}

# Libraries → the rooms that alone may import them.
CONFINED = {
    "flask": {"web", "model"},
    "label_studio_sdk": {"labelstudio"},
    "label_studio_ml": {"model", "_wsgi"},
    "sqlalchemy": {"store", "backup", *WORKER, *LIGHT},
    "alembic": {"store"},
    "faiss": {"core", "bench", "strategies"},
    "ray": {"compute", "bench"},
    "torch": {"core", "compute", "training", "embedding", "bench", "strategies", "experiments"},
    "torchvision": {"core", "bench", "experiments"},
    "open_clip": {"core"},
    "httpx": {"labelstudio", "demo", "bench"},
    "typer": {"cli", "bench", "experiments", "reference"},
    "prometheus_client": {"web", "reference"},
}
HEAVY = (
    "numba",
    "torch",
    "torchvision",
    "faiss",
    "label_studio_sdk",
    "label_studio_ml",
    "sklearn",
    "pandas",
    "open_clip",
    "ray",
)


@cache
def sources() -> dict[str, Path]:
    """Path below the repository → file, of all that is shipped."""
    files = [*sorted((ROOT / PACKAGE).rglob("*.py")), ROOT / "model.py", ROOT / "_wsgi.py"]
    return {str(file.relative_to(ROOT)): file for file in files}


def room_of(path: str) -> str:
    """`neat_backend/ranking/scores.py` → core; "" for the package's own `__init__`."""
    parts = Path(path).with_suffix("").parts
    if parts[0] != PACKAGE:
        return parts[0]
    return "" if parts[1] == "__init__" else parts[1]


@cache
def imported(path: str) -> list[str]:
    """Dotted names of all that is imported anywhere in a file; `from a import b` gives a.b."""
    names: list[str] = []
    for node in ast.walk(ast.parse(sources()[path].read_text())):
        if isinstance(node, ast.Import):
            names += (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the package"
            names += (f"{node.module}.{alias.name}" for alias in node.names)
    return names


def rooms_used(path: str) -> set[str]:
    """The rooms that a file imports, its own apart."""
    names = [name.split(".") for name in imported(path)]
    rooms = {name[1] for name in names if name[0] == PACKAGE and len(name) > 1}
    return rooms - {room_of(path), "__version__"}


def test_every_room_is_in_the_table() -> None:
    assert {room_of(path) for path in sources()} - {""} == set(ALLOWED)


@pytest.mark.parametrize("path", sources())
def test_a_file_imports_only_what_lies_below_it(path: str) -> None:
    if room_of(path) == "":
        assert rooms_used(path) == set()
        return
    forbidden = rooms_used(path) - ALLOWED[room_of(path)]
    assert {room for room in forbidden if (path, room) not in EXCEPTIONS} == set()


def test_no_exception_is_out_of_date() -> None:
    for path, room in EXCEPTIONS:
        assert room in rooms_used(path) - ALLOWED[room_of(path)], f"{path} no longer imports {room}"


def test_the_table_has_no_circles_but_among_the_workers_rooms() -> None:
    left = {room: below - WORKER if room in WORKER else set(below) for room, below in ALLOWED.items()}
    while left:
        ground = [room for room, below in left.items() if not below & set(left)]
        assert ground, f"these import each other: {sorted(left)}"
        for room in ground:
            del left[room]


def test_the_workers_rooms_do_not_import_each_other_in_a_circle() -> None:
    uses = {room: rooms_used(f"{PACKAGE}/{room}.py") & WORKER for room in WORKER}
    while uses:
        ground = [room for room, below in uses.items() if not below & set(uses)]
        assert ground, f"these import each other: {uses}"
        for room in ground:
            del uses[room]


@pytest.mark.parametrize("library", CONFINED)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    users = {room_of(path) for path in sources() if any(name.split(".")[0] == library for name in imported(path))}
    assert users <= CONFINED[library]


def test_only_settings_read_the_environment_for_settings() -> None:
    """Others may look at it to hand it to a child process, or for what isn't a setting; each is known by name."""
    readers = set()
    for path, file in sources().items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                readers.add(room_of(path))
    # serve, training, bench, demo: for children. compute: for Ray. demo: also the program of Label Studio.
    # cli: OpenMP's threads.
    assert readers <= {"settings", "serve", "training", "bench", "demo", "cli", "compute"}


def test_the_web_process_loads_nothing_heavy() -> None:
    code = f"""
import sys, tempfile
from pathlib import Path
heavy = {HEAVY!r}
import neat_backend.web
assert not set(heavy) & set(sys.modules), "import neat_backend.web"
from neat_backend.settings import Settings
from neat_backend.web.app import create_app
with tempfile.TemporaryDirectory() as folder:
    client = create_app(Settings.from_env({{}}, data_dir=Path(folder))).test_client()
    for path in ("/health", "/metrics", "/api/projects"):
        assert client.get(path).status_code == 200
print(sorted(set(heavy) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_command_line_starts_without_anything_heavy() -> None:
    code = f"import sys, neat_backend.cli; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS, check=True)
    assert done.stdout.strip() == "[]"
