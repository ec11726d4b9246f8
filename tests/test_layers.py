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

GROUND = {"records", "errors", "settings", "logs", "stopping", "plugins"}
COMPUTING = {"ranking", "models", "strategies", "compute"}

# Package → the packages that it may import, itself apart; `steps` is worker/steps.
ALLOWED: dict[str, set[str]] = {
    "records": set(),
    "errors": set(),
    "progress": set(),
    "stopping": set(),
    "logs": set(),
    "plugins": {"errors"},
    "settings": {"errors", "plugins"},
    "labelstudio": {"errors", "records"},
    "store": {"errors", "records"},
    "models": {"errors", "plugins"},
    "ranking": {"errors", "models", "records"},
    "strategies": {"errors", "models", "plugins", "ranking"},
    "testing": {"models", "ranking", "strategies"},  # what others test their strategies and encoders with
    "compute": {"errors", "logs", "models", "plugins", "ranking", "records", "store"},
    "experiments": GROUND | {"models", "ranking", "strategies"},
    "connection": GROUND | {"labelstudio", "store"},
    "setup": GROUND | {"connection", "labelstudio"},
    "service": GROUND | {"connection", "labelstudio", "ranking", "store"},
    "steps": GROUND | COMPUTING | {"connection", "labelstudio", "store"},
    "worker": GROUND | COMPUTING | {"connection", "labelstudio", "store", "steps"},
    "doctor": GROUND | {"connection", "labelstudio", "models", "ranking", "store", "steps"},
    "exports": GROUND | {"connection", "labelstudio", "models", "ranking", "store"},
    "web": GROUND | {"exports", "labelstudio", "service", "store"},
    "demo": GROUND | {"labelstudio", "progress"},  # drives Label Studio and the backend from outside
    "cli": GROUND
    | {
        "connection",
        "demo",
        "doctor",
        "experiments",
        "exports",
        "progress",
        "service",
        "setup",
        "store",
        "web",
        "worker",
    },
    "benchmarks": GROUND
    | COMPUTING
    | {"cli", "demo", "experiments", "exports", "labelstudio", "service", "steps", "store", "worker"},
    "tools": GROUND
    | {"benchmarks", "cli", "labelstudio", "service", "store", "web"},  # reads them all to describe them
    "model": GROUND | {"labelstudio", "service", "store"},
    "_wsgi": GROUND | {"cli", "web"},
}

# Single imports that the table forbids and that are meant: (file, package) → why.
EXCEPTIONS: dict[tuple[str, str], str] = {}

# Libraries → the packages that alone may import them.
CONFINED = {
    "flask": {"web", "model"},
    "label_studio_sdk": {"labelstudio"},
    "label_studio_ml": {"_wsgi", "model"},
    "sqlalchemy": {"service", "steps", "store", "web", "worker"},
    "alembic": {"store"},
    "faiss": {"benchmarks", "ranking", "strategies"},
    "openvino": {"models"},
    "ray": {"benchmarks", "compute"},
    "torch": {"benchmarks", "compute", "experiments", "exports", "models", "ranking", "steps", "strategies", "testing"},
    "torchvision": {"benchmarks", "experiments", "models"},
    "open_clip": {"benchmarks", "models"},
    "httpx": {"benchmarks", "demo", "labelstudio"},
    "typer": {"benchmarks", "cli", "experiments", "tools"},
    "prometheus_client": {"tools", "web"},
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
    """Path below the repository → file, of all but the tests."""
    files = [file for folder in (PACKAGE, "benchmarks", "tools") for file in sorted((ROOT / folder).rglob("*.py"))]
    return {str(file.relative_to(ROOT)): file for file in (*files, ROOT / "model.py", ROOT / "_wsgi.py")}


def package_of(path: str) -> str:
    """`neat_backend/ranking/scores.py` → ranking; "" for the package's own `__init__`."""
    return _package(Path(path).with_suffix("").parts)


def _package(parts: tuple[str, ...]) -> str:
    if parts[0] != PACKAGE:
        return parts[0]
    if parts[1:3] == ("worker", "steps"):
        return "steps"
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


def packages_used(path: str) -> set[str]:
    """The packages that a file imports, its own apart."""
    names = [tuple(name.split(".")) for name in imported(path)]
    ours = {PACKAGE, "benchmarks", "tools"}
    return {_package(name) for name in names if name[0] in ours and len(name) > 1} - {package_of(path), "__version__"}


def test_every_package_is_in_the_table() -> None:
    assert {package_of(path) for path in sources()} - {""} == set(ALLOWED)


def test_no_two_modules_have_one_name() -> None:
    names = [file.stem for path, file in sources().items() if path.startswith(PACKAGE) and file.stem != "__init__"]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", sources())
def test_a_file_imports_only_what_lies_below_it(path: str) -> None:
    if package_of(path) == "":
        assert packages_used(path) == set()
        return
    forbidden = packages_used(path) - ALLOWED[package_of(path)]
    assert {package for package in forbidden if (path, package) not in EXCEPTIONS} == set()


def test_no_exception_is_out_of_date() -> None:
    for path, package in EXCEPTIONS:
        assert package in packages_used(path) - ALLOWED[package_of(path)], f"{path} no longer imports {package}"


def test_the_table_has_no_circles() -> None:
    left = {package: set(below) for package, below in ALLOWED.items()}
    while left:
        ground = [package for package, below in left.items() if not below & set(left)]
        assert ground, f"these import each other: {sorted(left)}"
        for package in ground:
            del left[package]


@pytest.mark.parametrize("library", CONFINED)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    users = {package_of(path) for path in sources() if any(name.split(".")[0] == library for name in imported(path))}
    assert users <= CONFINED[library]


def test_only_settings_read_the_environment_for_settings() -> None:
    """Others may look at it to hand it to a child process, or for what isn't a setting; each is known by name."""
    readers = set()
    for path, file in sources().items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
                readers.add(package_of(path))
    # cli, steps, benchmarks, tools, demo: for children. compute: for Ray. demo: also the program of Label Studio.
    # cli: OpenMP's threads, too.
    assert readers <= {"settings", "steps", "benchmarks", "tools", "demo", "cli", "compute"}


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
    slow = (*HEAVY, "rich", "numpy", "pydantic", "sqlalchemy", "httpx")
    code = f"import sys; from neat_backend import cli; print(sorted(set({slow!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANGS, check=True)
    assert done.stdout.strip() == "[]"
