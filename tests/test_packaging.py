"""What a release is made of: one version everywhere, and a source archive and wheel that hold all that runs."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from neat_backend import __version__
from tests.examples import built
from tests.waiting import HANGS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that git knows, copied: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("source")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def test_one_version_everywhere() -> None:
    newest = re.search(r"^## (\d\S+) - (\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == __version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], str(citation["date-released"])) == (newest[1], newest[2])
    images = re.findall(r"image: neat-backend:(\S+)", (ROOT / "deploy/kubernetes/neat-backend.yaml").read_text())
    assert set(images) == {__version__}


def test_the_wheel_holds_all_that_runs(source: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(built(source, "build_wheel", tmp_path)) as wheel:
        names = set(wheel.namelist())
        metadata = wheel.read(f"neat_backend-{__version__}.dist-info/METADATA").decode()
    package = {path.relative_to(source).as_posix() for path in (source / "neat_backend").rglob("*") if path.is_file()}
    assert package <= names
    assert {name.split("/")[0] for name in names} == {"neat_backend", f"neat_backend-{__version__}.dist-info"}
    licences = ("LICENSE", "NOTICE", "neat_backend/demo/pictures/LICENSE.txt")
    assert {f"neat_backend-{__version__}.dist-info/licenses/{name}" for name in licences} <= names
    assert f"Version: {__version__}\n" in metadata
    assert "License-Expression: Apache-2.0 AND CC-BY-SA-4.0\n" in metadata
    needed = re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*(?:; (?!extra).*)?$", metadata, re.MULTILINE)
    assert {"torch", "flask", "label-studio-sdk"} <= set(needed)
    assert not {"matplotlib", "label-studio-ml", "redis", "pytest"} & set(needed)


def test_the_source_archive_builds_the_same_wheel(source: Path, tmp_path: Path) -> None:
    with tarfile.open(built(source, "build_sdist", tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    from_archive = built(tmp_path / f"neat_backend-{__version__}", "build_wheel", tmp_path)
    from_source = built(source, "build_wheel", tmp_path / "other")
    with zipfile.ZipFile(from_archive) as one, zipfile.ZipFile(from_source) as other:
        assert sorted(one.namelist()) == sorted(other.namelist())


def test_the_demo_installs_only_what_the_service_needs() -> None:
    def planned(target: str) -> str:
        """What make would run in a fresh clone."""
        words = ["make", "--dry-run", target, "BIN=absent/bin", "LABEL_STUDIO=absent/label-studio"]
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=HANGS, check=True).stdout

    demo, test = planned("demo"), planned("test")
    assert "-r requirements-runtime.lock" in demo
    assert "-r requirements.lock" not in demo
    assert "-r requirements.lock" in test
    assert test.index("-r requirements-runtime.lock") < test.index("-r requirements.lock")
    for plan in (demo, test):
        assert "-r label-studio.lock" in plan
