"""Strategies and encoders of other distributions: those of examples/, used by name like this package's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neat_backend import plugins
from neat_backend.errors import EncoderError, SettingsError
from neat_backend.models.encoders import build_encoder
from neat_backend.ranking.shared_engine import SharedEngine
from neat_backend.settings import Settings
from neat_backend.strategies import STRATEGIES, strategy
from neat_backend.testing.pools import make_pool
from neat_backend.worker.steps.planning import Planning
from tests.examples import EXAMPLES, ROOT, install
from tests.waiting import HANGS
from tests.worker.test_planning import made

BROKEN = "broken-1.0.dist-info"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        str(install(name, tmp_path_factory.mktemp(name, numbered=False)))
        for name in ("custom_strategy", "custom_encoder")
    ]


@pytest.fixture
def installed(sites: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for site in sites:
        monkeypatch.syspath_prepend(site)


@pytest.mark.parametrize("name", ["custom_strategy", "custom_encoder"])
def test_an_example_keeps_the_contract_that_it_is_tested_by(name: str, sites: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLES / name)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([*sites, str(ROOT)])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANGS, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.usefixtures("installed")
class TestStrategies:
    def test_it_is_fifteen_lines(self) -> None:
        assert len((EXAMPLES / "custom_strategy/margin_strategy.py").read_text().splitlines()) <= 15

    def test_it_is_a_setting_of_all_projects_and_of_one(self) -> None:
        settings = Settings.from_env({"NEAT_STRATEGY": "smallest_margin"})
        assert settings.strategy == "smallest_margin"
        assert Settings.from_env({}).for_project({"strategy": "smallest_margin"}) == settings

    def test_it_makes_the_plan_of_a_project(self) -> None:
        engine = made(labels=30)
        planning = Planning(SharedEngine(engine), "smallest_margin", 3, lambda: 7)
        assert planning.step()
        ids, pool = engine.pool(1000)
        assert pool is not None
        chosen = ids[strategy("smallest_margin")(pool, 2 * engine.batch_size, np.random.default_rng(3))]
        assert [ranked.task for ranked in planning.head()] == chosen.tolist()

    def test_it_asks_for_the_smallest_margins(self) -> None:
        pool = make_pool()
        chosen = strategy("smallest_margin")(pool, 10, np.random.default_rng(0))
        margin = {
            int(index): float(row[-1] - row[-2])
            for index, row in zip(pool.offered, np.sort(pool.probabilities(pool.offered), axis=1), strict=True)
        }
        assert [margin[index] for index in chosen.tolist()] == sorted(margin.values())[:10]

    def test_an_unknown_name_is_refused_with_it_among_those_there_are(self) -> None:
        with pytest.raises(SettingsError, match="smallest_margin, or hybrid:NAME"):
            strategy("smallest")
        with pytest.raises(SettingsError, match="smallest_margin"):
            Settings.from_env({"NEAT_STRATEGY": "smallest"})

    def test_it_cant_take_the_name_of_a_strategy_of_this_package(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plugins, "load", lambda group, name: pytest.fail("was looked for elsewhere"))
        for name in STRATEGIES:
            strategy(name)


@pytest.mark.usefixtures("installed")
class TestEncoders:
    def test_it_is_a_setting_and_is_built_by_its_name(self) -> None:
        assert Settings.from_env({"NEAT_ENCODER": "thumbnail:8"}).encoder == "thumbnail:8"
        sixteen, eight = (build_encoder(name, device="cpu") for name in ("thumbnail", "thumbnail:8"))
        assert (sixteen.dim, eight.dim) == (3 * 16 * 16, 3 * 8 * 8)
        assert sixteen.key != eight.key

    def test_an_unknown_name_is_refused_with_it_among_those_there_are(self) -> None:
        with pytest.raises(EncoderError, match=r"accepted: .*, thumbnail$"):
            build_encoder("thumb", device="cpu")
        with pytest.raises(SettingsError, match="or thumbnail"):
            Settings.from_env({"NEAT_ENCODER": "thumb"})


def test_without_it_the_name_is_unknown() -> None:
    with pytest.raises(SettingsError, match="must be one of"):
        Settings.from_env({"NEAT_STRATEGY": "smallest_margin"})


def test_one_that_cant_be_imported_is_said_to_be_whose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / BROKEN
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{plugins.STRATEGIES}]\nfaulty = no_such_module:select\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SettingsError, match=r"'faulty' of broken can't be loaded: ModuleNotFoundError.*no_such_module"):
        strategy("faulty")
